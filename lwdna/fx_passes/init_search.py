"""The fewest initialisation laws that explain all tensors of a network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lwdna.fx_passes.init_sample import CUT_STD, REACH, Family, Sample

Scale = Literal["fan_in", "fan_out", "fan_group", "fan_avg", "fan_max", "fixed"]
Floats = NDArray[np.float64]

#: The usual initialisations as (family, scale, Var · fan): torch's default uniform 1/3, LeCun and
#: Xavier 1, He 2, timm's routing layers 1/6. Of laws that explain equally much, the first wins.
_USUAL: tuple[tuple[Family, Scale, float], ...] = (
    ("uniform", "fan_in", 1 / 3),
    ("normal", "fan_in", 2.0),
    ("truncated", "fan_in", 2.0),
    ("uniform", "fan_in", 2.0),
    ("normal", "fan_in", 1.0),
    ("truncated", "fan_in", 1.0),
    ("uniform", "fan_in", 1.0),
    ("normal", "fan_out", 2.0),
    ("truncated", "fan_out", 2.0),
    ("uniform", "fan_out", 2.0),
    ("uniform", "fan_out", 1 / 3),
    ("normal", "fan_out", 1.0),
    ("uniform", "fan_out", 1.0),
    ("normal", "fan_group", 2.0),
    ("truncated", "fan_group", 2.0),
    ("normal", "fan_group", 1.0),
    ("uniform", "fan_avg", 1.0),
    ("normal", "fan_avg", 1.0),
    ("truncated", "fan_avg", 1.0),
    ("uniform", "fan_avg", 1 / 6),
    ("orthogonal", "fan_max", 1.0),
    ("orthogonal", "fan_max", 2.0),
)
_FAMILIES: tuple[Family, ...] = ("normal", "uniform", "truncated", "orthogonal")
_SCALES: tuple[Scale, ...] = ("fixed", "fan_in", "fan_out", "fan_group", "fan_avg", "fan_max")
_GRID = 0.01  # suggested gains are tried in steps of this, on the logarithmic scale
_TELLING = 0.3  # a deviation known less exactly than this may be near any digit
_ROUNDING = 1e-3  # a drawn entry exceeds the bound of its law by no more, relative


@dataclass(frozen=True)
class Found:
    """The law of one tensor: family, fan, standard deviation; whether it is a usual one."""

    family: Family
    scale: Scale
    std: float
    usual: bool


@dataclass(frozen=True)
class _Hypothesis:
    """A law (``Var = gain / fan``) and which tensors it explains, shape (tensors,)."""

    family: Family
    scale: Scale
    gain: float
    usual: bool
    explains: NDArray[np.bool_]


def search(samples: Sequence[Sample], fans: Mapping[Scale, Floats]) -> list[Found]:
    """Take the law that explains the most tensors, then the next among the others, and so on.

    Args:
        samples: statistics of each tensor, with a mean that may be 0 and at least one family.
        fans: scale -> fan of each tensor, shape (tensors,), NaN for tensors without.

    Returns:
        The law of each tensor, in order; in the worst case its own standard deviation, fixed.
    """
    hypotheses = list(_hypotheses(samples, fans))
    explains = np.array([h.explains for h in hypotheses])
    counts = explains.sum(axis=1)
    left = np.ones(len(samples), dtype=bool)
    found: dict[int, Found] = {}
    while left.any():
        best = int(counts.argmax())
        members = np.flatnonzero(explains[best] & left)
        found |= _adopt(hypotheses[best], members, samples, fans)
        left[members] = False
        counts = counts - explains[:, members].sum(axis=1)
    return [found[i] for i in range(len(samples))]


def _hypotheses(samples: Sequence[Sample], fans: Mapping[Scale, Floats]) -> Iterator[_Hypothesis]:
    """The usual laws, then those that the tensors suggest: the Var · fan of each as a gain."""
    std = np.array([s.std for s in samples])
    largest = np.array([s.largest for s in samples])
    fits = {f: np.array([f in s.families for s in samples]) for f in _FAMILIES}
    slack = {f: np.array([s.tolerance(f) for s in samples]) for f in _FAMILIES}

    def explains(
        family: Family, scale: Scale, gain: float, extra: float, *, bounded: bool
    ) -> NDArray[np.bool_]:
        expected = np.sqrt(gain / fans[scale])  # comparisons with NaN are false
        result: NDArray[np.bool_] = fits[family] & (
            np.abs(np.log(std / expected)) <= slack[family] + extra
        )
        if bounded:
            result &= largest <= REACH.get(family, np.inf) * expected * (1 + extra + _ROUNDING)
        return result

    for family, scale, gain in _USUAL:
        told = explains(family, scale, gain, 0.0, bounded=True)
        yield _Hypothesis(family, scale, gain, True, told)
    for scale in _SCALES:
        for family in _FAMILIES:
            gains = (std**2 * fans[scale])[fits[family] & ~np.isnan(fans[scale])]
            for step in np.unique(np.round(np.log(gains) / _GRID)):
                gain = float(np.exp(step * _GRID))
                # A tensor's own deviation, fixed, explains it in any case.
                told = explains(family, scale, gain, _GRID, bounded=scale != "fixed")
                yield _Hypothesis(family, scale, gain, False, told)


def _adopt(
    h: _Hypothesis,
    members: NDArray[np.int64],
    samples: Sequence[Sample],
    fans: Mapping[Scale, Floats],
) -> dict[int, Found]:
    """The law at the fan of each member; a suggested gain becomes the members' common one."""
    fan = fans[h.scale][members]
    own = [samples[i] for i in members]
    gain, usual = h.gain, h.usual
    if not usual:
        gain = float(
            np.average(
                [s.std**2 * size for s, size in zip(own, fan, strict=True)],
                weights=[s.size for s in own],
            )
        )
        several = len(set(fan.tolist())) > 2  # three fans agree: a gain of this network's own
        usual = several or (h.scale == "fixed" and _round(gain**0.5, h.family, own))
    return {
        int(i): Found(h.family, h.scale, float((gain / size) ** 0.5), usual)
        for i, size in zip(members, fan, strict=True)
    }


def _round(std: float, family: Family, own: list[Sample]) -> bool:
    """Whether a standard deviation is one that people write: a single digit."""
    written = std / CUT_STD if family == "truncated" else std
    tolerance = min(s.tolerance(family) for s in own)
    return tolerance < _TELLING and abs(written / float(f"{written:.0e}") - 1) <= tolerance
