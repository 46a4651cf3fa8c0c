"""From measured seconds at several widths to a model of each operator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from lwdna.latency.table import OperatorLatency

#: Shortest time that is told apart from none, in seconds.
_LEAST = 1e-9


def fit_operator(
    amounts: Sequence[tuple[float, float, float]], seconds: Sequence[float]
) -> OperatorLatency:
    """Non-negative least squares of relative errors.

    Args:
        amounts: (written, read, macs) of the operator at each measured configuration.
        seconds: what it took there.

    Source: Lawson and Hanson, "Solving Least Squares Problems", chapter 23 (as
    ``scipy.optimize.nnls``).
    """
    from scipy.optimize import nnls  # a third of a second, which only measuring should take

    y = np.maximum(np.array(seconds, dtype=np.float64), _LEAST)
    x = np.column_stack([np.ones(len(y)), np.array(amounts, dtype=np.float64)])
    scale = np.maximum(x.max(axis=0), 1.0)
    solution, _ = nnls(x / scale / y[:, None], np.ones(len(y)))
    fixed, written, read, macs = (float(v) for v in solution / scale)
    return OperatorLatency(fixed, written, read, macs)


def fit_scale(predicted: Sequence[float], measured: Sequence[float]) -> float:
    """What the sum over operators is multiplied with to give the whole network's seconds."""
    ratios: NDArray[np.float64] = np.array(measured) / np.array(predicted)
    return float(np.median(ratios))


def spread(predicted: Sequence[float], measured: Sequence[float]) -> float:
    """Largest relative error of a prediction."""
    return float(np.abs(np.array(predicted) / np.array(measured) - 1).max())


def predicted_seconds(
    operators: Mapping[str, OperatorLatency], amounts: Mapping[str, tuple[float, float, float]]
) -> float:
    """Sum of the operators' seconds for their (written, read, macs)."""
    return sum(operators[name].seconds(*found) for name, found in amounts.items())
