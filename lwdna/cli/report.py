"""``lwdna report``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from lwdna.cli import options
from lwdna.cli.command import Answer, command


@command(
    examples=(
        "lwdna report r18",
        "lwdna report r18 --group 'layer1.*' --images png -o r18.html",
        "lwdna report r18/dna.json -o widths.html --json",
    )
)
@click.argument("network", metavar="NETWORK")
@click.option(
    "--group",
    "groups",
    multiple=True,
    metavar="PATTERN",
    help="Groups whose dependencies are drawn; see `lwdna explain`.",
)
@click.option("--images", type=click.Choice(["png", "svg"]), help="Each figure as a file, too.")
@options.trust
@options.output("The page; by default report.html beside the DNA.", file=True)
@options.force
def report(
    network: str, groups: Any, images: Any, trust: Any, output: Path | None, force: bool
) -> Answer:
    """Write one HTML page on a shrunk network: widths, saliencies, costs, reasons.

    NETWORK is a directory that lwdna saved, or a dna.json. Needs `pip install "lwdna[report]"`;
    the page needs neither a network connection nor a script.
    """
    given = Path(network)
    output = output or (given if given.is_dir() else given.parent) / "report.html"
    options.check_free(output, force=force)
    import lwdna
    from lwdna.cli import models
    from lwdna.files import read_dna

    if groups and not given.is_dir():
        raise click.UsageError("--group: the network is needed, not its DNA alone")
    subject = models.saved(given, trust) if groups else read_dna(given)
    page = lwdna.report(subject, output, groups=groups, images=images)
    return Answer({"page": str(page)}, f"open {page} in a browser")
