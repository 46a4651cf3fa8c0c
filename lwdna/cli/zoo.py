"""``lwdna zoo``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from lwdna import jsonl
from lwdna.cli import options
from lwdna.cli.command import Answer, command

_SORTS = ("name", "params", "macs", "prunable_macs", "prunable_params")
_SHOWN = 200  # characters of a reason; --json and files have all of it
_HEADERS = ("model", "input", "params", "MACs", "params prunable", "MACs prunable")


@command(
    examples=(
        "lwdna zoo 'timm:resnet*'",
        "lwdna zoo 'mobilenet*' 'efficientnet_b*' --sort macs",
        "lwdna zoo 'vit_*' --names",
        "lwdna zoo 'torchvision:r3d_18' --input 3x16x112x112",
        "lwdna zoo '*' -o zoo.jsonl   # all: goes on where it was stopped",
    )
)
@click.argument("patterns", nargs=-1, required=True, metavar="PATTERN...")
@click.option("--names", is_flag=True, help="The names only: nothing is built.")
@click.option("--sort", type=click.Choice(_SORTS), default="name", show_default=True)
@options.inputs
@options.output(
    "File of JSON lines, one for each model as it is done. What is in it is not done again.",
    file=True,
)
@options.force
def zoo(
    patterns: tuple[str, ...],
    names: bool,
    sort: str,
    shapes: Any,
    output: Path | None,
    force: bool,
) -> Answer:
    """Search the models of timm and torchvision: parameters, MACs, and the share to be pruned.

    A pattern is that of a shell ('timm:resnet*', or without the library). Models are built without
    weights, half a second each for most. A share counts the layers that a prunable group belongs
    to. A model that is not captured on one image has its reason in place of figures: detectors
    take lists of images, which needs Python; for videos and pairs of images give --input.
    """
    from lwdna import zoo as library

    chosen = library.matching(patterns)
    if names:
        return Answer({"models": list(chosen)}, "\n".join(chosen))
    known = _begin(output, shapes, force=force)
    found = [known.get(name) or _examined(name, shapes, output) for name in _bar(chosen, known)]
    found = sorted(found, key=lambda r: (_rank(r, sort), r["name"]))
    return Answer({"models": found}, _text(found))


def _bar(chosen: Sequence[str], known: Any) -> Iterator[str]:
    """All names, with a bar over those that are not known."""
    todo = [name for name in chosen if name not in known]
    yield from (name for name in chosen if name in known)
    yield from tqdm(todo, unit="model", delay=1, disable=None, leave=False, smoothing=0.05)


def _begin(output: Path | None, shapes: Any, *, force: bool) -> dict[str, dict[str, Any]]:
    """Records that a file has already; its first line says what it is a record of."""
    from lwdna.dna import versions

    if output is None:
        return {}
    if force:
        output.unlink(missing_ok=True)
    head = {"lwdna_zoo": 1, "versions": versions(), "input": [list(shape) for shape in shapes]}
    try:
        return {record["name"]: record for record in jsonl.resume(output, head)}
    except ValueError as e:
        raise click.UsageError(f"{e}; name another file, or --force to begin it anew") from e


def _examined(name: str, shapes: Any, output: Path | None) -> dict[str, Any]:
    from lwdna.zoo import facts

    record: dict[str, Any]
    try:
        record = {"name": name, **facts(name, shapes)}
    except Exception as e:  # one of 1,500 models: its reason is an entry like another
        record = {"name": name, "error": f"{type(e).__name__}: {e}"}
    if output is not None:
        jsonl.append(output, record)
    return record


def _rank(record: dict[str, Any], sort: str) -> Any:
    if sort == "name":
        return record["name"]
    return record.get(sort, float("inf"))


def _text(found: Sequence[dict[str, Any]]) -> str:
    from lwdna.cli import tables

    rows = [
        (
            r["name"],
            ", ".join("x".join(map(str, shape)) for shape in r["input"]),
            f"{r['params']:,}",
            f"{r['macs']:,}",
            f"{r['prunable_params']:.1%}",
            f"{r['prunable_macs']:.1%}",
        )
        for r in found
        if "error" not in r
    ]
    failed = [f"{r['name']}: {r['error'][:_SHOWN]}" for r in found if "error" in r]
    parts = [tables.table(rows, _HEADERS)] if rows else []
    return "\n\n".join([*parts, *failed])
