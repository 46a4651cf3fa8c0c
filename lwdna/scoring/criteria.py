"""Named criteria: what a channel is worth. All answer one question, units -> float."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lwdna.errors import ScoringError
from lwdna.scoring.context import ScoringContext, preserved

Saliency = NDArray[np.float64]
Criterion = Callable[[ScoringContext], Saliency]

_CRITERIA: dict[str, Criterion] = {}


def criterion(name: str) -> Callable[[Criterion], Criterion]:
    """Register a criterion under ``name`` (decorator).

    Args:
        name: what users pass as ``criterion=``.

    Raises:
        ValueError: the name is taken.

    >>> @criterion("first-come")
    ... def first_come(context):
    ...     return -np.arange(context.graph.units, dtype=float)
    """

    def register(function: Criterion) -> Criterion:
        if name in _CRITERIA:
            raise ValueError(f"criterion {name!r} is registered already; choose another name")
        _CRITERIA[name] = function
        return function

    return register


def criteria() -> tuple[str, ...]:
    """Names of the registered criteria, in order of registration."""
    return tuple(_CRITERIA)


def get(name: str | Criterion) -> Criterion:
    """The criterion of that name; a callable passes.

    Raises:
        ValueError: no criterion has the name.
        TypeError: neither a name nor a callable.
    """
    if callable(name):
        return name
    if not isinstance(name, str):
        raise TypeError(f"criterion {name!r}: a name or a callable, not {type(name).__name__}")
    if name not in _CRITERIA:
        raise ValueError(f"criterion {name!r}: one of {', '.join(_CRITERIA)}, or a callable")
    return _CRITERIA[name]


def score(context: ScoringContext, name: str | Criterion = "latent-grad") -> Saliency:
    """Saliency of every channel unit by one criterion; the network stays as it was.

    Args:
        context: network, graph, batches, loss and seed.
        name: a registered criterion, or a callable of the same signature.

    Returns:
        Saliency, shape (units,), float64, finite.

    Raises:
        ScoringError: the criterion cannot score, changes a parameter, or returns something else
            than one finite number per unit.
    """
    function = get(name)
    with preserved(context.network, context.seed):
        result = np.asarray(function(context))
    label = name if isinstance(name, str) else getattr(name, "__name__", repr(name))
    if result.shape != (context.graph.units,) or result.dtype.kind not in "fiu":
        raise ScoringError(
            f"criterion {label!r} returned shape {result.shape} of {result.dtype}; it must return "
            f"one number per unit, shape ({context.graph.units},)"
        )
    if not np.isfinite(result).all():
        raise ScoringError(f"criterion {label!r} returned NaN or infinite saliencies")
    return result.astype(np.float64)


@criterion("magnitude")
def magnitude(context: ScoringContext) -> Saliency:
    """L2 norm of the filters that produce a unit.

    ``sqrt(mean over the filters of the unit of ‖W[filter]‖²)``, where a filter is one index of the
    output dimension of a convolution's or linear layer's weight, and a coupled unit has one in
    every layer of its stage. A unit that no layer produces scores 0.

    Source: Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017, with L2 for L1.
    """
    graph = context.graph
    squares, filters = np.zeros(graph.units), np.zeros(graph.units)
    for name, p in context.network.named_parameters():
        role = graph.roles.get(name)
        units = None if role is None else graph.tensors[name][role.out_dim]
        if role is None or units is None:
            continue
        norms = _squared_norms(p.detach(), role.out_dim)
        np.add.at(squares, units, norms)
        np.add.at(filters, units, 1.0)
    result: Saliency = np.sqrt(squares / np.maximum(filters, 1.0))
    return result


def _squared_norms(w: Tensor, dim: int) -> Saliency:
    """Squared L2 norm of every slice along ``dim``, shape (w.shape[dim],), float64."""
    norms: Saliency = w.movedim(dim, 0).flatten(1).double().square().sum(1).cpu().numpy()
    return norms


@criterion("random")
def random(context: ScoringContext) -> Saliency:
    """Uniform random numbers from the seed; a baseline of every comparison (METHOD §2).

    Source: Li et al., "Revisiting Random Channel Pruning", CVPR 2022.
    """
    draws = torch.rand(context.graph.units, generator=context.generator(), dtype=torch.float64)
    result: Saliency = draws.numpy()
    return result


@criterion("uniform")
def uniform(context: ScoringContext) -> Saliency:
    """Scores by which one global threshold keeps the same fraction of every group.

    The i-th of a group's n units scores ``1 - (i + 0.5) / n``.
    """
    result = np.zeros(context.graph.units)
    for group in context.graph.groups:
        result[group.units] = 1.0 - (np.arange(group.width) + 0.5) / group.width
    return result
