"""``lwdna diff``."""

from __future__ import annotations

from typing import Any

import click

from lwdna.cli.command import Answer, command


@command(
    examples=(
        "lwdna diff r18 r18-smaller",
        "lwdna diff a.json b.json --json",
        "lwdna diff seed0/dna.json seed1/dna.json || echo 'the seed matters'",
    )
)
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
def diff(a: str, b: str) -> Answer:
    """Compare two networks by their DNAs: costs, widths, kept channels, settings.

    A and B are directories that lwdna saved, or their dna.json. Exit code 0 if all is the same, 1
    if anything differs.
    """
    import lwdna
    from lwdna.files import read_dna

    found = lwdna.diff(read_dna(a), read_dna(b))
    same = not (found.groups or found.fields)
    groups = [
        {"name": next(g.name for g in pair if g), "a": _said(pair[0]), "b": _said(pair[1])}
        for pair in found.groups
    ]
    document = {
        "same": same,
        "after": {"a": found.a.after.as_dict(), "b": found.b.after.as_dict()},
        "groups": groups,
        "fields": {name: [_plain(found.a, name), _plain(found.b, name)] for name in found.fields},
    }
    return Answer(document, str(found), yes=same)


def _said(group: Any) -> dict[str, Any] | None:
    """A group's width and kept units, in runs as in the DNA."""
    if group is None:
        return None
    from lwdna.group_width import as_runs

    return {"width": group.width, "baseline": group.baseline, "kept": as_runs(group.kept)}


def _plain(dna: Any, name: str) -> Any:
    value = getattr(dna, name)
    return str(value) if name == "source" else value
