"""MACs, paper FLOPs, parameters and activations of any width configuration, in closed form.

A cost term is a coefficient times the lengths of the channel vectors that multiply it. Because
every group occurs a fixed number of times in a vector, a vector's length is linear in the group
widths, and the cost of a configuration is a few integer products: exact, and no network is run.
A group of products (heads times head_dim) adds the product of its factors' widths to a length,
and the term becomes a sum of terms that have those widths as factors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import product
from math import prod
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lwdna.channels import Ids

TermKind = Literal["conv", "linear", "matmul", "norm", "relu", "params", "activations", "latency"]
METRICS = ("macs", "flops_paper", "params", "activations", "latency")
_IN_METRIC: dict[str, tuple[TermKind, ...]] = {
    "macs": ("conv", "linear", "matmul"),
    "flops_paper": ("conv", "linear", "norm", "relu"),
    "params": ("params",),
    "activations": ("activations",),
    "latency": ("latency",),
}


@dataclass(frozen=True)
class Cost:
    """Cost of one network on one input (batch size 1).

    Attributes:
        macs: multiply-accumulates of convolutions, linear layers and matrix products; half of
            what ``torch.utils.flop_counter`` reports.
        flops_paper: the paper's count: MACs of convolutions and linear layers without bias, plus
            2 per element of every affine batch norm's output, plus 1 per element of every ReLU,
            ReLU6, PReLU, LeakyReLU and ELU module object (counted once, at its last call).
        params: number of parameter entries; tied parameters count once.
        activations: elements in the outputs of all convolutions, linear layers and matrix
            products. Times the bytes per element, this is the memory that these outputs take;
            the attention scores count also where a fused kernel never stores them.
        latency: picoseconds of a forward pass as a :class:`lwdna.LatencyTable` predicts them, for
            the batch that it was measured with; 0 without a table.

    Source: torch.utils.flop_counter; the paper's count: the authors' counter
    (https://github.com/ofsoundof/dhp, restoration/model/flops_counter.py); activations:
    Radosavovic et al., "Designing Network Design Spaces", CVPR 2020, section 3
    (the outputs of convolutions), with linear layers and matrix products as in fvcore's activation
    count.
    """

    macs: int
    flops_paper: int
    params: int
    activations: int
    latency: int = 0

    def __getitem__(self, metric: str) -> int:
        if metric not in METRICS:
            raise KeyError(f"metric {metric!r}: one of {', '.join(METRICS)}")
        value: int = getattr(self, metric)
        return value

    def as_dict(self) -> dict[str, int]:
        """The figures by metric name; latency only where it is known."""
        known = {field.name: getattr(self, field.name) for field in fields(self)}
        if not self.latency:
            del known["latency"]
        return known


@dataclass(frozen=True)
class Term:
    """``coefficient`` times the product of the lengths of ``vectors``, spent at ``node``."""

    kind: TermKind
    coefficient: int
    vectors: tuple[Ids, ...]
    node: str


class CostModel:
    """Cost as a function of group widths.

    Args:
        terms: cost terms, with vectors of unit ids.
        group_of: group index of each unit, shape (units,).
        sizes: number of units of each group before any change, shape (groups,).
        products: group -> the groups its units are the products of; their own widths are not
            looked at.

    Attributes:
        counts: how often each unit of a group occurs in each distinct factor, (factors, groups).
        factors: for each monomial, the factors that multiply it, (monomials, most factors); -1
            for none.
        coefficients: coefficient of each monomial, (monomials,).
        term_of: the term it is part of, (monomials,); each term has one unless there are products.
        in_metric: 1 where a metric contains a monomial, (metrics, monomials).
    """

    def __init__(
        self,
        terms: Sequence[Term],
        group_of: NDArray[np.int64],
        sizes: Ids,
        products: Mapping[int, tuple[int, ...]] | None = None,
    ) -> None:
        self.terms = tuple(terms)
        lengths = _Lengths(group_of, sizes, products or {})
        coefficients, factors, term_of = [], [], []
        for t, term in enumerate(self.terms):
            for parts in product(*map(lengths, term.vectors)):
                coefficients.append(term.coefficient * prod(times for times, _ in parts))
                factors.append([row for _, rows in parts for row in rows])
                term_of.append(t)
        self.counts = np.array(lengths.counts, dtype=np.int64).reshape(-1, len(sizes))
        self.factors = np.full((len(factors), max([1, *map(len, factors)])), -1)
        for k, rows in enumerate(factors):
            self.factors[k, : len(rows)] = rows
        self.coefficients = np.array(coefficients, dtype=np.int64)
        self.term_of = np.array(term_of, dtype=np.int64)
        kinds = [self.terms[t].kind for t in term_of]
        self.in_metric = np.array(
            [[kind in _IN_METRIC[metric] for kind in kinds] for metric in METRICS], dtype=np.int64
        )

    def lengths(self, widths: Ids) -> Ids:
        """Value of every distinct factor, with a trailing 1 for absent factors."""
        return np.append(self.counts @ widths, 1)

    def per_monomial(self, widths: Ids) -> NDArray[np.int64]:
        """Value of every monomial, shape (monomials,), int64."""
        value: NDArray[np.int64] = self.coefficients * self.lengths(widths)[self.factors].prod(
            axis=1
        )
        return value

    def per_term(self, widths: Ids) -> NDArray[np.int64]:
        """Value of every term, shape (terms,), int64."""
        value = np.zeros(len(self.terms), dtype=np.int64)
        np.add.at(value, self.term_of, self.per_monomial(widths))
        return value

    def __call__(self, widths: Ids) -> Cost:
        """Cost at the given group widths, shape (groups,), int64."""
        return Cost(*(int(value) for value in self.in_metric @ self.per_monomial(widths)))


class _Lengths:
    """The length of a vector as a sum of products of linear factors, each factor kept once."""

    def __init__(
        self, group_of: NDArray[np.int64], sizes: Ids, products: Mapping[int, tuple[int, ...]]
    ) -> None:
        self._group_of, self._sizes, self._products = group_of, sizes, products
        self._rows: dict[bytes, int] = {}
        self._known: dict[bytes, list[tuple[int, tuple[int, ...]]]] = {}
        self.counts: list[NDArray[np.int64]] = []

    def __call__(self, vector: Ids) -> list[tuple[int, tuple[int, ...]]]:
        """(times, factors) of each summand, a factor being its row in ``counts``."""
        key = vector.tobytes()
        if key not in self._known:
            occurrences = np.bincount(self._group_of[vector], minlength=len(self._sizes))
            self._known[key] = self._summands(occurrences // self._sizes)
        return self._known[key]

    def _summands(self, counts: NDArray[np.int64]) -> list[tuple[int, tuple[int, ...]]]:
        found = []
        for group, factors in self._products.items():
            if counts[group]:
                rows = tuple(self._row(np.eye(1, len(counts), g, np.int64)[0]) for g in factors)
                found.append((int(counts[group]), rows))
                counts[group] = 0
        if counts.any() or not found:
            found.insert(0, (1, (self._row(counts),)))
        return found

    def _row(self, counts: NDArray[np.int64]) -> int:
        key = counts.tobytes()
        if key not in self._rows:
            self._rows[key] = len(self.counts)
            self.counts.append(counts)
        return self._rows[key]
