"""Arithmetic of copies: entries of a resized dimension, and units that are products of others.

``factors`` (units, R) says which units every unit is the product of, outermost axis first, -1
beyond the last and for a unit that is none; R is 0 where there are no products at all. A product
has as many copies as its factors have together, the copy of the innermost factor changing fastest.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from lwdna.channels import Ids

T = TypeVar("T", np.int64, np.float64)


def completed(copies: Ids, factors: Ids) -> Ids:
    """Copies with those of the products worked out from their factors.

    Args:
        copies: copies of each unit, shape (units,); those of products do not matter.
        factors: see the module, shape (units, R).
    """
    rows = np.flatnonzero(is_product(factors))
    if not len(rows):
        return copies
    result = copies.copy()
    result[rows] = np.where(factors[rows] >= 0, copies[factors[rows]], 1).prod(axis=1)
    return result


def is_product(factors: Ids) -> NDArray[np.bool_]:
    """Which units are products, shape (units,)."""
    mask: NDArray[np.bool_] = np.any(factors >= 0, axis=1)
    return mask


def gathered(sums: NDArray[T], factors: Ids) -> NDArray[T]:
    """Sums over the occurrences of each unit, with a product's occurrences counted as its factors'.

    A unit's occurrences are then those that go when it goes: a factor's score is what it would be
    if no other axis of its rectangles could change.

    Args:
        sums: what the occurrences of each unit add up to, shape (..., units).
        factors: see the module, shape (units, R).

    Returns:
        An array like ``sums``; the products keep their own.
    """
    result = sums.copy()
    for column in factors.T:
        rows = np.flatnonzero(column >= 0)
        np.add.at(result.T, column[rows], sums.T[rows])
    return result


def restricted(factors: Ids, copies: Ids) -> Ids:
    """The factors of the units of a resized network.

    Args:
        factors: see the module, shape (units, R).
        copies: copies of each unit, completed, shape (units,).

    Returns:
        Shape (new units, R): copies of a unit follow one another, in the order of the units.
    """
    if not factors.shape[1]:
        return np.zeros((int(copies.sum()), 0), dtype=np.int64)
    first = np.cumsum(copies) - copies
    origin = np.repeat(np.arange(len(copies)), copies)
    left = np.arange(len(origin)) - first[origin]  # number of the copy
    result = factors[origin]
    for k in reversed(range(factors.shape[1])):
        old = result[:, k]
        times = np.where(old >= 0, copies[old], 1)
        result[:, k] = np.where(old >= 0, first[old] + left % times, -1)
        left = left // times
    return result


class Resizing:
    """What becomes of channel vectors under copies, worked out once for equal vectors.

    Args:
        copies: copies of each unit, completed, shape (units,).
        factors: see the module, shape (units, R).
    """

    def __init__(self, copies: Ids, factors: Ids) -> None:
        self._copies, self._factors = copies, factors
        self._lengths: dict[bytes, int] = {}
        self._entries: dict[bytes, tuple[Ids, Ids] | None] = {}

    def length(self, vector: Ids) -> int:
        """New length of a dimension with this vector."""
        key = vector.tobytes()
        if key not in self._lengths:
            self._lengths[key] = int(self._copies[vector].sum())
        return self._lengths[key]

    def entries(self, vector: Ids) -> tuple[Ids, Ids] | None:
        """The :func:`entry_map` of a vector; None if it stays as it is."""
        key = vector.tobytes()
        if key not in self._entries:
            same = bool((self._copies[vector] == 1).all())
            known = None if same else entry_map(vector, self._copies, self._factors)
            self._entries[key] = known
        return self._entries[key]


def mapped(copies: Ids, factors: Ids) -> Callable[[Ids], Ids]:
    """Vector of a dimension -> vector of the resized dimension, in new units; with a memory."""
    first = np.cumsum(copies) - copies
    memo: dict[bytes, Ids] = {}

    def vector(old: Ids) -> Ids:
        key = old.tobytes()
        if key not in memo:
            entries, copy = entry_map(old, copies, factors)
            memo[key] = first[old[entries]] + copy
        return memo[key]

    return vector


def entry_map(vector: Ids, copies: Ids, factors: Ids | None = None) -> tuple[Ids, Ids]:
    """Which old entries a resized dimension consists of.

    Copies stand directly after the original run of equal entries, so that grouped, head-wise and
    interleaved layouts stay valid; copies of a factor stand after the run of its products.

    Args:
        vector: unit id of each entry, shape (n,).
        copies: copies of each unit, completed, shape (units,).
        factors: see the module, shape (units, R); no products by default.

    Returns:
        (old entry of each new entry, number of the copy it is), both of the new length.
    """
    times = copies[vector]
    if (times <= 1).all():
        kept = np.flatnonzero(times)
        return kept, np.zeros(len(kept), dtype=np.int64)
    nested = _nested(vector, factors)
    entries = np.arange(len(vector))
    number, stride = np.zeros_like(entries), np.ones_like(entries)
    for k in reversed(range(nested.shape[1])):
        outer = nested[entries, : k + 1]
        times = np.where(outer[:, k] >= 0, copies[outer[:, k]], 1)
        again, copy = _repeated_runs(outer, times)
        entries, number = entries[again], number[again] + copy * stride[again]
        stride = (stride * times)[again]
    return entries, number


def _nested(vector: Ids, factors: Ids | None) -> Ids:
    """The factors of each entry, outermost first, a unit that is no product being its only one."""
    if factors is None or not factors.size or not (factors[vector] >= 0).any():
        return vector[:, None]
    nested = factors[vector]
    plain = (nested < 0).all(axis=1)
    nested[plain, 0] = vector[plain]
    return nested


def _repeated_runs(labels: Ids, times: Ids) -> tuple[Ids, Ids]:
    """Every run of equal labels (n, k) repeated; (old entry, number of the repetition) of each."""
    starts = np.flatnonzero(np.append(True, (labels[1:] != labels[:-1]).any(axis=1))[: len(labels)])
    lengths = np.diff(np.append(starts, len(labels)))
    runs = np.repeat(np.arange(len(starts)), times[starts])
    number = np.arange(len(runs)) - np.searchsorted(runs, runs)  # 0 for the original run
    ends = np.cumsum(lengths[runs])
    within = np.arange(ends[-1] if len(ends) else 0) - np.repeat(
        ends - lengths[runs], lengths[runs]
    )
    return np.repeat(starts[runs], lengths[runs]) + within, np.repeat(number, lengths[runs])
