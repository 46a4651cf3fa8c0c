"""Shrink: the network without the channels that were not selected."""

from __future__ import annotations

from typing import Any

from torch import nn

from lwdna.fx_passes._base import captured, described, graph_pass, own_state
from lwdna.fx_passes.resize import resize
from lwdna.graph import ChannelGraph, Copies


def _removes_only(arguments: dict[str, Any]) -> None:
    if (arguments["copies"] > 1).any():
        raise ValueError("copies above 1 widen a network; shrink_graph only removes (see resize)")


@graph_pass(requires=(captured, described, _removes_only), ensures=(own_state,))
def shrink_graph(gm: nn.Module, graph: ChannelGraph, copies: Copies) -> nn.Module:
    """Remove the units of 0 copies; the weights that stay keep their values.

    Args:
        gm: a captured network; it is not changed.
        graph: its channel graph.
        copies: 0 or 1 per unit, shape (units,), int64.

    Raises:
        ValueError: a frozen group would change or a group would be empty.
        ResizeError: see :func:`lwdna.resize`.
    """
    return resize(gm, graph, copies)
