"""How much of a network can be pruned, and what forbids the rest."""

from __future__ import annotations

import inspect
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn
from torch.fx import GraphModule

from lwdna.fx_passes.regions import graphs
from lwdna.graph import ChannelGraph
from lwdna.prunable import free_terms, prunable_share

_MACS = ("conv", "linear", "matmul")
_REASONS = 5  # of the largest are kept
#: Share of MACs in products of two activations from which a network counts as a transformer.
_ATTENTION = 0.01


def figures(model: nn.Module, gm: nn.Module, graph: ChannelGraph) -> dict[str, Any]:
    """Size of the graph, shares in prunable groups, reasons of what is frozen.

    A MACs or params term counts as prunable if any of its factors belongs to a prunable group:
    then the term shrinks with that group.

    Args:
        model: the network.
        gm: its capture, as one graph or in parts.
        graph: its channel graph.
    """
    values = graph.cost_model.per_term(graph.widths)
    kinds = np.array([term.kind for term in graph.terms])
    free = free_terms(graph)
    macs = np.isin(kinds, _MACS)
    cost = graph.cost()
    products = values[kinds == "matmul"].sum() / max(cost.macs, 1)
    return {
        "macs": cost.macs,
        "nodes": sum(len(part.graph.nodes) for part in graphs(gm).values()),
        "units": graph.units,
        "groups": len(graph.groups),
        "prunable_groups": int(graph.prunable.sum()),
        "choices": len({c.node for c in graph.choices if len(c.candidates) > 1}),
        "attention": round(float(products), 4),
        "kind": "transformer" if products >= _ATTENTION else "cnn",
        "share": {name: round(prunable_share(graph, name), 4) for name in ("macs", "params")},
        "frozen": _reasons(model, gm, graph, np.flatnonzero(macs & ~free), values),
    }


def _reasons(
    model: nn.Module,
    gm: nn.Module,
    graph: ChannelGraph,
    frozen: Sequence[int] | NDArray[np.int64],
    values: NDArray[np.int64],
) -> list[dict[str, Any]]:
    """The freeze reasons of the ``frozen`` terms with their share of all MACs, largest first."""
    weight: dict[str, int] = defaultdict(int)
    node: dict[str, str] = {}
    for t in frozen:
        term = graph.terms[t]
        groups = {int(g) for v in term.vectors for g in np.unique(graph.group_of[v])}
        reasons = sorted({r for g in groups for r in graph.groups[g].reasons})
        text = "; ".join(sorted({r for r, _ in reasons})) or "no factor is a channel"
        weight[f"{term.kind}: {text}"] += int(values[t])
        node.setdefault(f"{term.kind}: {text}", reasons[0][1] if reasons else term.node)
    total = max(graph.cost().macs, 1)
    largest = sorted(weight, key=lambda text: -weight[text])[:_REASONS]
    return [
        {
            "macs": round(weight[text] / total, 4),
            "reason": text[:200],
            "node": node[text],
            "source": source_line(model, gm, node[text]),
        }
        for text in largest
    ]


def source_line(model: nn.Module, gm: nn.Module, name: str) -> str | None:
    """File and line of the class of the module in whose forward a graph node was traced."""
    path = next((p for key, part in graphs(gm).items() for p in _paths(key, part, name)), None)
    if path is None:
        return None
    try:
        module = model.get_submodule(path)
        file, (_, line) = inspect.getfile(type(module)), inspect.getsourcelines(type(module))
    except (AttributeError, OSError, TypeError):
        return None
    short = re.sub(r"^.*/(?:site-packages|dist-packages)/", "", file)
    return f"{short}:{line} {type(module).__name__}"


def _paths(region: str, part: GraphModule, name: str) -> Iterator[str]:
    """Qualified name of the module in which the node called ``name`` was traced, if it is here."""
    for node in part.graph.nodes:
        inner = node.target if node.op == "call_module" else node.meta.get("module")
        if inner is not None and name in (node.name, f"{region}.{node.name}"):
            yield ".".join(filter(None, (region, inner)))
