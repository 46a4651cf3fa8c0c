"""What an operator's time depends on: elements it reads and writes, multiply-accumulates.

Each is a sum of :class:`lwdna.cost.Term`, so it is known in closed form for all widths.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch.fx
from torch import nn

from lwdna.channels import Ids
from lwdna.errors import LatencyError
from lwdna.graph import ChannelGraph
from lwdna.tensor_channels import TensorChannels
from lwdna.trees import tree_leaves

#: A coefficient and the vectors whose lengths multiply it.
Size = tuple[int, tuple[Ids, ...]]
_CONTRACTIONS = ("conv", "linear", "matmul")


@dataclass(frozen=True)
class OperatorSizes:
    """Sizes of one graph node for one input (batch size 1), as sums over products of widths.

    Attributes:
        written: elements of its outputs.
        read: elements of its inputs, without parameters.
        macs: multiply-accumulates.
    """

    written: tuple[Size, ...]
    read: tuple[Size, ...]
    macs: tuple[Size, ...]


def operator_sizes(gm: nn.Module, graph: ChannelGraph) -> dict[str, OperatorSizes]:
    """Sizes of all nodes that compute something, by node name.

    Args:
        gm: the captured network, one graph.
        graph: its channel graph.

    Raises:
        LatencyError: the network was captured in parts.
    """
    nodes = one_graph(gm).nodes
    macs: dict[str, list[Size]] = {}
    for term in graph.terms:
        if term.kind in _CONTRACTIONS:
            macs.setdefault(term.node, []).append((term.coefficient, term.vectors))
    found = {}
    for node in nodes:
        if node.op in ("placeholder", "get_attr", "output"):
            continue
        read = [graph.values.get(source.name) for source in node.all_input_nodes]
        found[node.name] = OperatorSizes(
            written=elements([graph.values.get(node.name)]),
            read=elements(read),
            macs=tuple(macs.get(node.name, ())),
        )
    return found


def one_graph(gm: nn.Module) -> torch.fx.Graph:
    """The graph of a captured network; refuses one that was captured in parts."""
    if not isinstance(gm, torch.fx.GraphModule):
        raise LatencyError(
            f"{type(gm).__name__} is captured in parts, whose latencies are not measured: give a "
            "budget of MACs instead"
        )
    return gm.graph


def elements(values: Iterable[Any]) -> tuple[Size, ...]:
    """Numbers of elements of the tensors in a pytree of :class:`lwdna.graph.TensorChannels`."""
    tensors = (leaf for leaf in tree_leaves(list(values)) if isinstance(leaf, TensorChannels))
    return tuple(
        (
            prod(n for n, v in zip(t.shape, t.vectors, strict=True) if v is None),
            tuple(v for v in t.vectors if v is not None),
        )
        for t in tensors
    )


def amount(sizes: Iterable[Size], copies: Ids) -> float:
    """Value of a sum of sizes under ``copies`` (units,)."""
    return float(sum(times * prod(int(copies[v].sum()) for v in vs) for times, vs in sizes))


def amounts(sizes: OperatorSizes, copies: Ids) -> tuple[float, float, float]:
    """(written, read, macs) under ``copies`` (units,)."""
    written, read, macs = (amount(s, copies) for s in (sizes.written, sizes.read, sizes.macs))
    return written, read, macs
