"""MACs, paper FLOPs, parameters and activations of any width configuration, in closed form.

A cost term is a coefficient times the lengths of the channel vectors that multiply it. Because
every group occurs a fixed number of times in a vector, a vector's length is linear in the group
widths, and the cost of a configuration is a few integer products: exact, and no network is run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lwdna.channels import Ids

TermKind = Literal["conv", "linear", "matmul", "norm", "relu", "params", "activations"]
METRICS = ("macs", "flops_paper", "params", "activations")
_IN_METRIC: dict[str, tuple[TermKind, ...]] = {
    "macs": ("conv", "linear", "matmul"),
    "flops_paper": ("conv", "linear", "norm", "relu"),
    "params": ("params",),
    "activations": ("activations",),
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

    Source: METHOD §4; torch.utils.flop_counter; activations: Radosavovic et al., "Designing
    Network Design Spaces", CVPR 2020, section 3 (the outputs of convolutions), with linear layers
    and matrix products as in fvcore's activation count.
    """

    macs: int
    flops_paper: int
    params: int
    activations: int

    def __getitem__(self, metric: str) -> int:
        if metric not in METRICS:
            raise KeyError(f"metric {metric!r}: one of {', '.join(METRICS)}")
        value: int = getattr(self, metric)
        return value

    def as_dict(self) -> dict[str, int]:
        """The figures by metric name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


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

    Attributes:
        counts: how often each unit of a group occurs in each distinct vector, (vectors, groups).
        factors: for each term, the vectors that multiply it, (terms, most factors); -1 for none.
        coefficients: coefficient of each term, (terms,).
        in_metric: 1 where a metric contains a term, (metrics, terms).
    """

    def __init__(self, terms: Sequence[Term], group_of: NDArray[np.int64], sizes: Ids) -> None:
        self.terms = tuple(terms)
        rows: dict[bytes, int] = {}
        counts: list[NDArray[np.int64]] = []
        factors = np.full((len(self.terms), max([1, *(len(t.vectors) for t in terms)])), -1)
        for t, term in enumerate(self.terms):
            for k, vector in enumerate(term.vectors):
                key = vector.tobytes()
                if key not in rows:
                    rows[key] = len(counts)
                    occurrences = np.bincount(group_of[vector], minlength=len(sizes))
                    counts.append(occurrences // sizes)
                factors[t, k] = rows[key]
        self.counts = np.array(counts, dtype=np.int64).reshape(len(counts), len(sizes))
        self.factors = factors
        self.coefficients = np.array([t.coefficient for t in terms], dtype=np.int64)
        self.in_metric = np.array(
            [[t.kind in _IN_METRIC[metric] for t in terms] for metric in METRICS], dtype=np.int64
        )

    def lengths(self, widths: Ids) -> Ids:
        """Length of every distinct vector, with a trailing 1 for absent factors."""
        return np.append(self.counts @ widths, 1)

    def per_term(self, widths: Ids) -> NDArray[np.int64]:
        """Value of every term, shape (terms,), int64."""
        product: NDArray[np.int64] = self.coefficients * self.lengths(widths)[self.factors].prod(
            axis=1
        )
        return product

    def __call__(self, widths: Ids) -> Cost:
        """Cost at the given group widths, shape (groups,), int64."""
        return Cost(*(int(value) for value in self.in_metric @ self.per_term(widths)))
