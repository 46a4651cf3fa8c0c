"""Select: saliency + budget + floors + divisor -> which channels stay.

One threshold over the saliencies of all channels, a floor per group, never above the budget, and
what the threshold leaves over is given back. The search is exact: channels are sorted once and
the threshold is bisected with the closed-form cost.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import isfinite

import numpy as np

from lwdna.channels import Ids
from lwdna.cost import METRICS, Cost
from lwdna.errors import BudgetError
from lwdna.graph import ChannelGraph

#: A float up to here is a fraction of the baseline; no widening reaches ten times its cost, and
#: no network costs ten MACs.
MOST_RELATIVE = 10


@dataclass(frozen=True)
class Budget:
    """The most that the shrunk network may cost; every metric that is given is a limit.

    A float up to 10 is a fraction of the baseline (1.0 is its own cost). An int, or a float above
    10, is an absolute figure.

    Attributes:
        macs: multiply-accumulates per input.
        params: parameter entries.
        flops_paper: the paper's count (see :class:`lwdna.cost.Cost`).

    Raises:
        TypeError: a limit is no number.
        ValueError: no limit is given, or one is not positive and finite, or an int so small that
            a fraction must have been meant.

    Source: METHOD §3 (budgets are stated against the unwidened network).

    >>> Budget(macs=0.9, params=2_000_000).limits(Cost(1_000, 1_100, 4_000_000))
    {'macs': 900, 'params': 2000000}
    """

    macs: float | None = None
    params: float | None = None
    flops_paper: float | None = None

    def __post_init__(self) -> None:
        if not self._given():
            raise ValueError(f"an empty budget: give at least one of {', '.join(METRICS)}")
        for metric, value in self._given().items():
            if isinstance(value, bool) or not isinstance(
                value, (int, float, np.integer, np.floating)
            ):
                raise TypeError(f"budget {metric}={value!r}: a number, not {type(value).__name__}")
            if not (isfinite(value) and value > 0):
                raise ValueError(f"budget {metric}={value}: must be positive and finite")
            if value <= MOST_RELATIVE and isinstance(value, (int, np.integer)):
                raise ValueError(
                    f"budget {metric}={value}: an int is an absolute figure; write "
                    f"{float(value)} for a fraction of the baseline"
                )

    def _given(self) -> dict[str, float]:
        values = {metric: getattr(self, metric) for metric in METRICS}
        return {metric: value for metric, value in values.items() if value is not None}

    @classmethod
    def of(cls, value: float | Budget) -> Budget:
        """A budget from its short form: a number is a limit on ``macs``, a budget passes."""
        return value if isinstance(value, Budget) else cls(macs=value)

    def limits(self, baseline: Cost) -> dict[str, int]:
        """The limits as absolute figures, rounded down.

        Args:
            baseline: cost of the unwidened network, to which fractions refer.

        Returns:
            Metric name -> limit, for the metrics that are given.
        """
        return {
            metric: _portion(value, baseline[metric]) if value <= MOST_RELATIVE else int(value)
            for metric, value in self._given().items()
        }


@dataclass(frozen=True)
class Floors:
    """The width that no group falls below.

    Attributes:
        fraction: of the group's current (widened) width.
        absolute: number of units (channels that move as one count once). Groups of fewer stay
            whole.
        classifier: takes the place of ``fraction`` for groups that feed the classifier.

    Raises:
        ValueError: a fraction outside [0, 1], or ``absolute`` below 1.
        TypeError: ``absolute`` is no int, or a fraction no number.

    Source: METHOD §3 (remain_percentage, linear_percentage, absolute minimum of 4).
    """

    fraction: float = 0.1
    absolute: int = 4
    classifier: float = 0.45

    def __post_init__(self) -> None:
        for name in ("fraction", "classifier"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)):
                raise TypeError(f"floors: {name}={value!r}: a number from 0 to 1")
            if isinstance(value, bool) or not 0 <= value <= 1:
                raise ValueError(f"floors: {name}={value!r} must lie in [0, 1]")
        if isinstance(self.absolute, bool) or not isinstance(self.absolute, (int, np.integer)):
            raise TypeError(f"floors: absolute={self.absolute!r} must be an int")
        if self.absolute < 1:
            raise ValueError(
                f"floors: absolute={self.absolute}: a group needs one channel at least"
            )

    def widths(self, graph: ChannelGraph) -> Ids:
        """Least width of each group, shape (groups,), int64; a fixed group's is its width."""
        least = [
            max(_portion(self.classifier if g.feeds_classifier else self.fraction, g.width), 1)
            for g in graph.groups
        ]
        floor = np.minimum(np.maximum(least, self.absolute), graph.widths)
        return np.where(graph.prunable, floor, graph.widths).astype(np.int64)


def attainable(
    graph: ChannelGraph, floors: Floors | None = None, divisor: int = 1
) -> dict[str, tuple[int, int]]:
    """The least and the most that a selection from this graph can cost.

    Args:
        graph: the (widened) channel graph.
        floors: least widths; ``Floors()`` by default.
        divisor: widths are multiples of it; see :func:`select`.

    Returns:
        Metric name -> (least, most).
    """
    least = graph.cost_model(least_widths(graph, floors or Floors(), _checked_divisor(divisor)))
    most = graph.cost()
    return {metric: (least[metric], most[metric]) for metric in METRICS}


def check_attainable(
    limits: Mapping[str, int],
    ranges: dict[str, tuple[int, int]],
    baseline: Cost | None = None,
) -> None:
    """Refuse a budget that no selection can meet.

    Args:
        limits: metric name -> most that the result may cost.
        ranges: metric name -> (least, most); see :func:`attainable`.
        baseline: cost of the unwidened network, to which the message's percentages refer.

    Raises:
        BudgetError: a limit is below the least, or every limit is above the most; carries
            ``ranges``.
    """

    def figure(metric: str, value: int) -> str:
        return f"{value:,}" if baseline is None else f"{value:,} ({value / baseline[metric]:.1%})"

    def statement(metric: str) -> str:
        least, most = (figure(metric, value) for value in ranges[metric])
        return f"{figure(metric, limits[metric])} {metric} wanted, {least} to {most} attainable"

    for metric, limit in limits.items():
        if limit < ranges[metric][0]:
            raise BudgetError(
                f"budget below the least that the floors allow: {statement(metric)}. Raise the "
                "budget, or lower the floors, the divisor or the widening they refer to",
                ranges,
            )
    if all(limit > ranges[metric][1] for metric, limit in limits.items()):
        raise BudgetError(
            f"budget above what this network reaches: {'; '.join(map(statement, limits))}. Widen "
            "it more, or lower the budget",
            ranges,
        )


def _portion(fraction: float, whole: int) -> int:
    """``fraction * whole`` rounded down, for the decimal that was written (0.29 of 100 is 29)."""
    return int(Fraction(str(float(fraction))) * whole)


def least_widths(graph: ChannelGraph, floors: Floors, divisor: int) -> Ids:
    """Least width of each group, shape (groups,): the floors, rounded up to the divisor."""
    rounded = -(-floors.widths(graph) // divisor) * divisor
    least: Ids = np.where(graph.prunable, np.minimum(rounded, graph.widths), graph.widths)
    return least


def _checked_divisor(divisor: int) -> int:
    if isinstance(divisor, bool) or not isinstance(divisor, (int, np.integer)) or divisor < 1:
        raise ValueError(f"divisor={divisor!r}: a positive int")
    return int(divisor)
