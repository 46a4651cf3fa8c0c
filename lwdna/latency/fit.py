"""From measured seconds at several widths to a model of each operator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median

import numpy as np
from numpy.typing import NDArray

from lwdna.latency.table import OperatorLatency

#: Shortest time that is told apart from none, in seconds.
_LEAST = 1e-9

#: Elements written and read, multiply-accumulates.
Amounts = tuple[float, float, float]


def fit_operator(amounts: Sequence[Amounts], seconds: Sequence[float]) -> OperatorLatency:
    """The parts of an operator's seconds that its widths change, and the part that they do not.

    Args:
        amounts: (written, read, macs) of the operator at each measured configuration.
        seconds: what it took there.
    """
    ones = np.ones((len(amounts), 1))
    return OperatorLatency(*_fit(np.hstack([ones, np.array(amounts, dtype=np.float64)]), seconds))


def without_overhead(
    operators: Mapping[str, OperatorLatency],
    found: Sequence[Mapping[str, Amounts]],
    totals: Sequence[float],
) -> dict[str, OperatorLatency]:
    """The operators with as much of their fixed parts as the whole network's seconds bear out.

    To take the time of every node takes time, the same at all widths.

    Args:
        operators: as fitted to each node's seconds.
        found: (written, read, macs) by operator, at each measured configuration.
        totals: what the network took there as a whole.
    """
    fixed = sum(operator.fixed for operator in operators.values())
    parts = [(fixed, predicted_seconds(operators, f) - fixed) for f in found]
    of_fixed, of_others = _fit(np.array(parts), totals)
    share = min(1.0, of_fixed / of_others) if of_others else 1.0
    return {name: replace(o, fixed=share * o.fixed) for name, o in operators.items()}


def _fit(parts: NDArray[np.float64], seconds: Sequence[float]) -> list[float]:
    """Non-negative least squares of relative errors: the factor of each column of ``parts``.

    Source: Lawson and Hanson, "Solving Least Squares Problems", chapter 23 (as
    ``scipy.optimize.nnls``).
    """
    from scipy.optimize import nnls  # a third of a second, which only measuring should take

    y = np.maximum(np.array(seconds, dtype=np.float64), _LEAST)
    scale = parts.max(axis=0)
    scale[scale == 0] = 1.0
    solution, _ = nnls(parts / scale / y[:, None], np.ones(len(y)))
    return [float(v) for v in solution / scale]


def fit_scale(predicted: Sequence[float], measured: Sequence[float]) -> float:
    """What the sum over operators is multiplied with to give the whole network's seconds."""
    return median(m / p for m, p in zip(measured, predicted, strict=True))


def spread(predicted: Sequence[float], measured: Sequence[float]) -> float:
    """Largest relative error of a prediction."""
    return float(np.abs(np.array(predicted) / np.array(measured) - 1).max())


def predicted_seconds(
    operators: Mapping[str, OperatorLatency], amounts: Mapping[str, Amounts]
) -> float:
    """Sum of the operators' seconds for their (written, read, macs)."""
    return sum(operators[name].seconds(*found) for name, found in amounts.items())
