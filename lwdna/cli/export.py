"""``lwdna export``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from lwdna.cli import options
from lwdna.cli.command import Answer, command
from lwdna.progress import stages


@command(
    examples=(
        "lwdna export r18 r18.onnx",
        "lwdna export r18 r18.onnx --input 3x160x160 --json",
    )
)
@click.argument("network", metavar="NETWORK")
@click.argument("path", metavar="FILE.onnx", type=click.Path(dir_okay=False, path_type=Path))
@options.inputs
@options.trust
@options.force
def export(network: str, path: Path, shapes: Any, trust: Any, force: bool) -> Answer:
    """Write a network that lwdna saved as one ONNX file, for evaluation, with a dynamic batch.

    Needs `pip install "lwdna[onnx]"`. What ONNX Runtime computes from the file is compared with
    PyTorch before it is kept. Detectors, and networks of more than 2 GB, need Python.
    """
    if path.suffix != ".onnx":
        raise click.UsageError(f"{path}: the name of an ONNX file ends in .onnx")
    options.check_free(path, force=force)
    if not Path(network).is_dir():
        raise click.UsageError(f"{network} is no directory: name one that `lwdna shrink -o` made")
    from lwdna.cli import models, onnx_files
    from lwdna.files import replace_file

    with stages(("load", "export", "compare")) as stage:
        stage("load")
        net = models.saved(network, trust).eval()
        inputs = models.example(net, shapes, batch=3, seed=0)
        stage("export")
        program = onnx_files.program(net, inputs)
        found: list[float] = []

        def write(temporary: Path) -> None:
            program.save(temporary, external_data=False)
            stage("compare")
            found.append(onnx_files.difference(net, inputs, temporary))

        replace_file(path, write)
    size = path.stat().st_size
    text = (
        f"{path}: {size:,} bytes; ONNX Runtime differs from PyTorch by at most {found[0]:.1e} of "
        "the largest output"
    )
    return Answer({"saved": str(path), "bytes": size, "difference": found[0]}, text)
