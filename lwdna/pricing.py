"""Costs and prices while widths change: the cost model, compiled for many questions.

Selection asks thousands of times what a configuration costs and what the next block of every
group would add. Fixed groups become constants, groups that are tied become one variable, terms
with equal factors become one, and the answers are a few array operations over sparse incidences.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lwdna.channels import Ids
from lwdna.cost import METRICS, CostModel


class Pricing:
    """Cost in some metrics as a polynomial of the class widths, with its differences.

    All coefficients are non-negative, so neither a cost nor the price of a block ever falls when
    a class grows.

    Args:
        model: the cost model of the graph.
        metrics: the M metrics that are asked for.
        widths: width of each group, shape (groups,); those of groups in no class stay.
        classes: the C classes, each the indices of the groups that share its width.
    """

    def __init__(
        self,
        model: CostModel,
        metrics: Sequence[str],
        widths: Ids,
        classes: Sequence[NDArray[np.int64]],
    ) -> None:
        fixed = widths.copy()
        fixed[np.concatenate([*classes, np.zeros(0, np.int64)]).astype(np.int64)] = 0
        counts = np.zeros((len(model.counts) + 1, len(classes)), dtype=np.int64)
        for c, members in enumerate(classes):
            counts[:-1, c] = model.counts[:, members].sum(axis=1)
        self._fixed = np.append(model.counts @ fixed, 1)  # the last row stands for no factor
        self._row, self._column = np.nonzero(counts)
        self._count = counts[self._row, self._column]
        factors, merged = np.unique(
            np.sort(model.factors % len(counts), axis=1), axis=0, return_inverse=True
        )
        chosen = model.in_metric[[METRICS.index(metric) for metric in metrics]]
        self._weights = np.zeros((len(metrics), len(factors)), dtype=np.int64)
        np.add.at(self._weights.T, merged.reshape(-1), (chosen * model.coefficients).T)
        self._factors = factors.T.copy()  # one row per factor: (K, terms)
        self._classes = len(classes)
        self._index_pairs(counts)

    def _index_pairs(self, counts: NDArray[np.int64]) -> None:
        """Every (class, term) where the class occurs in the term, by class."""
        rows_of: list[list[int]] = [[] for _ in range(self._classes)]
        for row, column in zip(self._row.tolist(), self._column.tolist(), strict=True):
            rows_of[column].append(row)
        terms_of: list[list[int]] = [[] for _ in range(len(counts))]
        priced = np.flatnonzero(self._weights.any(axis=0))
        for rows in self._factors:
            for term, row in zip(priced.tolist(), rows[priced].tolist(), strict=True):
                terms_of[row].append(term)
        found = [sorted({t for row in rows for t in terms_of[row]}) for rows in rows_of]
        sizes = np.array([len(terms) for terms in found], dtype=np.int64)
        self._pair_class = np.repeat(np.arange(self._classes), sizes)
        self._pair_term = np.array([t for terms in found for t in terms], dtype=np.int64)
        self._pair_factors = self._factors[:, self._pair_term]
        self._pair_counts = counts[self._pair_factors, self._pair_class]
        self._priced = np.flatnonzero(sizes)  # classes that some term contains
        self._starts = (np.cumsum(sizes) - sizes)[self._priced]
        self._pair_weights = self._weights[:, self._pair_term]

    def _lengths(self, widths: Ids) -> Ids:
        lengths = self._fixed.copy()
        np.add.at(lengths, self._row, self._count * widths[self._column])
        return lengths

    def cost(self, widths: Ids) -> Ids:
        """Cost in each metric, shape (M,), int64.

        Args:
            widths: width of each class, shape (C,).
        """
        lengths = self._lengths(widths)
        cost: Ids = self._weights @ _product([lengths[rows] for rows in self._factors])
        return cost

    def prices(self, widths: Ids, steps: Ids) -> Ids:
        """What each class alone would add to the cost, shape (M, C), int64.

        Args:
            widths: width of each class, shape (C,).
            steps: units by which each class would grow (shrink, if negative), shape (C,).
        """
        lengths = self._lengths(widths)
        before = [lengths[rows] for rows in self._pair_factors]
        grown = steps[self._pair_class]
        after = [n + k * grown for n, k in zip(before, self._pair_counts, strict=True)]
        added = self._pair_weights * (_product(after) - _product(before))
        prices = np.zeros((len(self._weights), self._classes), dtype=np.int64)
        if len(self._priced):
            prices[:, self._priced] = np.add.reduceat(added, self._starts, axis=1)
        return prices


def _product(factors: Sequence[Ids]) -> Ids:
    result = factors[0]
    for factor in factors[1:]:
        result = result * factor
    return result
