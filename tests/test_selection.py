"""Selection: by hand, against its definition, and its properties for all allocations."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lwdna.budget import cost_range
from lwdna.constraints import Constraints, Floors
from lwdna.cost import Cost
from lwdna.errors import BudgetError, LwdnaError, ScoringError
from lwdna.graph import ChannelGraph
from lwdna.selection import Allocation, select
from tests.scoring.networks import Net, Residual
from tests.toys import (
    NO_FLOORS,
    Problem,
    allowed,
    best_first,
    classes,
    graph_of,
    graphs,
    kept,
    problems,
    toy,
    within,
)

# --- by hand ------------------------------------------------------------------------------------


def test_by_hand() -> None:
    # Units 1..4 are g1, 5..8 are g2. Cost: w1 + w1·w2 + w2.
    graph = toy(4, 4)
    saliency = np.array([0, 0.9, 0.1, 0.8, 0.2, 0.7, 0.6, 0.3, 0.4, 0])
    # 0.9, 0.8 of g1; 0.7, 0.6 of g2: 2 + 4 + 2 = 8. With 0.4: 2 + 6 + 3 = 11.
    selection = select(graph, saliency, {"macs": 10}, constraints=Constraints(NO_FLOORS))
    assert np.flatnonzero(selection.copies).tolist() == [0, 1, 3, 5, 6, 9]
    assert selection.cost == Cost(8, 8, 8, 0) and selection.used == {"macs": 0.8}
    assert selection.threshold == 0.6
    assert selection.note == (
        "80.0% of macs used: 2 macs are left, and the smallest block that was left out "
        "(1 channel of 'g1') costs 3"
    )
    selection = select(graph, saliency, {"macs": 11}, constraints=Constraints(NO_FLOORS))
    assert kept(graph, selection) == [1, 2, 3, 1]
    assert selection.note is None and selection.used == {"macs": 1.0}
    assert selection.threshold == 0.4


def test_give_back_by_hand() -> None:
    graph = toy(2, 4, 2)  # cost: a + a·b + b·c + c
    saliency = np.array([0, 0.3, 0.2, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0])
    # (1, 1, 1): 4, then g2's units: 6, 8, 10. With 9 the last one is too much and so is the next
    # unit of g3 (1 + 3 + 6 + 2) and of g1.
    selection = select(graph, saliency, {"macs": 9}, constraints=Constraints(NO_FLOORS))
    assert kept(graph, selection) == [1, 1, 3, 1, 1] and selection.threshold == 0.7
    # Floors alone; the next unit costs 2.
    selection = select(graph, saliency, {"macs": 5}, constraints=Constraints(NO_FLOORS))
    assert kept(graph, selection) == [1, 1, 1, 1, 1] and selection.threshold == float("inf")


def test_what_is_given_back_lies_below_the_threshold() -> None:
    graph = toy(8, 2)
    saliency = np.array([0, *np.linspace(0.8, 0.1, 8), 0.95, 0.9, 0])
    # (1, 1): 3; 0.9 -> (1, 2): 5; then (2, 2): 8, (3, 2): 11.
    assert kept(
        graph, select(graph, saliency, {"macs": 11}, constraints=Constraints(NO_FLOORS))
    ) == [1, 3, 2, 1]
    # With 0.45 for g2's second unit, g1's first four come first: (4, 1) is 9; (4, 2) would be 14;
    # (5, 1) and (6, 1) are 11 and 13.
    saliency[10] = 0.45
    selection = select(graph, saliency, {"macs": 13}, constraints=Constraints(NO_FLOORS))
    assert kept(graph, selection) == [1, 6, 1, 1] and selection.cost.macs == 13
    assert selection.threshold == pytest.approx(0.5)


def test_ties_go_to_the_lower_unit() -> None:
    graph = toy(3, 3)
    selection = select(graph, np.zeros(8), {"macs": 8}, constraints=Constraints(NO_FLOORS))
    assert np.flatnonzero(selection.copies).tolist() == [0, 1, 2, 3, 4, 7]  # 3 + 3 + 1
    assert select(graph, np.zeros(8), {"macs": 15}).copies.all()


def test_several_limits_hold_together() -> None:
    graph = graph_of(Net, 2)
    saliency = np.random.default_rng(0).random(graph.units)
    most = graph.cost()
    limits = {"macs": most.macs // 2, "params": most.params // 3, "flops_paper": most.flops_paper}
    selection = select(graph, saliency, limits)
    assert all(selection.cost[metric] <= limit for metric, limit in limits.items())
    assert max(selection.used.values()) > 0.99


def test_identity_at_the_whole_cost() -> None:
    graph = graph_of(Residual)
    cost = graph.cost()
    selection = select(graph, np.zeros(graph.units), {"macs": cost.macs})
    assert selection.copies.all() and selection.note is None
    # One limit may be out of reach if another one is not.
    selection = select(graph, np.zeros(graph.units), {"macs": cost.macs * 2, "params": cost.params})
    assert selection.copies.all()


def test_note_where_everything_is_kept() -> None:
    graph = graph_of(Residual)
    cost = graph.cost()
    limits = {"macs": int(cost.macs * 1.1), "params": cost.params}
    assert select(graph, np.zeros(graph.units), limits).note is None  # params are used in full
    tight = toy(2, 2)
    assert (
        select(tight, np.zeros(6), {"macs": 8}, constraints=Constraints(Floors(absolute=4))).note
        is None
    )


def test_note_names_the_cheapest_block() -> None:
    graph = toy(9, 2)  # (1, 2): 5; g1's next costs 3, g2 is whole; at (1, 1): 2 and 2
    saliency = np.array([0, *[1.0] * 9, 5, 4, 0])
    note = select(graph, saliency, {"macs": 7}, constraints=Constraints(NO_FLOORS)).note
    assert note is not None and "2 macs are left" in note and "of 'g1') costs 3" in note
    graph = toy(2, 9)
    saliency = np.array([0, 5, 4, *[1.0] * 9, 0])
    note = select(graph, saliency, {"macs": 7}, constraints=Constraints(NO_FLOORS)).note
    assert note is not None and "of 'g2') costs 3" in note
    graph = toy(3, 9)  # floors of (2, 3): 11; the next blocks cost 4 of g1, 3 of g2
    floors = Floors(overrides={"g1": 2, "g2": 3})
    note = select(graph, np.zeros(14), {"macs": 13}, constraints=Constraints(floors)).note
    assert note is not None and "of 'g2') costs 3" in note


def test_a_cap_that_leaves_the_budget_out_of_reach_is_named() -> None:
    graph = toy(4, 4).restrict(np.array([1, *[2] * 8, 1]))
    capped = Constraints(NO_FLOORS, max_growth=0.5)
    message = "30 macs wanted, 3 to 8 attainable. Widen it more, raise max_growth"
    with pytest.raises(BudgetError, match=message):
        select(graph, np.zeros(18), {"macs": 30}, constraints=capped)
    selection = select(graph, np.zeros(18), {"macs": 8, "params": 30}, constraints=capped)
    assert kept(graph, selection) == [1, 2, 2, 1] and selection.note is None


def test_note_names_the_divisor() -> None:
    graph = toy(16, 16)
    selection = select(graph, np.arange(34.0), {"macs": 200}, constraints=Constraints(NO_FLOORS, 8))
    assert kept(graph, selection) == [1, 8, 16, 1] and selection.cost.macs == 152
    assert selection.note is not None
    assert "(8 channels of 'g1') costs 136; divisor=8 sets the block size" in selection.note


# --- floors and divisor -------------------------------------------------------------------------


def test_the_floor_is_the_groups_best() -> None:
    graph = toy(6, 6)
    saliency = np.array([0, 6, 5, 4, 3, 2, 1, 0.1, 0.6, 0.2, 0.5, 0.4, 0.3, 0])
    limits = {"macs": cost_range(graph, Constraints(Floors(0.5, 1)))["macs"][0]}
    selection = select(graph, saliency, limits, constraints=Constraints(Floors(0.5, 1)))
    assert np.flatnonzero(selection.copies).tolist() == [0, 1, 2, 3, 8, 10, 11, 13]
    assert selection.threshold == float("inf")


def test_divisor_by_hand() -> None:
    graph = toy(10, 3)
    # Blocks of g1, by mean: {10, 9, 8, 7}, {6, 5, 4, 3}, {2, 1}; g2 is narrower and stays whole.
    saliency = np.array([0, 10, 1, 9, 2, 8, 3, 7, 4, 6, 5, 1, 1, 1, 0], dtype=float)
    assert cost_range(graph, Constraints(NO_FLOORS, 4))["macs"] == (4 + 12 + 3, 10 + 30 + 3)
    for limit, width in ((19, 4), (34, 4), (35, 8), (42, 8), (43, 10)):
        selection = select(graph, saliency, {"macs": limit}, constraints=Constraints(NO_FLOORS, 4))
        assert kept(graph, selection) == [1, width, 3, 1]
        assert saliency[np.flatnonzero(selection.copies)[1:-4]].min() == 11 - width
    assert cost_range(graph, Constraints(Floors(0.5, 1), 4))["macs"] == (
        8 + 24 + 3,
        43,
    )  # 5, rounded up to 8


def test_a_blocks_saliency_is_the_mean_of_its_units() -> None:
    graph = toy(5, 5)
    # Floors of 2 and 2 cost 8. Blocks: g1 {7, 3}, {4 or less}; g2 {6, 6}, {x}.
    # (2, 4): 14, (4, 4): 24, then (5, 4) or (4, 5): 29, (5, 5): 35.
    saliency = np.array([0, 9, 9, 7, 3, 2, 9, 9, 6, 6, 2.5, 0])
    last = {2.5: [1, 4, 5, 1], 1.5: [1, 5, 4, 1]}
    for x, widths in last.items():
        saliency[10] = x
        for limit, expected in ((14, [1, 2, 4, 1]), (24, [1, 4, 4, 1]), (29, widths)):
            selection = select(
                graph, saliency, {"macs": limit}, constraints=Constraints(Floors(0, 2, 0), 2)
            )
            assert kept(graph, selection) == expected
    assert selection.threshold == 2  # the mean of one unit
    selection = select(graph, saliency, {"macs": 24}, constraints=Constraints(Floors(0, 2, 0), 2))
    assert selection.threshold == 5  # the mean of 7 and 3


# --- properties ---------------------------------------------------------------------------------


def by_definition(
    graph: ChannelGraph, saliency: np.ndarray, limits: dict[str, int], constraints: Constraints
) -> np.ndarray:
    """The threshold allocation, one full cost per question: every prefix, then what remains."""
    widths = graph.widths.copy()
    for g in range(len(widths)):
        widths[g] = allowed(graph, constraints, g)[0]
    blocks = []
    for tie, rungs in classes(graph, constraints):
        ranked = [best_first(graph, saliency, g) for g in tie]
        widths[tie] = rungs[0]
        for below, above in pairwise(rungs):
            units = [u for units in ranked for u in units[below:above]]
            first = min(units[below] for units in ranked)
            blocks.append((-saliency[units].mean(), first, tie, below, above))
    blocks.sort()

    def grown(widths: np.ndarray, tie: list[int], below: int, above: int) -> np.ndarray | None:
        more = widths.copy()
        more[tie] = above
        return more if widths[tie[0]] == below and within(graph, more, limits) else None

    for _, _, tie, below, above in blocks:
        more = grown(widths, tie, below, above)
        if more is None:
            break
        widths = more
    for _, _, tie, below, above in blocks:
        more = grown(widths, tie, below, above)
        widths = widths if more is None else more
    return widths


ALLOCATIONS = get_args(Allocation)


@pytest.mark.parametrize("allocation", ALLOCATIONS)
@settings(deadline=None, max_examples=200)
@given(problems())
def test_properties(allocation: Allocation, problem: Problem) -> None:
    graph, saliency, limits, constraints = problem
    selection = select(graph, saliency, limits, constraints=constraints, allocation=allocation)
    copies, widths = selection.copies, graph.widths_of(selection.copies)
    assert copies.dtype == np.int64 and set(copies) <= {0, 1}
    graph.check(copies)  # frozen groups untouched, none empty
    assert selection.cost == graph.cost(copies)
    assert selection.used == {m: selection.cost[m] / limits[m] for m in limits}
    assert max(selection.used.values()) <= 1
    assert (selection.note is None) == (max(selection.used.values()) >= 0.995)
    for g, width in enumerate(widths.tolist()):
        assert width in allowed(graph, constraints, g)
        if graph.groups[g].prunable:  # the best stay, equal ones by unit id
            units = best_first(graph, saliency, g)
            assert copies[units].tolist() == [1] * width + [0] * (len(units) - width)
    for tie, rungs in classes(graph, constraints):
        assert len({*widths[tie].tolist()}) == 1
        above = [w for w in rungs if w > widths[tie[0]]]
        if above:  # nothing that was left out still fits
            more = widths.copy()
            more[tie] = above[0]
            assert not within(graph, more, limits)


@settings(deadline=None, max_examples=200)
@given(problems())
def test_the_threshold_is_what_it_is_defined_to_be(problem: Problem) -> None:
    graph, saliency, limits, constraints = problem
    selection = select(graph, saliency, limits, constraints=constraints, allocation="threshold")
    expected = by_definition(graph, saliency, limits, constraints)
    np.testing.assert_array_equal(graph.widths_of(selection.copies), expected)


@settings(deadline=None, max_examples=50)
@given(graphs, st.integers(0, 2**32))
def test_the_threshold_falls_as_the_budget_grows(graph: ChannelGraph, seed: int) -> None:
    saliency = np.random.default_rng(seed).random(graph.units)
    least, most = cost_range(graph, Constraints(NO_FLOORS))["params"]
    steps = np.linspace(least, most, 12).astype(int).tolist()
    selections = [
        select(graph, saliency, {"params": s}, constraints=Constraints(NO_FLOORS)) for s in steps
    ]
    for a, b in pairwise(selections):
        assert a.threshold >= b.threshold
    assert selections[-1].copies.all()


def test_scale_of_saliency_does_not_matter() -> None:
    graph = graph_of(Net, 3)
    saliency = np.random.default_rng(0).random(graph.units)
    limits = {"macs": graph.cost().macs // 2}
    expected = select(graph, saliency, limits).copies
    for other in (saliency * 1e-30, saliency - 7, (saliency * 1e6).astype(np.float32)):
        np.testing.assert_array_equal(select(graph, other, limits).copies, expected)
    whatever = np.where(graph.prunable[graph.group_of], saliency, np.nan)  # fixed groups: anything
    np.testing.assert_array_equal(select(graph, whatever, limits).copies, expected)


@pytest.mark.parametrize("allocation", ALLOCATIONS)
@pytest.mark.parametrize("divisor", [1, 8])
def test_large_graphs_are_fast(divisor: int, allocation: Allocation) -> None:
    graph = toy(*[100] * 1000)
    saliency = np.random.default_rng(0).random(graph.units)
    limits = {"macs": graph.cost().macs // 3}
    graph.cost_model  # noqa: B018 built once per graph
    start = time.perf_counter()
    selection = select(
        graph, saliency, limits, constraints=Constraints(divisor=divisor), allocation=allocation
    )
    assert time.perf_counter() - start < 3  # see benchmarks/bm_selection.py for the figures
    assert selection.used["macs"] > 0.999


# --- refusals -----------------------------------------------------------------------------------


def test_budget_below_the_floors() -> None:
    graph = toy(10, 10)  # floors of 4: 4 + 16 + 4 = 24 of 120
    message = (
        r"below the least .*: 23 macs wanted, 24 to 120 attainable. Raise the budget, or lower"
    )
    with pytest.raises(BudgetError, match=message) as caught:
        select(graph, np.zeros(graph.units), {"macs": 23})
    assert caught.value.attainable["macs"] == (24, 120)
    assert isinstance(caught.value, LwdnaError) and isinstance(caught.value, ValueError)
    with pytest.raises(BudgetError, match="23 params"):  # one limit is enough
        select(graph, np.zeros(graph.units), {"macs": 100, "params": 23})


def test_budget_above_the_network() -> None:
    graph = toy(10, 10)
    message = (
        r"above what this network reaches: 150 macs wanted, 24 to 120 attainable. Widen it more"
    )
    with pytest.raises(BudgetError, match=message) as caught:
        select(graph, np.zeros(graph.units), {"macs": 150})
    assert caught.value.attainable["params"] == (24, 120)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"saliency": np.zeros(5)}, ValueError, r"graph's 22 units, not shape \(5,\)"),
        ({"saliency": np.zeros((22, 1))}, ValueError, r"not shape \(22, 1\)"),
        ({"saliency": np.array(["a"] * 22)}, ValueError, "of <U1"),
        ({"saliency": np.full(22, np.nan)}, ScoringError, "group 'g1' is NaN or infinite"),
        ({"saliency": np.full(22, np.inf)}, ScoringError, "group 'g1' is NaN or infinite"),
        ({"limits": {}}, ValueError, "at least one of macs"),
        ({"limits": {"flops": 50}}, ValueError, "flops"),
        ({"limits": {"macs": 0}}, ValueError, "limit macs=0: a positive int"),
        ({"limits": {"macs": 50.0}}, ValueError, "limit macs=50.0"),
        ({"allocation": "best"}, ValueError, "allocation='best': one of balanced, threshold"),
    ],
)
def test_bad_arguments(change: dict[str, object], error: type[Exception], message: str) -> None:
    arguments: dict[str, object] = {"saliency": np.zeros(22), "limits": {"macs": 50}} | change
    with pytest.raises(error, match=message):
        select(toy(10, 10), **arguments)  # type: ignore[arg-type]
