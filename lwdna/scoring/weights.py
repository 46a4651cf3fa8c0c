"""Criteria that look at the weights alone, and the two baselines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lwdna.channels import Ids
from lwdna.errors import ScoringError
from lwdna.scoring.context import ScoringContext
from lwdna.scoring.criteria import Saliency, criterion


@criterion("magnitude", data=False)
def magnitude(context: ScoringContext, *, norm: Literal["l1", "l2"] = "l2") -> Saliency:
    """Norm of the filters that produce a unit.

    A filter is one index of the output dimension of a convolution's or linear layer's weight. A
    coupled unit has one in every layer of its stage: the l1 norms are averaged over them, the l2
    norms as the root of their mean square. A unit that no layer produces scores 0.

    Args:
        context: network and graph; no batches are needed.
        norm: ``"l1"`` (sum of absolute values) or ``"l2"``.

    Returns:
        Saliency, shape (units,), float64.

    Raises:
        ValueError: another norm.

    Source: Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017, section 3.1 (l1).
    """
    if norm not in ("l1", "l2"):
        raise ValueError(f"magnitude: norm={norm!r}: 'l1' or 'l2'")
    if norm == "l1":
        return _mean_over_filters(context, lambda w_OF: w_OF.abs().sum(1))
    result: Saliency = np.sqrt(_mean_over_filters(context, lambda w_OF: w_OF.square().sum(1)))
    return result


@criterion("fpgm", data=False)
def fpgm(context: ScoringContext) -> Saliency:
    """Mean Euclidean distance of a unit's filters to the other filters of their layer.

    Filters near the geometric median of their layer can be replaced by the others. Distances are
    averaged over the layers that produce the unit.

    Args:
        context: network and graph; no batches are needed.

    Returns:
        Saliency, shape (units,), float64; 0 for a unit that no layer produces.

    Source: He et al., "Filter Pruning via Geometric Median for Deep Convolutional Neural
    Networks Acceleration", CVPR 2019.
    """

    def distances(w_OF: Tensor) -> Tensor:
        # As products of matrices, many times faster; equal filters come out as far apart as
        # float64 rounds |a|² - 2ab + |b|².
        apart = torch.cdist(w_OF, w_OF, compute_mode="use_mm_for_euclid_dist")
        apart[apart < 1e-7 * w_OF.norm(dim=1).max()] = 0.0
        return apart.sum(1) / max(len(w_OF) - 1, 1)

    return _mean_over_filters(context, distances)


@criterion("bn-scale", data=False)
def bn_scale(context: ScoringContext) -> Saliency:
    """|γ|, the gain of the batch norms that normalise a unit, averaged over them.

    It needs a network trained with a penalty on γ; at initialisation all gains are equal, and
    channels stay in the order of their numbers.

    Args:
        context: network and graph; no batches are needed.

    Returns:
        Saliency, shape (units,), float64; 0 for a unit without batch norm.

    Raises:
        ScoringError: the network has no batch norm with a gain.

    Source: Liu et al., "Learning Efficient Convolutional Networks through Network Slimming",
    ICCV 2017, section 3.
    """
    graph, parameters = context.graph, dict(context.network.named_parameters())
    total, times = np.zeros(graph.units), np.zeros(graph.units)
    for name, _ in context.network.named_buffers():
        prefix, _, last = name.rpartition("running_var")
        gain = parameters.get(f"{prefix}weight")
        (units,) = graph.tensors.get(f"{prefix}weight", (None,))[:1]
        if last or gain is None or gain.dim() != 1 or units is None:
            continue
        np.add.at(total, units, gain.detach().abs().double().cpu().numpy())
        np.add.at(times, units, 1.0)
    if not times.any():
        raise ScoringError(
            "criterion 'bn-scale' needs batch norms with gains, and the network has none: score "
            "with 'magnitude' or 'fpgm'"
        )
    return _mean(context, total, times)


@criterion("random", data=False)
def random(context: ScoringContext) -> Saliency:
    """Uniform random numbers from the seed; a baseline of every comparison.

    Args:
        context: its graph and seed.

    Returns:
        Saliency in [0, 1), shape (units,), float64.

    Source: Li et al., "Revisiting Random Channel Pruning", CVPR 2022.
    """
    draws = torch.rand(context.graph.units, generator=context.generator(), dtype=torch.float64)
    result: Saliency = draws.numpy()
    return result


@criterion("uniform", data=False)
def uniform(context: ScoringContext) -> Saliency:
    """Scores by which one global threshold keeps the same fraction of every group.

    The i-th of a group's n units scores ``1 - (i + 0.5) / n``.

    Args:
        context: its graph.

    Returns:
        Saliency in (0, 1), shape (units,), float64.

    Source: Howard et al., "MobileNets", 2017, section 3.3 (the width multiplier).
    """
    result = np.zeros(context.graph.units)
    for group in context.graph.groups:
        result[group.units] = 1.0 - (np.arange(group.width) + 0.5) / group.width
    return result


def _mean_over_filters(context: ScoringContext, score: Callable[[Tensor], Tensor]) -> Saliency:
    """Mean over the filters of a unit of ``score(filters (n, entries))``, shape (units,)."""
    total, filters = np.zeros(context.graph.units), np.zeros(context.graph.units)
    for units, w_OF in _filters(context):
        np.add.at(total, units, score(w_OF).cpu().numpy())
        np.add.at(filters, units, 1.0)
    return _mean(context, total, filters)


def _mean(context: ScoringContext, total: Saliency, times: Saliency) -> Saliency:
    """Mean over the occurrences of each unit, in products too; 0 for a unit without any."""
    total, times = context.graph.gathered(total), context.graph.gathered(times)
    result: Saliency = total / np.maximum(times, 1.0)
    return result


def _filters(context: ScoringContext) -> Iterator[tuple[Ids, Tensor]]:
    """(unit of each filter, filters (n, entries) in float64) of every weight with channels."""
    for name, p in context.network.named_parameters():
        role = context.graph.roles.get(name)
        units = None if role is None else context.graph.tensors[name][role.out_dim]
        if role is not None and units is not None:
            yield units, p.detach().movedim(role.out_dim, 0).flatten(1).double()
