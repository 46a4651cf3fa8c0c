"""``lwdna export``."""

from __future__ import annotations

from collections.abc import Callable
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
        "lwdna export r18 r18.py",
    )
)
@click.argument("network", metavar="NETWORK")
@click.argument("path", metavar="FILE", type=click.Path(dir_okay=False, path_type=Path))
@options.inputs
@options.trust
@options.force
def export(network: str, path: Path, shapes: Any, trust: Any, force: bool) -> Answer:
    """Write a network that lwdna saved as an ONNX file (FILE.onnx), or as PyTorch source (FILE.py).

    ONNX is for evaluation, with a dynamic batch, and needs `pip install "lwdna[onnx]"`: what ONNX
    Runtime computes from the file is compared with PyTorch before it is kept. Source needs no lwdna
    where it is used, and takes its values from a state_dict. Detectors, and ONNX files of more than
    2 GB, need Python.
    """
    if path.suffix not in (".onnx", ".py"):
        raise click.UsageError(f"{path}: write FILE.onnx or FILE.py")
    options.check_free(path, force=force)
    if not Path(network).is_dir():
        raise click.UsageError(f"{network} is no directory: name one that `lwdna shrink -o` made")
    from lwdna.cli import models

    with stages(("load", "export", "compare")) as stage:
        stage("load")
        net = models.saved(network, trust).eval()
        stage("export")
        if path.suffix == ".py":
            return _source(net, path)
        return _onnx(net, models.example(net, shapes, batch=3, seed=0), path, stage)


def _source(net: Any, path: Path) -> Answer:
    import lwdna

    name = lwdna.export_source(net, path)
    text = f"{path}: the class {name}; its values are those of lwdna.load(...).state_dict()"
    return Answer({"saved": str(path), "class": name}, text)


def _onnx(net: Any, inputs: Any, path: Path, stage: Callable[[str], None]) -> Answer:
    from lwdna.cli import onnx_files
    from lwdna.files import replace_file

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
