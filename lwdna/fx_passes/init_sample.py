"""Statistics of one tensor's entries, and the families of distributions that they fit."""

from __future__ import annotations

from dataclasses import dataclass
from math import erf, log, sqrt
from typing import Literal

import torch
from torch import Tensor

Family = Literal["uniform", "normal", "truncated", "orthogonal"]

#: Standard deviation of a normal law cut at two of its standard deviations, relative to the uncut.
CUT_STD = 0.8796256610342398
#: Largest entry and kurtosis, in units of the standard deviation.
REACH: dict[Family, float] = {"uniform": 3**0.5, "truncated": 2 / CUT_STD, "normal": float("inf")}
_KURTOSIS: dict[Family, float] = {"uniform": 1.8, "truncated": 2.3656, "normal": 3.0}

_SIGMAS = 5.0  # what chance may do: one in two million, and networks have some hundred tensors
_SLACK = 0.003  # relative; laws are written with a few digits
_TAIL = 1e-7  # chance that the largest of normal entries lies further out than allowed
_ENTRIES = 2**20
_STRAY = 2.0
_SHORT = 1e-4  # chance that no normal entry lies further out, below which the law is cut
_LOOKED_AT = 16  # rows that are checked for orthogonality
_ORTHOGONAL = 1e-4  # relative; random rows of n entries are off by 1/sqrt(n)


@dataclass(frozen=True)
class Sample:
    """Statistics of the entries of one tensor.

    Attributes:
        size: number of entries.
        mean: their mean.
        std: their standard deviation.
        largest: the largest absolute entry.
        families: the families that the entries fit; more than one if they are few.
    """

    size: int
    mean: float
    std: float
    largest: float
    families: frozenset[Family]

    @property
    def centred(self) -> bool:
        """Whether chance explains that the mean is not 0."""
        return abs(self.mean) <= _SIGMAS * self.std / sqrt(self.size)

    def tolerance(self, family: Family) -> float:
        """Relative deviation of the standard deviation that chance explains."""
        if family == "orthogonal":
            return _SLACK
        return _deviation(family, self.size)


def _deviation(family: Family, size: int) -> float:
    return _SIGMAS * 0.5 * sqrt((_KURTOSIS[family] - 1) / size) + _SLACK


def sample(tensor: Tensor) -> Sample:
    """Statistics of a tensor (any shape, floating point, at least one entry)."""
    values = _entries(tensor)
    size, mean = len(values), float(values.mean())
    if size == 1:  # no spread to be read: its size stands for it
        return Sample(1, 0.0, abs(mean), abs(mean), frozenset(("uniform", "normal")))
    if orthogonal(tensor):
        std = float(values.square().mean().sqrt())
        return Sample(size, 0.0, std, float(values.abs().max()), frozenset(("orthogonal",)))
    centred = values - mean
    std, reach = float(centred.square().mean().sqrt()), float(centred.abs().max())
    kurtosis = float(centred.pow(4).mean()) / std**4
    families = _families(size, reach / std, kurtosis)
    return Sample(size, mean, std, float(values.abs().max()), families)


def _entries(tensor: Tensor) -> Tensor:
    """The entries, float64; every k-th of a large tensor."""
    flat = tensor.detach().flatten()
    values = flat[:: -(-len(flat) // _ENTRIES)].double()
    # torch.nn.init.trunc_normal_ draws its default cut, ±2, once in 2**24 float32 entries,
    # whatever the standard deviation: 100 of them at 0.02.
    stray = values.abs() == _STRAY
    if bool(stray.any()) and float(values[~stray].abs().max()) < _STRAY / 4:
        values = values[~stray]
    return values


def _families(size: int, reach: float, kurtosis: float) -> frozenset[Family]:
    fits: list[Family] = []
    for family, expected in _KURTOSIS.items():
        bound = REACH[family] * (1 + _deviation(family, size))
        if family == "normal":
            bound = sqrt(2 * log(size / _TAIL))
        spread = _SIGMAS * sqrt(24 / size) + _SLACK
        if reach <= bound and abs(kurtosis - expected) <= spread:
            fits.append(family)
    if "truncated" in fits and erf(reach / sqrt(2)) ** size < _SHORT:
        fits = [family for family in fits if family != "normal"]
    return frozenset(fits)


def orthogonal(tensor: Tensor) -> bool:
    """Whether the rows of the matrix (its columns, if fewer) are orthogonal and of one length."""
    if tensor.dim() < 2:
        return False
    matrix = tensor.detach().flatten(1)
    rows = (matrix if len(matrix) <= matrix.shape[1] else matrix.T)[:_LOOKED_AT].double()
    if len(rows) < 2:
        return False
    products = rows @ rows.T
    square = products[0, 0]
    off = products - square * torch.eye(len(rows)).to(products)
    return bool(off.abs().max() < _ORTHOGONAL * square)
