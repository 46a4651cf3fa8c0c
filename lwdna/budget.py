"""What the shrunk network may cost: limits, and whether any selection can meet them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import isfinite

import numpy as np

from lwdna.constraints import Constraints
from lwdna.cost import METRICS, Cost
from lwdna.errors import BudgetError, LatencyError
from lwdna.graph import ChannelGraph
from lwdna.width_rules import WidthRules, resolve

#: A float up to here is a fraction of the baseline; no widening reaches ten times its cost, and
#: no network costs ten MACs.
MOST_RELATIVE = 10

_TEXT = re.compile(
    r"(?P<number>(\d+\.?\d*|\.\d+)(e[+-]?\d{1,3})?)\s*(?P<unit>[kmgt%]?)", re.IGNORECASE
)
_TIME = re.compile(r"(?P<number>(\d+\.?\d*|\.\d+)(e[+-]?\d{1,3})?)\s*(?P<unit>s|ms|us|µs)")
_PICOSECONDS = {"s": 10**12, "ms": 10**9, "us": 10**6, "µs": 10**6}
_TIMES = '"12ms", "350us", "0.5s", "90%" (of the baseline), "0.9" (a fraction of it)'
_UNITS = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_FORMS = '"3.7G", "23.7M", "850K", "3.7e9", "90%" (of the baseline), "0.9" (a fraction of it)'


@dataclass(frozen=True)
class Budget:
    """The most that the shrunk network may cost; every metric that is given is a limit.

    A float up to 10 is a fraction of the baseline (1.0 is its own cost). An int, or a float above
    10, is an absolute figure. Text is read exactly, as a decimal: ``"90%"`` is a share of the
    baseline, ``"850K"``, ``"23.7M"``, ``"3.7G"`` and ``"1.2T"`` are absolute (powers of 1000, in
    either case), and a number without a unit means what the same number means without quotes.

    Attributes:
        macs: multiply-accumulates per input.
        params: parameter entries.
        flops_paper: the paper's count (see :class:`lwdna.cost.Cost`).
        activations: elements in the outputs of convolutions, linear layers and matrix products
            per input; a limit in bytes is this times the bytes per element.
        latency: seconds of a forward pass, as ``"12ms"``, ``"350us"`` or ``"0.5s"``, or a fraction
            of the baseline's; needs a table of :func:`lwdna.measure_latency`.

    Raises:
        TypeError: a limit is neither number nor text.
        ValueError: no limit is given, or one is not positive and finite, or unreadable text, or an
            int so small that a fraction must have been meant.

    Source: Li et al., "The Heterogeneity Hypothesis", CVPR 2021 (complexity is told as
    a share of the unwidened baseline's).

    >>> Budget(macs="90%", params=2_000_000).limits(Cost(1_000, 1_100, 4_000_000, 500))
    {'macs': 900, 'params': 2000000}
    """

    macs: float | str | None = None
    params: float | str | None = None
    flops_paper: float | str | None = None
    activations: float | str | None = None
    latency: float | str | None = None

    def __post_init__(self) -> None:
        if not self._given():
            raise ValueError(f"an empty budget: give at least one of {', '.join(METRICS)}")
        for metric, value in self._given().items():
            _parse(metric, value)

    def _given(self) -> dict[str, float | str]:
        values = {metric: getattr(self, metric) for metric in METRICS}
        return {metric: value for metric, value in values.items() if value is not None}

    @classmethod
    def of(cls, value: float | str | Budget) -> Budget:
        """A budget from its short form: a number or text limits ``macs``, a budget passes."""
        return value if isinstance(value, Budget) else cls(macs=value)

    def limits(self, baseline: Cost) -> dict[str, int]:
        """The limits as absolute figures, rounded down.

        Args:
            baseline: cost of the unwidened network, to which fractions refer.

        Returns:
            Metric name -> limit, for the metrics that are given; latency in picoseconds.

        Raises:
            LatencyError: latency is limited, and the baseline has none.
        """
        limits = {}
        for metric, value in self._given().items():
            if metric == "latency" and not baseline.latency:
                raise LatencyError(
                    f"budget latency={value!r}: nothing was measured; pass "
                    "latency=lwdna.measure_latency(model, example_inputs)"
                )
            amount, relative = _parse(metric, value)
            limits[metric] = int(amount * baseline[metric] if relative else amount)
        return limits


def _parse(metric: str, value: object) -> tuple[Fraction, bool]:
    """The exact decimal that was written, and whether it is a fraction of the baseline."""
    if isinstance(value, str):
        amount, relative, whole = _parse_text(metric, value)
    elif isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(
            f"budget {metric}={value!r}: a number or text such as '90%', not {type(value).__name__}"
        )
    elif not isfinite(value):
        raise ValueError(f"budget {metric}={value}: must be positive and finite")
    else:
        amount, whole = Fraction(str(value)), isinstance(value, (int, np.integer))
        relative = not whole and amount <= MOST_RELATIVE
    if amount <= 0:
        raise ValueError(f"budget {metric}={value}: must be positive and finite")
    if metric == "latency" and not relative:
        if not isinstance(value, str) or whole:
            raise ValueError(f"budget latency={value!r}: write seconds as text, {_TIMES}")
        return amount, False
    if whole and amount <= MOST_RELATIVE:
        raise ValueError(
            f"budget {metric}={value}: an int is an absolute figure; write {float(amount)} for a "
            "fraction of the baseline"
        )
    if not relative and amount < 1:
        raise ValueError(f"budget {metric}={value}: less than one; write it as {_FORMS}")
    return amount, relative


def _parse_text(metric: str, text: str) -> tuple[Fraction, bool, bool]:
    """(amount, whether relative, whether a bare int)."""
    if metric == "latency" and (time := _TIME.fullmatch(text.strip())) is not None:
        return Fraction(time["number"]) * _PICOSECONDS[time["unit"]], False, False
    found = _TEXT.fullmatch(text.strip())
    if found is None or (metric == "latency" and found["unit"] not in ("", "%")):
        forms = _TIMES if metric == "latency" else _FORMS
        raise ValueError(f"budget {metric}={text!r}: not a limit; write it as {forms}")
    number, unit = Fraction(found["number"]), found["unit"].lower()
    if unit == "%":
        return number / 100, True, False
    if unit:
        return number * _UNITS[unit], False, False
    whole = found["number"].isdigit()
    return number, not whole and number <= MOST_RELATIVE, whole


def cost_range(
    graph: ChannelGraph, constraints: Constraints | None = None
) -> dict[str, tuple[int, int]]:
    """The least and the most that a selection from this graph can cost.

    Needs no weights and no data: the graph is enough, as the analysis or
    :meth:`ChannelGraph.restrict` gives it.

    Args:
        graph: the (widened) channel graph.
        constraints: what the widths must obey; ``Constraints()`` by default.

    Returns:
        Metric name -> (least, most).

    Raises:
        ConstraintError: the constraints contradict one another or the graph.
    """
    return rules_range(graph, resolve(graph, constraints or Constraints()))


def rules_range(graph: ChannelGraph, rules: WidthRules) -> dict[str, tuple[int, int]]:
    """:func:`cost_range` of constraints that are resolved."""
    least, most = graph.cost_model(rules.least), graph.cost_model(rules.most)
    return {metric: (least[metric], figure) for metric, figure in most.as_dict().items()}


def check_attainable(
    limits: Mapping[str, int],
    ranges: dict[str, tuple[int, int]],
    baseline: Cost | None = None,
) -> None:
    """Refuse a budget that no selection can meet.

    Args:
        limits: metric name -> most that the result may cost.
        ranges: metric name -> (least, most); see :func:`cost_range`.
        baseline: cost of the unwidened network, to which the message's percentages refer.

    Raises:
        BudgetError: a limit is below the least, or every limit is above the most; carries
            ``ranges``.
        LatencyError: latency is limited, and no range of it is known.
    """

    def figure(metric: str, value: int) -> str:
        whole = 0 if baseline is None else baseline[metric]
        return f"{value:,} ({value / whole:.1%})" if whole else f"{value:,}"

    def statement(metric: str) -> str:
        least, most = (figure(metric, value) for value in ranges[metric])
        return f"{figure(metric, limits[metric])} {metric} wanted, {least} to {most} attainable"

    if "latency" in limits and "latency" not in ranges:
        raise LatencyError(
            "a limit of latency, and nothing was measured: LatencyTable.timed(gm, graph) gives the "
            "graph its latencies"
        )
    low = [metric for metric, limit in limits.items() if limit < ranges[metric][0]]
    if low:
        raise BudgetError(
            f"budget below the least that the floors allow: {'; '.join(map(statement, low))}. "
            "Raise the budget, or lower the floors, the divisor or the widening they refer to, "
            "or freeze less",
            ranges,
        )
    if all(limit > ranges[metric][1] for metric, limit in limits.items()):
        raise BudgetError(
            f"budget above what this network reaches: {'; '.join(map(statement, limits))}. Widen "
            "it more, raise max_growth, or lower the budget",
            ranges,
        )
