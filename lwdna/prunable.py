"""How much of a network can be pruned."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lwdna.cost import METRICS
from lwdna.graph import ChannelGraph


def free_terms(graph: ChannelGraph) -> NDArray[np.bool_]:
    """Whether each cost term has a prunable group among its factors, shape (terms,)."""
    costs = graph.cost_model
    vectors = (costs.counts[:, graph.prunable] > 0).any(axis=1)
    monomials = np.append(vectors, False)[costs.factors].any(axis=1)
    free = np.zeros(len(costs.terms), dtype=np.bool_)
    free[costs.term_of[monomials]] = True
    return free


def prunable_share(graph: ChannelGraph, metric: str) -> float:
    """Share of a cost that shrinks with a prunable group, 0 to 1.

    A convolution between a prunable and a frozen group counts: it shrinks with the prunable one.

    Args:
        graph: the channel graph.
        metric: one of :data:`lwdna.cost.METRICS`.
    """
    costs = graph.cost_model
    values = costs.per_monomial(graph.widths) * costs.in_metric[METRICS.index(metric)]
    free = free_terms(graph)[costs.term_of]
    return float(values[free].sum() / max(values.sum(), 1))
