"""A new network: saved, described, and what to do with it."""

from __future__ import annotations

import json
from pathlib import Path

from torch import nn

from lwdna.cli import tables
from lwdna.cli.command import Answer
from lwdna.cli.models import ZOOS
from lwdna.dna import Dna
from lwdna.files import save
from lwdna.rebuilding import dna_of


def saved(net: nn.Module, output: Path | None) -> Answer:
    """Save a network, if a directory is given, and describe it.

    Args:
        net: what :func:`lwdna.shrink` or :func:`lwdna.rebuild` made.
        output: where to.

    Returns:
        Its DNA and where it lies, for ``--json``; costs and next steps, for people.
    """
    dna = dna_of(net)
    if output is not None:
        save(net, output)
    changed = sum(group.width != group.baseline for group in dna.groups)
    free = sum(group.prunable for group in dna.groups)
    lines = (
        tables.before_after(dna.before, dna.after, dna.limits),
        "",
        f"{changed} of {free} prunable groups have another width",
        *([dna.note] if dna.note else []),
        *_next(dna, output),
    )
    place = None if output is None else str(output)
    return Answer({"dna": json.loads(dna.to_json()), "saved": place}, "\n".join(lines))


def _next(dna: Dna, output: Path | None) -> list[str]:
    if output is None:
        return ["nothing is saved: -o DIR keeps the network"]
    library = None if dna.source is None else dna.source.library
    ours = library not in ZOOS
    given, option = (f", trust=[{library!r}]", f" --trust {library}") if ours else ("", "")
    return [
        f"saved in {output}; it is untrained unless it inherits trained weights. Next:",
        f"  net = lwdna.load({str(output)!r}{given})  # in Python: train it like the original",
        f"  lwdna report {output}",
        f"  lwdna train {output}/dna.json --data DIR ...{option}  # see `lwdna train --help`",
        f"  lwdna export {output} {output.name}.onnx{option}",
    ]
