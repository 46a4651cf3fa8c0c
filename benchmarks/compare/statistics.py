"""Means of few runs, and how far they can be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log10, sqrt

import numpy as np
from scipy import stats

#: Of all intervals.
CONFIDENCE = 0.95
#: Errors below it count as it: there is no logarithm of none.
_LEAST_ERROR = 1e-6


@dataclass(frozen=True)
class Interval:
    """A mean and its interval.

    Attributes:
        mean: estimate.
        low: lower end; None where there are too few runs for an interval.
        high: upper end, either.
        runs: number of values.
    """

    mean: float
    low: float | None
    high: float | None
    runs: int


def interval(groups: Sequence[Sequence[float]]) -> Interval:
    """The mean of the groups' means, each group weighing the same.

    Of one group it is Student's interval. Of several, whose variances differ, the variance is the
    sum of the groups', with Satterthwaite's degrees of freedom: it speaks of these groups (network
    and data), and of other seeds.

    Args:
        groups: values of each group.

    Raises:
        ValueError: no group, or an empty one.

    Source: Student, "The Probable Error of a Mean", Biometrika 6, 1908; Satterthwaite, "An
        Approximate Distribution of Estimates of Variance Components", Biometrics Bulletin 2, 1946.
    """
    sizes = np.array([len(group) for group in groups])
    if not len(sizes) or not sizes.all():
        raise ValueError(f"an interval of groups of {sizes.tolist()} values")
    mean, runs = float(np.mean([np.mean(group) for group in groups])), int(sizes.sum())
    if (sizes < 2).any():
        return Interval(mean, None, None, runs)
    parts = np.array([np.var(group, ddof=1) for group in groups]) / sizes / len(groups) ** 2
    variance = float(parts.sum())
    if variance == 0:
        return Interval(mean, mean, mean, runs)
    freedom = variance**2 / float((parts**2 / (sizes - 1)).sum())
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom)) * sqrt(variance)
    return Interval(mean, mean - half, mean + half, runs)


def decibel(score: float, unit: str) -> float:
    """A score on one scale for all tasks: -10 log10 of the error.

    Of PSNR it is PSNR itself, up to a constant, since its error is the mean squared one; of an
    accuracy the error is the share of wrong answers. A tenth fewer errors are 0.46 dB.

    Args:
        score: in ``unit``.
        unit: ``"%"`` (right answers) or ``"dB"``.
    """
    if unit == "dB":
        return score
    return -10 * log10(max(1 - score / 100, _LEAST_ERROR))
