"""Constraints: what each one means for the widths, and every way in which they contradict."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings

from lwdna.budget import cost_range
from lwdna.constraints import Constraints, Floors
from lwdna.errors import ConstraintError, LwdnaError
from lwdna.explanation import explain_graph
from lwdna.fx_passes.widen import widen, widen_copies
from lwdna.graph import ChannelGraph
from lwdna.selection import select
from lwdna.width_rules import resolve
from tests.scoring.networks import Concatenated, Net, Residual, analysed
from tests.toys import NO_FLOORS, Problem, allowed, classes, graph_of, kept, problems, toy


def widened(graph: ChannelGraph, factor: float) -> ChannelGraph:
    return graph.restrict(widen_copies(graph, factor))


def ladder(graph: ChannelGraph, constraints: Constraints, g: int = 1) -> list[int]:
    return resolve(graph, constraints).ladder(g).tolist()


def least(graph: ChannelGraph, floors: Floors) -> list[int]:
    return resolve(graph, Constraints(floors)).least.tolist()


# --- floors -------------------------------------------------------------------------------------


def test_floors_by_hand() -> None:
    graph = graph_of(Net, 4)
    by_name = dict(zip((g.name for g in graph.groups), least(graph, Floors()), strict=True))
    assert by_name["one.0"] == 4  # int(32 · 0.1) = 3, at least 4
    assert by_name["three.0"] == 14  # int(32 · 0.45), feeds the classifier
    assert by_name["fc"] == 5  # fixed
    assert least(toy(100), Floors(0.29, 1)) == [1, 29, 1]  # not 28, as floats have it
    assert least(toy(5), Floors(0, 8)) == [1, 5, 1]  # never above the width
    assert least(toy(5), Floors(0, 1, 0)) == [1, 1, 1]
    # Widening does not turn the absolute floor into a demand to grow: two heads may stay two.
    assert least(widened(toy(2, 3, 9), 4), Floors(0)) == [1, 2, 3, 4, 1]


def test_overrides_by_hand() -> None:
    graph = toy(10, 20, 30, 40)
    floors = Floors(0.5, 4, overrides={"g1": 3, "g[23]": 0.29, "g*": 1.0})
    assert least(graph, floors) == [1, 3, 5, 8, 40, 1]  # the first pattern counts
    assert least(toy(10), Floors(overrides={"g1": 0.0})) == [1, 1, 1]  # below `absolute`
    graph = graph_of(Net, 4)
    (three,) = (g.index for g in graph.groups if g.name == "three.0")
    assert least(graph, Floors(overrides={"three*": 2}))[three] == 2  # not the classifier's


# --- divisor, baseline and caps -----------------------------------------------------------------


def test_baseline_widths_are_those_before_widening() -> None:
    graph = toy(10, 7)
    wide = widened(graph, 2.5)
    assert graph.baseline_widths.tolist() == [1, 10, 7, 1]
    assert wide.widths.tolist() == [1, 25, 18, 1]
    assert wide.baseline_widths.tolist() == [1, 10, 7, 1]


def test_divisors_by_hand() -> None:
    wide = widened(toy(10, 10), 2.5)  # baseline 10, present 25
    assert ladder(wide, Constraints(NO_FLOORS, 8)) == [8, 10, 16, 24, 25]
    assert ladder(wide, Constraints(Floors(0.36, 1), 8)) == [10, 16, 24, 25]  # floor of 9
    assert ladder(wide, Constraints(Floors(0.44, 1), 8)) == [16, 24, 25]  # floor of 11
    assert ladder(wide, Constraints(NO_FLOORS, 8, max_growth=1.0)) == [8, 10]
    assert ladder(wide, Constraints(NO_FLOORS, 8, max_growth=1.7)) == [8, 10, 16]
    assert ladder(wide, Constraints(NO_FLOORS, 32)) == [10, 25]  # wider than the group
    assert ladder(wide, Constraints(NO_FLOORS, {"g2": 8})) == list(range(1, 26))
    assert ladder(wide, Constraints(NO_FLOORS, {"g2": 8, "*": 5})) == [5, 10, 15, 20, 25]


def test_growth_by_hand() -> None:
    wide = widened(toy(10, 10), 3)
    assert resolve(wide, Constraints(NO_FLOORS, max_growth=1.25)).most.tolist() == [1, 12, 12, 1]
    assert resolve(wide, Constraints(NO_FLOORS, max_growth=9.0)).most.tolist() == [1, 30, 30, 1]
    assert resolve(wide, Constraints(NO_FLOORS, max_growth=0.5)).most.tolist() == [1, 5, 5, 1]
    assert resolve(
        wide, Constraints(NO_FLOORS, max_growth={"g1": 1.1, "g*": 2.0})
    ).most.tolist() == [*(1, 11, 20, 1)]
    # 0.29 of 100 is 29, and the absolute floor gives way to a cap.
    assert resolve(toy(100), Constraints(Floors(0, 64), max_growth=0.29)).least[1] == 29
    cap = cost_range(wide, Constraints(NO_FLOORS, max_growth=1.0))["macs"]
    assert cap == (3, toy(10, 10).cost().macs)


# --- freeze -------------------------------------------------------------------------------------


def test_frozen_groups_are_neither_widened_nor_shrunk_and_say_so() -> None:
    gm, graph = analysed(Residual())
    frozen = graph.freeze(["three*"])
    (three,) = (g.index for g in graph.groups if g.name == "three.0")
    assert graph.groups[three].prunable and not frozen.groups[three].prunable
    (row,) = (r for r in explain_graph(frozen).rows if r.group == "three.0")
    assert row.why == ("frozen by the user at three*",)
    wide, wide_graph = widen(gm, frozen, 2.0)
    assert wide_graph.widths[three] == 8 and wide.three[0].out_channels == 8
    constraints = Constraints(NO_FLOORS, freeze=["three*"])
    limits = {"macs": cost_range(wide_graph, constraints)["macs"][0]}
    selection = select(wide_graph, np.zeros(wide_graph.units), limits, constraints=constraints)
    assert selection.copies[wide_graph.groups[three].units].all()


def test_what_was_not_frozen_before_widening_keeps_its_baseline_width() -> None:
    wide = widened(toy(4, 6), 2)
    saliency = np.arange(wide.units)[::-1].astype(float)
    constraints = Constraints(NO_FLOORS, freeze=["g1"])
    assert cost_range(wide, constraints)["macs"] == (4 + 4 + 1, 4 + 4 * 12 + 12)
    for limit in (9, 30, 64):
        selection = select(wide, saliency, {"macs": limit}, constraints=constraints)
        assert kept(wide, selection)[1] == 4


def test_freeze_refuses_patterns_without_effect() -> None:
    with pytest.raises(ConstraintError) as caught:
        toy(4, 6).freeze(["g1", "layer*", "g0"])
    assert len(caught.value.problems) == 2
    assert "'layer*' matches no group that could change" in caught.value.problems[0]
    assert "'g0'" in caught.value.problems[1]


# --- ties ---------------------------------------------------------------------------------------


def test_ties_by_hand() -> None:
    graph = toy(4, 4)  # cost: a + a·b + b, at a = b: 3, 8, 15, 24
    saliency = np.array([0, 0.1, 0.9, 0.2, 0.3, 0.4, 0.1, 0.8, 0.7, 0])
    for limit, width in ((3, 1), (7, 1), (8, 2), (14, 2), (15, 3), (24, 4)):
        constraints = Constraints(NO_FLOORS, tie=[["g1", "g2"]])
        selection = select(graph, saliency, {"macs": limit}, constraints=constraints)
        assert kept(graph, selection) == [1, width, width, 1]
        if width == 2:  # each keeps its own best
            assert np.flatnonzero(selection.copies).tolist() == [0, 2, 4, 7, 8, 9]
            assert selection.threshold == pytest.approx(0.5)  # the mean of 0.3 and 0.7
        if limit == 14:
            assert selection.note is not None
            assert "(1 channel of each of 'g1' and 'g2') costs 7" in selection.note


def test_ties_take_the_greatest_floor_and_the_least_cap() -> None:
    graph = widened(toy(10, 10, 10), 2)
    constraints = Constraints(
        Floors(0, 1, 0, overrides={"g1": 7}), tie=[["g1", "g2"]], max_growth={"g2": 1.5}
    )
    rules = resolve(graph, constraints)
    assert rules.least.tolist() == [1, 7, 7, 1, 1] and rules.most.tolist() == [1, 15, 15, 20, 1]
    assert rules.tie[1] == rules.tie[2] and len(set(rules.tie.tolist())) == 4


# --- everything together ------------------------------------------------------------------------


@settings(deadline=None, max_examples=200)
@given(problems())
def test_the_allowed_widths_are_those_of_the_definition(problem: Problem) -> None:
    graph, _, _, constraints = problem
    rules = resolve(graph, constraints)
    shared = {g: widths for tie, widths in classes(graph, constraints) for g in tie}
    for g in range(len(graph.groups)):
        widths = shared.get(g, allowed(graph, constraints, g))
        assert rules.ladder(g).tolist() == widths
        assert (rules.least[g], rules.most[g]) == (widths[0], widths[-1])


CONTRADICTIONS = {
    "floor above the cap": (
        Constraints(Floors(0.9, 1), max_growth=1.0),
        "group 'g1': no width is left between its floor of 18 and its cap of 10",
    ),
    "override above the widened width": (
        Constraints(Floors(overrides={"g1": 21})),
        "group 'g1': no width is left between its floor of 21 and its cap of 20",
    ),
    "divisor above the cap": (
        Constraints(NO_FLOORS, 8, max_growth=0.7),
        "'g2': no width is left between its floor of 1 and its cap of 7 (divisor 8, baseline",
    ),
    "cap of nothing": (Constraints(NO_FLOORS, max_growth=0.01), "floor of 1 and its cap of 0"),
    "no multiple in between": (
        Constraints(Floors(0.55, 1), 8, max_growth=1.5),
        "between its floor of 11 and its cap of 15 (divisor 8, baseline width 10, present width 20",
    ),
    "tied groups of different widths": (
        Constraints(tie=[["g1", "g3"]]),
        "tie[0]: different baseline widths ('g1': 10, 'g3': 12)",
    ),
    "tied groups of different divisors": (
        Constraints(divisor={"g2": 2}, tie=[["g1", "g2"]]),
        "tie[0]: different divisors ('g1': 1, 'g2': 2)",
    ),
    "tied floors and caps": (
        Constraints(Floors(overrides={"g1": 18}), tie=[["g1", "g2"]], max_growth={"g2": 1.7}),
        "group 'g1' = 'g2': no width is left between its floor of 18 and its cap of 17",
    ),
    "frozen member": (
        Constraints(freeze=["g2"], tie=[["g1", "g2"]]),
        "tie[0]: 'g2' cannot change (frozen by these constraints), so nothing can be tied to it",
    ),
    "member that never could change": (Constraints(tie=[["g0", "g1"]]), "tie[0]: 'g0' cannot"),
    "tie of one": (Constraints(tie=[["g1"]]), "tie[0]: the patterns match 'g1'; a tie needs two"),
    "empty tie": (Constraints(tie=[[]]), "tie[0]: the patterns match nothing; a tie needs two"),
    "group in two ties": (
        Constraints(tie=[["g1", "g2"], ["g2", "g1"]]),
        "tie[1]: 'g2' is also in tie[0]; write one entry",
    ),
    "unknown tie": (Constraints(tie=[["g1", "h*"]]), "tie[0]: 'h*' matches no group"),
    "unknown freeze": (Constraints(freeze=["h*"]), "freeze: 'h*' matches no group; see lwdna.expl"),
    "unknown divisor": (Constraints(divisor={"h*": 8}), "divisor: 'h*' matches no group"),
    "unknown growth": (Constraints(max_growth={"h*": 1.0}), "max_growth: 'h*' matches no group"),
    "unknown floor": (Constraints(Floors(overrides={"h*": 2})), "overrides: 'h*' matches no group"),
    "divisor of a fixed group": (
        Constraints(divisor={"g0": 8}),
        "divisor: 'g0' matches only groups that cannot change ('g0': image at x)",
    ),
    "freezing what is fixed": (Constraints(freeze=["g0"]), "freeze: 'g0' matches only groups that"),
    "growth of a frozen group": (
        Constraints(freeze=["g1"], max_growth={"g1": 2.0}),
        "max_growth: 'g1' matches only groups that cannot change ('g1': frozen by these",
    ),
    "pattern behind a wider one": (
        Constraints(divisor={"g*": 2, "g1": 4}),
        "divisor: 'g1' matches only groups that earlier patterns match; put the narrower",
    ),
}


def contradictory() -> ChannelGraph:
    graph = toy(10, 10, 12)
    object.__setattr__(graph.groups[0], "reasons", (("image", "x"),))
    return widened(graph, 2)


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_contradictions(name: str) -> None:
    constraints, message = CONTRADICTIONS[name]
    with pytest.raises(ConstraintError) as caught:
        resolve(contradictory(), constraints)
    assert any(message in problem for problem in caught.value.problems), caught.value.problems
    assert isinstance(caught.value, LwdnaError) and isinstance(caught.value, ValueError)


def test_all_contradictions_come_in_one_error_before_any_scoring() -> None:
    constraints = Constraints(
        Floors(overrides={"g3": 30, "h*": 1}),
        {"i*": 8},
        freeze=["j*"],
        tie=[["g1", "g3"]],
        max_growth={"k*": 1.0},
    )
    graph = contradictory()
    with pytest.raises(ConstraintError) as caught:  # the saliency is never looked at
        select(graph, np.full(graph.units, np.nan), {"macs": 10}, constraints=constraints)
    assert len(caught.value.problems) == 7
    assert str(caught.value).startswith("7 constraints cannot hold:\n  - freeze: 'j*'")
    for word in ("h*", "i*", "j*", "k*", "floor of 30", "baseline widths", "present widths"):
        assert word in str(caught.value)
    with pytest.raises(ConstraintError, match="1 constraint cannot hold"):
        cost_range(graph, Constraints(freeze=["j*"]))


def test_constraints_on_a_network() -> None:
    graph = widened(analysed(Concatenated())[1], 2)
    constraints = Constraints(
        Floors(overrides={"one*": 3}), {"two*": 4}, tie=[["two*", "three*"]], max_growth=1.5
    )
    with pytest.raises(ConstraintError, match="different divisors"):
        resolve(graph, constraints)
    rules = resolve(graph, Constraints(constraints.floors, 4, (), constraints.tie, 1.5))
    by_name = {g.name: rules.ladder(g.index).tolist() for g in graph.groups if g.prunable}
    # 6 and 8 before widening; three.0 feeds the classifier: int(0.45 · 16) = 7.
    assert by_name == {"one.0": [4, 6, 8], "two.0": [8, 12], "three.0": [8, 12]}


# --- bad arguments ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_", "error", "message"),
    [
        ({"fraction": 1.5}, ValueError, r"fraction=1.5 must lie in \[0, 1\]"),
        ({"fraction": float("nan")}, ValueError, "fraction=nan must lie"),
        ({"classifier": -0.1}, ValueError, "classifier=-0.1 must lie"),
        ({"fraction": True}, ValueError, "fraction=True"),
        ({"absolute": 0}, ValueError, "one channel at least"),
        ({"absolute": 2.0}, TypeError, "absolute=2.0 must be an int"),
        ({"absolute": True}, TypeError, "absolute=True must be an int"),
        ({"overrides": [0.5]}, TypeError, "a mapping from pattern to floor"),
        ({"overrides": {1: 0.5}}, TypeError, "1 is no pattern"),
        ({"overrides": {"a": 1.5}}, ValueError, r"overrides\['a'\]=1.5 must lie"),
        ({"overrides": {"a": 0}}, ValueError, "one channel at least"),
        ({"overrides": {"a": True}}, ValueError, "must lie"),
        ({"overrides": {"a": "4"}}, TypeError, "a number from 0 to 1"),
    ],
)
def test_bad_floors(given_: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Floors(**given_)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given_", "error", "message"),
    [
        ({"floors": 0.4}, TypeError, r"floors is a float: pass lwdna.Floors\(fraction=...\)"),
        ({"divisor": 0}, ValueError, "divisor=0: a positive int"),
        ({"divisor": True}, ValueError, "divisor=True"),
        ({"divisor": 2.0}, ValueError, "divisor=2.0"),
        ({"divisor": {"a": 0}}, ValueError, r"divisor\['a'\]=0: a positive int"),
        ({"divisor": {3: 8}}, TypeError, "3 is no pattern"),
        ({"max_growth": 0}, ValueError, "max_growth=0: must be positive"),
        ({"max_growth": float("nan")}, ValueError, "positive and finite"),
        ({"max_growth": "2"}, TypeError, "a factor of the baseline width"),
        ({"max_growth": {"a": True}}, TypeError, r"max_growth\['a'\]=True"),
        (
            {"freeze": "stem"},
            TypeError,
            r"freeze='stem': a sequence of patterns, such as \['stem'\]",
        ),
        ({"freeze": [1]}, TypeError, "1 is no pattern"),
        ({"tie": "stem"}, TypeError, "a sequence of entries"),
        ({"tie": ["stem", "head"]}, TypeError, r"tie\[0\]='stem': a sequence of patterns"),
        ({"tie": [[1, 2]]}, TypeError, "1 is no pattern"),
    ],
)
def test_bad_constraints(given_: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Constraints(**given_)  # type: ignore[arg-type]
