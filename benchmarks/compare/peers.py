"""The widths that Torch-Pruning comes to, for a network with fresh weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import lwdna
from benchmarks.measure import Clock
from benchmarks.pruners import Peer
from lwdna.channels import Ids
from lwdna.graph import ChannelGraph
from lwdna.scoring import Saliency, ScoringContext

#: Of its own loop (see ``shrink_as_peer``) there are four times as many, so that the last step,
#: which it cannot go back by, leaves less of the budget unused.
STEPS = 400

Batches = Sequence[tuple[Tensor, Tensor]]


def arguments(
    model: nn.Module,
    budget: lwdna.Budget,
    batches: Batches,
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    *,
    criterion: str,
    ignored: Sequence[str] = (),
    seed: int,
) -> dict[str, Any]:
    """What makes :func:`lwdna.shrink` give a network the widths that Torch-Pruning comes to.

    Channels of all groups are ranked together, at the network's own, untrained weights, and
    removed in small steps until the budget is met. The widths count, not which channels stay: the
    weights will be drawn anew.

    Args:
        model: the baseline; not changed.
        budget: of MACs and params.
        batches: inputs and targets, for the criterion's gradients.
        loss_fn: ``loss_fn(outputs, targets)``.
        criterion: one of :data:`benchmarks.pruners.IMPORTANCES`.
        ignored: layers whose outputs it must leave alone, besides those that give the network's.
        seed: of a random criterion.

    Raises:
        ValueError: the budget is out of its reach, or its widths are none of ours.
    """
    image = batches[0][0][:1]
    graph = lwdna.analyse(lwdna.capture(model, image), image)
    widths = _widths(model, image, graph, budget, batches, loss_fn, criterion, ignored, seed)
    cost = graph.cost_model(widths)
    keep = {group.name: int(width) for group, width in zip(graph.groups, widths, strict=True)}

    def torch_pruning(context: ScoringContext) -> Saliency:
        """1 for as many units of each group as stay; the budget has room for no more."""
        found = np.zeros(context.graph.units)
        for group in context.graph.groups:
            found[group.units[: keep[group.name]]] = 1.0
        return found

    return {
        "budget": lwdna.Budget(macs=cost.macs, params=cost.params),
        "widen": 1.0,
        "criterion": torch_pruning,
        "constraints": lwdna.Constraints(lwdna.Floors(fraction=0.0, absolute=1, classifier=0.0)),
        "weights": "fresh",
    }


def _widths(
    model: nn.Module,
    image: Tensor,
    graph: ChannelGraph,
    budget: lwdna.Budget,
    batches: Batches,
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    criterion: str,
    ignored: Sequence[str],
    seed: int,
) -> Ids:
    """Units that are left of each group, shape (groups,), in our count of the budget."""
    limits = budget.limits(graph.cost())
    last = _fixed(graph) | set(ignored)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        peer = Peer(
            model, image, last, Clock(), ratio=1.0, steps=STEPS, importance=criterion, together=True
        )
        peer.model.train()
        for inputs, targets in batches:  # its steps cut gradients as they cut weights
            loss_fn(peer.model(inputs), targets).backward()
        for _ in range(STEPS):
            widths = _read(peer.model, graph)
            cost = graph.cost_model(widths)
            if all(cost[metric] <= limit for metric, limit in limits.items()):
                return widths
            peer.step()
    raise ValueError(f"Torch-Pruning does not get to {limits} by {criterion!r}")


def _fixed(graph: ChannelGraph) -> set[str]:
    """Layers whose outputs cannot change: those that give the network's."""
    changeable = graph.changeable[graph.group_of]
    return {
        name.rpartition(".")[0]
        for name, role in graph.roles.items()
        if (units := graph.tensors[name][role.out_dim]) is None or not changeable[units].any()
    }


def _read(model: nn.Module, graph: ChannelGraph) -> Ids:
    """Widths of the groups, from the shapes of a network's parameters.

    Raises:
        ValueError: the shapes are none that widths of groups give.
    """
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    widths = graph.widths.copy()
    for group in graph.groups:
        for slot, times in group.slots if group.prunable else ():
            units = graph.tensors[slot.name][slot.dim] if slot.name in shapes else None
            if units is not None and (graph.group_of[units] == group.index).all():
                widths[group.index] = shapes[slot.name][slot.dim] // times
                break
    for name, shape in shapes.items():
        for size, units in zip(shape, graph.tensors[name], strict=True):
            if units is not None and size != _length(graph, widths, units):
                raise ValueError(
                    f"Torch-Pruning left {name!r} the shape {shape}, which no widths of the "
                    "channel groups give: name the layer whose channels it takes wrongly in ignored"
                )
    return widths


def _length(graph: ChannelGraph, widths: Ids, units: Ids) -> int:
    """Of a channel vector, at these widths."""
    times = np.bincount(graph.group_of[units], minlength=len(graph.groups))
    return int((times // np.maximum(graph.widths, 1) * widths).sum())
