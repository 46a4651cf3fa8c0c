"""``lwdna rebuild``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from lwdna.cli import options
from lwdna.cli.command import Answer, command
from lwdna.progress import stages


@command(
    examples=(
        "lwdna rebuild r18/dna.json -o r18-fresh --weights fresh --seed 1",
        "lwdna rebuild r18 --macs 0.6 -o r18-60",
        "lwdna rebuild pruned --arg pretrained=true -o again",
        "lwdna rebuild mine --trust my_models --macs 0.5 -o mine-50",
    )
)
@click.argument("dna", metavar="DNA")
@options.arguments
@options.trust
@options.budgets
@click.option(
    "--weights",
    type=click.Choice(["inherit", "fresh"]),
    default="inherit",
    show_default=True,
    help="The model's own, sliced, or drawn afresh at the new widths.",
)
@click.option("--seed", type=int, help="Of the weights; by default the DNA's.")
@options.output("Directory for it.", required=True)
@options.force
def rebuild(
    dna: str,
    arguments: Any,
    trust: Any,
    weights: Any,
    seed: int | None,
    output: Path,
    force: bool,
    **given: Any,
) -> Answer:
    """Build a model as its DNA names it, give it the widths, and save it; no data is needed.

    DNA is a dna.json, or a directory that lwdna saved. It has the arguments of the constructor;
    --arg adds those that load weights. With a budget (fractions are of the original's cost), all
    widths are multiplied by one factor first; train such a network from scratch.
    """
    options.check_free(output, force=force, names=options.SAVED)
    import lwdna
    from lwdna.cli import models, saving
    from lwdna.files import read_dna

    found, budget = read_dna(dna), options.budget_of(given)
    found = found if seed is None else replace(found, seed=seed)
    models.look_here(trust)
    with stages(("re-scale", "build", "rebuild")) as stage:
        stage("re-scale")
        found = found if budget is None else found.at(budget, trust=trust)
        stage("build")
        model = models.of_dna(found, arguments, trust)
        stage("rebuild")
        net = lwdna.rebuild(model, found, weights=weights)
    return saving.saved(net, output)
