"""Named criteria: what a channel is worth. All answer one question, units -> float."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from lwdna.errors import ScoringError
from lwdna.graph import ChannelGraph
from lwdna.scoring.context import ScoringContext, preserved

Saliency = NDArray[np.float64]
Criterion = Callable[[ScoringContext], Saliency]
#: A criterion that may have options besides.
F = TypeVar("F", bound=Callable[..., Saliency])

_CRITERIA: dict[str, Callable[..., Saliency]] = {}
_WITHOUT_DATA: set[str] = set()


def criterion(name: str, *, data: bool = True) -> Callable[[F], F]:
    """Register a criterion under ``name`` (decorator).

    Args:
        name: what users pass as ``criterion=``.
        data: whether it looks at the batches.

    Raises:
        ValueError: the name is taken.

    >>> @criterion("first-come")
    ... def first_come(context):
    ...     return -np.arange(context.graph.units, dtype=float)
    """

    def register(function: F) -> F:
        if name in _CRITERIA:
            raise ValueError(f"criterion {name!r} is registered already; choose another name")
        _CRITERIA[name] = function
        if not data:
            _WITHOUT_DATA.add(name)
        return function

    return register


def criteria() -> tuple[str, ...]:
    """Names of the registered criteria, in order of registration."""
    return tuple(_CRITERIA)


@dataclass(frozen=True)
class NamedCriterion:
    """A criterion with its options; what :func:`get` returns.

    Attributes:
        name: as registered, or a callable's own name.
        options: keyword arguments beside the context.
        function: what is called.
    """

    name: str
    options: Mapping[str, Any]
    function: Callable[..., Saliency]

    @property
    def data(self) -> bool:
        """Whether it looks at the batches; of a callable that is not registered nobody knows."""
        return self.name not in _WITHOUT_DATA

    def __call__(self, context: ScoringContext) -> Saliency:
        """Score ``context``."""
        return self.function(context, **self.options)

    def __str__(self) -> str:
        """``name(option=value, ...)``."""
        options = ", ".join(f"{key}={value!r}" for key, value in self.options.items())
        return f"{self.name}({options})" if options else self.name


def get(name: str | Criterion, **options: Any) -> NamedCriterion:
    """The criterion of that name, with options; a callable passes.

    Args:
        name: a registered name (:func:`criteria`) or a callable.
        options: keyword arguments of the criterion, e.g. ``normalize=False``.

    Raises:
        ValueError: no criterion has the name.
        TypeError: neither a name nor a callable, or the criterion has no such option.

    >>> str(get("latent-grad", normalize=False))
    'latent-grad(normalize=False)'
    """
    if isinstance(name, NamedCriterion):
        return replace(
            name, options={**name.options, **_checked(name.function, name.name, options)}
        )
    if callable(name):
        own = getattr(name, "__name__", "custom")
        return NamedCriterion(own, _checked(name, own, options), name)
    if not isinstance(name, str):
        raise TypeError(f"criterion {name!r}: a name or a callable, not {type(name).__name__}")
    if name not in _CRITERIA:
        raise ValueError(f"criterion {name!r}: one of {', '.join(_CRITERIA)}, or a callable")
    function = _CRITERIA[name]
    return NamedCriterion(name, _checked(function, name, options), function)


def _checked(function: Callable[..., Any], name: str, options: dict[str, Any]) -> dict[str, Any]:
    if not options:
        return options
    parameters = list(inspect.signature(function).parameters.values())[1:]
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return options
    known = [p.name for p in parameters]
    unknown = [option for option in options if option not in known]
    if unknown:
        raise TypeError(
            f"criterion {name!r} has no option {', '.join(map(repr, unknown))}; it has "
            f"{', '.join(map(repr, known)) or 'none'}"
        )
    return options


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
    label, ranks = function.name, context.ranks
    with ranks.guard():
        if context.device.type == "meta":
            raise ScoringError(
                "the network is on the meta device, and scores need values: build it on another one"
            )
        ranks.agree(
            {
                "criterion": str(function),
                "number of batches": len(context.batches),
                "scoring": repr(context.options),
                "channel units": context.graph.units,
            }
        )
        with preserved(context.network, context.seed):
            result = np.asarray(function(context))
        if result.shape != (context.graph.units,) or result.dtype.kind not in "fiu":
            raise ScoringError(
                f"criterion {label!r} returned shape {result.shape} of {result.dtype}; it must "
                f"return one number per unit, shape ({context.graph.units},)"
            )
        saliency = result.astype(np.float64)
        _check_finite(context.graph, saliency, label)
        ranks.broadcast_([torch.from_numpy(saliency)])  # the same on every rank, to the last bit
    _warn_of_zeros(context.graph, saliency, label)
    return saliency


def _check_finite(graph: ChannelGraph, saliency: Saliency, label: str) -> None:
    bad = np.unique(graph.group_of[~np.isfinite(saliency)])
    if len(bad):
        first = sorted((graph.groups[g] for g in bad), key=lambda group: not group.prunable)[:5]
        names = ", ".join(repr(group.name) for group in first)
        raise ScoringError(
            f"criterion {label!r} gives NaN or infinite saliencies in {len(bad)} of the "
            f"{len(graph.groups)} channel groups ({names}{', ...' if len(bad) > 5 else ''}): check "
            "the scale of the inputs and the loss, or score with another criterion"
        )


def _warn_of_zeros(graph: ChannelGraph, saliency: Saliency, label: str) -> None:
    names = [g.name for g in graph.groups if g.prunable and not saliency[g.units].any()]
    if names:
        more = ", ..." if len(names) > 5 else ""
        warnings.warn(
            f"criterion {label!r} gives zero to all channels of {len(names)} groups "
            f"({', '.join(names[:5])}{more}); a budget will shrink them to their floors. Score "
            "with 'magnitude', 'random' or 'uniform' if that is not meant",
            stacklevel=3,
        )
