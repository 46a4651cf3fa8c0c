"""What can be shrunk, what cannot, and why: a table of the channel groups."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from tabulate import tabulate
from torch import nn

from lwdna.channels import Policy
from lwdna.choices import BOTH
from lwdna.fx_passes.analyse import analyse
from lwdna.fx_passes.capture import capture
from lwdna.fx_passes.regions import is_captured
from lwdna.graph import ChannelGraph, ChannelGroup
from lwdna.inputs import default_inputs
from lwdna.tables import html_table

_HEADERS = ("group", "width", "lives in", "MACs", "params", "prunable, or why not")


@dataclass(frozen=True)
class GroupRow:
    """One group of an :class:`Explanation`.

    Attributes:
        group: the group's name.
        width: number of units.
        lives: the tensor dimensions it sets the size of, with the entries per unit if not 1.
        macs: share of the network's MACs that vanish with the group, 0 to 1.
        params: share of the parameters that vanish with it.
        prunable: whether its width may change.
        why: the reasons and nodes that freeze it; empty if prunable.
    """

    group: str
    width: int
    lives: tuple[str, ...]
    macs: float
    params: float
    prunable: bool
    why: tuple[str, ...]


@dataclass(frozen=True)
class Explanation:
    """Table of all groups; prints as text.

    Attributes:
        rows: one per group, in the order in which the network opens them.
        graph: the channel graph behind it.
    """

    rows: tuple[GroupRow, ...]
    graph: ChannelGraph

    def __repr__(self) -> str:
        return f"<Explanation of {len(self.rows)} channel groups; print() shows them>"

    def __str__(self) -> str:
        table = tabulate(
            self._cells(),
            headers=_HEADERS,
            disable_numparse=True,
            colalign=("left", "right", "left", "right", "right", "left"),
        )
        return "\n".join([table, *self._lines()])

    def _repr_html_(self) -> str:
        return html_table(_HEADERS, self._cells(), *self._lines())

    def _cells(self) -> list[tuple[str, int, str, str, str, str]]:
        return [
            (r.group, r.width, _lives(r.lives), f"{r.macs:.2%}", f"{r.params:.2%}", _why(r))
            for r in self.rows
        ]

    def _lines(self) -> list[str]:
        cost = self.graph.cost()
        choices = {
            f"{c.node}: {'axes' if c.chosen == BOTH else 'axis'} {c.chosen} of {c.sizes}"
            for c in self.graph.choices
            if c.chosen is not None and len(c.candidates) > 1
        }
        lines = [
            "MACs, params: what vanishes with the group; a layer counts for all groups it joins",
            f"{cost.macs:,} MACs, {cost.flops_paper:,} paper FLOPs, {cost.params:,} params",
        ]
        if choices:
            lines.append("choice points (see policy): " + "; ".join(sorted(choices)))
        return lines


def _lives(slots: tuple[str, ...]) -> str:
    rest = len(slots) - 2
    return ", ".join(slots[:2]) + (f" and {rest} more" if rest > 0 else "")


def _why(row: GroupRow) -> str:
    return "yes" if row.prunable else "; ".join(row.why[:2])


def explain(
    model: nn.Module, example_inputs: Any = None, *, policy: Policy = "auto"
) -> Explanation:
    """Print and return a table of the channel groups of a model.

    Args:
        model: any ``nn.Module``; it is not changed.
        example_inputs: a tensor or a tuple of ``forward``'s arguments; by default an image batch
            of the size in the model's configuration (timm), else 224 x 224.
        policy: see :func:`lwdna.choices.choose_axis`.

    Returns:
        The explanation; ``str()`` of it is what was printed.

    Raises:
        CaptureError, UnsupportedModelError: see :func:`lwdna.capture`.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}: pass an nn.Module")
    inputs = default_inputs(model) if example_inputs is None else example_inputs
    gm = model if is_captured(model) else capture(model, inputs)
    explanation = explain_graph(analyse(gm, inputs, policy=policy))
    sys.stdout.write(f"{explanation}\n")
    return explanation


def explain_graph(graph: ChannelGraph) -> Explanation:
    """The explanation of a channel graph, not printed."""
    return Explanation(tuple(_row(graph, group) for group in graph.groups if group.slots), graph)


def _row(graph: ChannelGraph, group: ChannelGroup) -> GroupRow:
    full = graph.cost()
    widths = graph.widths.copy()
    widths[[group.index, *group.factors]] = 0  # products vanish with their factors
    rest = graph.cost_model(widths)
    return GroupRow(
        group=group.name,
        width=group.width,
        lives=tuple(f"{slot}×{n}" if n > 1 else str(slot) for slot, n in group.slots),
        macs=1 - rest.macs / max(full.macs, 1),
        params=1 - rest.params / max(full.params, 1),
        prunable=group.prunable,
        why=tuple(f"{reason} at {node}" if node else reason for reason, node in group.reasons),
    )
