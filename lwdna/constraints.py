"""What the widths of a selection must obey: floors, caps, divisors, ties, frozen groups.

This module holds the statements; :mod:`lwdna.width_rules` works out what they mean for a graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from math import isfinite
from typing import Any

import numpy as np


def portion(fraction: float, whole: int) -> int:
    """``fraction * whole`` rounded down, for the decimal that was written (0.29 of 100 is 29)."""
    return int(Fraction(str(float(fraction))) * whole)


@dataclass(frozen=True)
class Floors:
    """The width that no group falls below.

    Attributes:
        fraction: of the group's current (widened) width.
        absolute: number of units (channels that move as one count once). Groups with fewer, before
            widening or by a cap, keep those: three heads may stay three.
        classifier: takes the place of ``fraction`` for groups that feed the classifier.
        overrides: ``fnmatch`` pattern of group names -> the floor of the matching groups, in place
            of all the above: a float is a fraction of the widened width, an int a number of units.
            The first pattern that matches a group counts.

    Raises:
        ValueError: a fraction outside [0, 1], or a number of units below 1.
        TypeError: ``absolute`` is no int, a fraction no number, or ``overrides`` no mapping.

    Source: options remain_percentage, linear_percentage and mc (4) of the released code
    (https://github.com/ofsoundof/Heterogeneity_Hypothesis, util/option_dhp.py).
    """

    fraction: float = 0.1
    absolute: int = 4
    classifier: float = 0.45
    overrides: Mapping[str, float | int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_fraction("fraction", self.fraction)
        _check_fraction("classifier", self.classifier)
        _check_units("absolute", self.absolute)
        if not isinstance(self.overrides, Mapping):
            raise TypeError(
                f"floors: overrides={self.overrides!r}: a mapping from pattern to floor"
            )
        for pattern, value in self.overrides.items():
            _check_pattern("floors: overrides", pattern)
            check = _check_units if _is_int(value) else _check_fraction
            check(f"overrides[{pattern!r}]", value)


@dataclass(frozen=True)
class Constraints:
    """What the widths of a selection must obey.

    Patterns are ``fnmatch`` patterns of group names (``lwdna.explain`` lists them); where a
    mapping has several patterns that match a group, the first one counts.

    Attributes:
        floors: least widths.
        divisor: widths are multiples of it: of one number, or pattern -> number (1 for groups that
            match nothing). Besides the multiples, a group may keep its baseline width or its whole
            current (widened) width, within its floor and cap, and floors are rounded up to the
            next such width.
        freeze: patterns of groups that keep their baseline width, neither widened nor shrunk.
            ``ChannelGraph.freeze`` before widening keeps also their units what they are.
        tie: entries of patterns; all groups that an entry matches keep equal widths. They need
            equal widths before; each keeps its own most salient units.
        max_growth: most width of a group as a multiple of its baseline (unwidened) width: one
            factor for all, or pattern -> factor (no cap for groups that match nothing). A factor
            below 1 forces groups to shrink.

    Raises:
        TypeError: an argument of another kind.
        ValueError: a divisor below 1, or a factor that is not positive and finite.
    """

    floors: Floors = field(default_factory=Floors)
    divisor: int | Mapping[str, int] = 1
    freeze: Sequence[str] = ()
    tie: Sequence[Sequence[str]] = ()
    max_growth: float | Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.floors, Floors):
            raise TypeError(
                f"floors is a {type(self.floors).__name__}: pass lwdna.Floors(fraction=...)"
            )
        _each_value("divisor", self.divisor, _check_divisor)
        if self.max_growth is not None:
            _each_value("max_growth", self.max_growth, _check_growth)
        _check_patterns("freeze", self.freeze)
        if isinstance(self.tie, str) or not isinstance(self.tie, Sequence):
            raise TypeError(f"tie={self.tie!r}: a sequence of entries, each a sequence of patterns")
        for k, entry in enumerate(self.tie):
            _check_patterns(f"tie[{k}]", entry)


def _is_int(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _check_fraction(name: str, value: object) -> None:
    if not isinstance(value, (int, float)):
        raise TypeError(f"floors: {name}={value!r}: a number from 0 to 1")
    if isinstance(value, bool) or not 0 <= value <= 1:
        raise ValueError(f"floors: {name}={value!r} must lie in [0, 1]")


def _check_units(name: str, value: Any) -> None:
    if not _is_int(value):
        raise TypeError(f"floors: {name}={value!r} must be an int")
    if value < 1:
        raise ValueError(f"floors: {name}={value}: a group needs one channel at least")


def _check_divisor(name: str, value: Any) -> None:
    if not _is_int(value) or value < 1:
        raise ValueError(f"{name}={value!r}: a positive int")


def _check_growth(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
        raise TypeError(f"{name}={value!r}: a factor of the baseline width")
    if not isfinite(value) or value <= 0:
        raise ValueError(f"{name}={value!r}: must be positive and finite")


def _each_value(name: str, value: object, check: Callable[[str, object], None]) -> None:
    if not isinstance(value, Mapping):
        check(name, value)
        return
    for pattern, one in value.items():
        _check_pattern(name, pattern)
        check(f"{name}[{pattern!r}]", one)


def _check_pattern(name: str, pattern: object) -> None:
    if not isinstance(pattern, str):
        raise TypeError(f"{name}: {pattern!r} is no pattern; patterns of group names are str")


def _check_patterns(name: str, patterns: object) -> None:
    if isinstance(patterns, str) or not isinstance(patterns, Sequence):
        raise TypeError(f"{name}={patterns!r}: a sequence of patterns, such as [{patterns!r}]")
    for pattern in patterns:
        _check_pattern(name, pattern)
