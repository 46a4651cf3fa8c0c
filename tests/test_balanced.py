"""The balanced allocation: several limits are used together, one limit is the plain threshold."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import nn

import lwdna
from lwdna.constraints import Constraints, Floors
from lwdna.graph import ChannelGraph
from lwdna.selection import select
from tests.toys import NO_FLOORS, Problem, allowed, best_first, graph_of, problems, toy


class Stages(nn.Sequential):
    """MACs lie in the first convolutions, params in the last ones."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 32, 3, padding=1),
            nn.Conv2d(32, 32, 3, padding=1),
            nn.Conv2d(32, 64, 3, stride=8),
            nn.Conv2d(64, 64, 1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(64, 10),
        )


def equal_shares(graph: ChannelGraph, constraints: Constraints) -> np.ndarray:
    """A saliency whose threshold climbs every group's ladder alike."""
    scores = np.zeros(graph.units)
    for group in graph.groups:
        ladder = allowed(graph, constraints, group.index)
        above = np.searchsorted(ladder, np.arange(group.width) + 1)  # rung that a unit needs
        scores[group.units] = 2 - above / max(len(ladder) - 1, 1)
    return scores


@pytest.fixture(scope="module")
def graph() -> ChannelGraph:
    return graph_of(Stages)


def early_first(graph: ChannelGraph) -> np.ndarray:
    """A saliency under which the early groups, dear in MACs, win all channels."""
    scale = {group.index: 10.0**-group.index for group in graph.groups}
    noise = 1 + np.random.default_rng(0).random(graph.units)
    return np.array([scale[g] for g in graph.group_of.tolist()]) * noise


def halves(graph: ChannelGraph) -> dict[str, int]:
    cost = graph.cost()
    return {"macs": cost.macs // 2, "params": cost.params // 2}


def test_all_limits_are_used(graph: ChannelGraph) -> None:
    saliency, limits = early_first(graph), halves(graph)
    plain = select(graph, saliency, limits, allocation="threshold")
    assert plain.used["macs"] > 0.97 and plain.used["params"] < 0.6
    balanced = select(graph, saliency, limits)  # the default
    assert min(balanced.used.values()) > 0.97 and max(balanced.used.values()) <= 1
    assert balanced.threshold is None and plain.threshold is not None
    # What was freed went from the groups that are dear in MACs to those that are not.
    before, after = (graph.widths_of(s.copies) for s in (plain, balanced))
    early, late = (next(g.index for g in graph.groups if g.name == n) for n in ("1", "3"))
    assert after[early] < before[early] and after[late] > before[late]


def test_within_a_group_the_most_salient_stay(graph: ChannelGraph) -> None:
    saliency, limits = early_first(graph), halves(graph)
    copies = select(graph, saliency, limits).copies
    for group in graph.groups:
        if group.prunable:
            units = best_first(graph, saliency, group.index)
            width = int(copies[units].sum())
            assert copies[units].tolist() == [1] * width + [0] * (len(units) - width)


def test_it_may_take_shifted_and_scaled_saliencies(graph: ChannelGraph) -> None:
    saliency, limits = early_first(graph), halves(graph)
    expected = select(graph, saliency, limits).copies
    np.testing.assert_array_equal(select(graph, saliency * 1e-30, limits).copies, expected)
    below = saliency - saliency.max()  # all <= 0
    assert min(select(graph, below, limits).used.values()) > 0.97


def test_limits_that_cost_alike_cannot_be_balanced() -> None:
    graph = toy(8, 8, 8)  # MACs are params
    saliency = np.random.default_rng(0).random(graph.units)
    cost = graph.cost()
    limits = {"macs": cost.macs // 2, "params": cost.params}
    plain = select(graph, saliency, limits, allocation="threshold")
    balanced = select(graph, saliency, limits)
    np.testing.assert_array_equal(balanced.copies, plain.copies)
    assert balanced.threshold == plain.threshold


def test_what_the_floors_take_stays_taken(graph: ChannelGraph) -> None:
    floors = Constraints(Floors(fraction=0.6, absolute=1, classifier=0.6))
    limits = halves(graph)
    balanced = select(graph, early_first(graph), limits, constraints=floors)
    widths = graph.widths_of(balanced.copies)
    assert all(widths[g.index] >= int(0.6 * g.width) for g in graph.groups if g.prunable)


@settings(deadline=None, max_examples=100)
@given(problems())
def test_one_limit_is_the_threshold(problem: Problem) -> None:
    graph, saliency, limits, constraints = problem
    for metric, limit in limits.items():
        try:
            plain = select(
                graph, saliency, {metric: limit}, constraints=constraints, allocation="threshold"
            )
        except lwdna.BudgetError:  # of several limits, one may be out of reach
            continue
        balanced = select(graph, saliency, {metric: limit}, constraints=constraints)
        np.testing.assert_array_equal(balanced.copies, plain.copies)
        assert (balanced.cost, balanced.used) == (plain.cost, plain.used)
        assert (balanced.threshold, balanced.note) == (plain.threshold, plain.note)


def test_a_loose_limit_stays_loose(graph: ChannelGraph) -> None:
    cost, saliency = graph.cost(), early_first(graph)
    limits = {"macs": cost.macs // 2, "params": cost.params}
    uniform = select(graph, equal_shares(graph, Constraints()), limits, allocation="threshold")
    assert uniform.used["params"] < 0.7
    balanced = select(graph, saliency, limits)
    assert balanced.used["macs"] > 0.95  # one channel costs 3 %
    assert balanced.used["params"] == pytest.approx(uniform.used["params"], abs=0.03)


def test_a_whole_shrink_uses_both_limits() -> None:
    budget = lwdna.Budget(macs=0.6, params=0.6)
    net = lwdna.shrink(
        Stages(),
        budget,
        criterion=lambda context: early_first(context.graph),
        constraints=Constraints(NO_FLOORS),
        example_inputs=torch.zeros(1, 3, 32, 32),
        progress=False,
    )
    dna = net.meta["lwdna"]
    assert dna.settings["allocation"] == "balanced"
    assert 0.57 < dna.after.macs / dna.before.macs <= 0.6
    assert 0.57 < dna.after.params / dna.before.params <= 0.6
