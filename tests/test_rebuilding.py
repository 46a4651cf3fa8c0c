"""Rebuild: what shrink did after the scoring, again; and re-scaled to another budget."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import lwdna
from lwdna.fx_passes import verify
from lwdna.fx_passes.likeness import differences
from lwdna.rebuilding import originate, structure
from lwdna.width_rules import resolve
from tests import toy_detector
from tests.factories import Hard, Plain
from tests.saved import X, assert_same

NO_FLOORS = lwdna.Constraints(lwdna.Floors(0.0, 1, 0.0))


def plain(width: int = 12) -> nn.Module:
    torch.manual_seed(0)
    return lwdna.create("tests.factories:plain", width=width)


def shrunk(model: nn.Module, budget: Any = 0.7, **options: Any) -> nn.Module:
    return lwdna.shrink(
        model, budget, criterion="random", example_inputs=X, progress=False, **options
    )


@pytest.mark.parametrize("weights", ["inherit", "fresh"])
@pytest.mark.parametrize("widen", [1.0, 1.5, {"inner": 2.0}])
def test_rebuilding_is_shrinking_without_the_scores(weights: Any, widen: Any) -> None:
    model = plain()
    net = shrunk(model, widen=widen, weights=weights, seed=5)
    with verify.untouched(model):
        again = lwdna.rebuild(model, net.meta["lwdna"], weights=weights)
    assert_same(net, again, X)


def test_other_policies_outputs_and_constraints_are_those_of_the_dna() -> None:
    torch.manual_seed(0)
    model = Hard()
    options = {
        "constraints": lwdna.Constraints(freeze=["stem"], divisor={"rows*": 2}),
        "policy": {"*": "outer"},
        "outputs": {"output": "fixed"},
        "widen": 2.0,
        "weights": "inherit",
    }
    net = shrunk(model, **options)
    dna = lwdna.Dna.from_json(net.meta["lwdna"].to_json())
    assert dna == net.meta["lwdna"] and dna.constraints.freeze == ["stem"]
    assert_same(net, lwdna.rebuild(model, dna), X)


def test_a_model_without_values_gives_the_structure() -> None:
    net = shrunk(plain(), widen=1.5)
    blank = lwdna.rebuild(plain().to("meta"), net.meta["lwdna"])
    assert not list(differences(net, blank)) and all(p.is_meta for p in blank.parameters())
    with pytest.raises(lwdna.UnsupportedModelError, match="meta device"):
        lwdna.rebuild(plain().to("meta"), net.meta["lwdna"], weights="fresh")


@pytest.mark.parametrize("policy", ["auto", "both"])
@pytest.mark.parametrize("widen", [1.0, 1.3, 2.0])
def test_resizing_at_once_is_widening_and_shrinking(widen: float, policy: Any) -> None:
    x, model = torch.empty(2, 3, 160, 160), lwdna.create("timm:test_vit")
    net = lwdna.shrink(
        model,
        0.7,
        criterion="random",
        widen=widen,
        policy=policy,
        example_inputs=x,
        progress=False,
    )
    dna = net.meta["lwdna"]
    for at_once in (True, False):
        assert not list(differences(net, structure(dna, at_once=at_once)))


def test_fresh_values_of_another_seed_have_the_same_widths() -> None:
    dna = shrunk(plain(), widen=2.0).meta["lwdna"]
    nets = [lwdna.rebuild(plain(), replace(dna, seed=s), weights="fresh") for s in (0, 1)]
    assert not list(differences(*nets))
    assert not torch.equal(nets[0].stem.weight, nets[1].stem.weight)


def test_another_network_is_refused() -> None:
    dna = replace(shrunk(plain()).meta["lwdna"], findings=None)
    with pytest.raises(lwdna.DnaError, match=r"group 'stem' is 12 units .* and 13 units"):
        lwdna.rebuild(plain(13), dna)
    with pytest.raises(lwdna.DnaError, match="group 'stem' is 12 units in 9 slots"):
        lwdna.rebuild(Hard(), dna)
    more = replace(dna, groups=(*dna.groups, replace(dna.groups[0], name="more")))
    with pytest.raises(lwdna.DnaError, match=r"group 'more' .* and missing in the network"):
        lwdna.rebuild(plain(), more)
    wrong = replace(dna, after=replace(dna.after, macs=dna.after.macs - 1))
    with pytest.raises(lwdna.DnaError, match="macs after shrinking"):
        lwdna.rebuild(plain(), wrong)
    with pytest.raises(ValueError, match="weights='hyper'"):
        lwdna.rebuild(plain(), dna, weights="hyper")  # type: ignore[arg-type]


def test_a_detector_is_rebuilt_from_what_the_dna_says_of_its_inputs() -> None:
    model, data = toy_detector.detector(), toy_detector.batch()
    net = lwdna.shrink(
        model,
        0.6,
        data=[data],
        step_fn=toy_detector.step,
        widen=1.0,
        weights="inherit",
        progress=False,
    )
    dna = lwdna.Dna.from_json(net.meta["lwdna"].to_json())
    again = lwdna.rebuild(model, dna)
    for key, value in net.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key
    assert_same(net.eval(), lwdna.rebuild(model, dna, example_inputs=data).eval(), data[0])


# --- another budget ---


@pytest.fixture(scope="module")
def dna() -> Any:
    return shrunk(plain(24), 0.6, widen=2.0, constraints=NO_FLOORS).meta["lwdna"]


@pytest.mark.parametrize("budget", [0.15, 0.4, "90%", lwdna.Budget(macs=1.2, params=0.9)])
def test_a_budget_is_used_by_the_greatest_factor(dna: Any, budget: Any) -> None:
    other = dna.at(budget, plain(24))
    limits = lwdna.Budget.of(budget).limits(dna.before)
    assert other.limits == limits and all(other.after[m] <= n for m, n in limits.items())
    net = lwdna.rebuild(plain(24), other, weights="fresh")
    measured = verify.measured_cost(net, X)
    assert measured == (other.after.macs, other.after.params)
    # By hand: widths of every factor at which one of them changes, and none greater fits.
    origin = originate(plain(24), dna)
    wide = origin.free.restrict(origin.wide_copies)
    rules, own = resolve(wide, NO_FLOORS), wide.widths_of(dna.copies(wide))
    t = other.settings["scaled"]
    names = {g.name: g.index for g in wide.groups}
    for group in other.groups:
        g = names[group.name]
        allowed = rules.ladder(g)
        assert group.width == max([w for w in allowed if w / own[g] <= t], default=allowed[0])
    steps = sorted({w / own[g] for g in np.flatnonzero(wide.prunable) for w in rules.ladder(g)})
    greater = [s for s in steps if s > t]
    if greater:
        widths = own.copy()
        for g in np.flatnonzero(wide.prunable):
            widths[g] = max(
                [w for w in rules.ladder(g) if w / own[g] <= greater[0]],
                default=rules.ladder(g)[0],
            )
        cost = wide.cost_model(widths)
        assert any(cost[m] > n for m, n in limits.items())


def test_kept_units_are_nested_and_the_own_budget_takes_nothing_away(dna: Any) -> None:
    model = plain(24)
    found = [dna.at(b, model) for b in (0.2, 0.4, 0.6, 0.9)]
    for less, more in pairwise(found):
        for a, b in zip(less.groups, more.groups, strict=True):
            assert set(a.kept) <= set(b.kept)
    for a, b in zip(dna.groups, found[2].groups, strict=True):
        assert set(a.kept) <= set(b.kept)
    assert found[2].settings["scaled"] >= 1
    assert lwdna.Dna.from_json(found[0].to_json()) == found[0]
    assert dna.at(0.4, trust=("tests.factories",)) == found[1]  # built by its source


def test_floors_and_divisors_hold_at_every_budget() -> None:
    constraints = lwdna.Constraints(lwdna.Floors(0.25, 4, 0.25), divisor=4)
    dna = shrunk(plain(32), 0.7, widen=1.5, constraints=constraints).meta["lwdna"]
    other = dna.at(0.3, plain(32))
    for group in other.groups:
        if group.prunable:
            assert group.width >= 0.25 * group.widened
            assert group.width % 4 == 0 or group.width in (group.baseline, group.widened)
    assert other.note is None or "one factor scales all groups" in other.note


def test_budgets_out_of_reach_and_of_latency(dna: Any) -> None:
    with pytest.raises(lwdna.BudgetError, match="attainable"):
        dna.at(0.0001, plain(24))
    with pytest.raises(lwdna.BudgetError, match="above what this network reaches"):
        dna.at(9.0, plain(24))
    with pytest.raises(lwdna.LatencyError):
        dna.at(lwdna.Budget(latency=0.5), plain(24))
    with pytest.raises(lwdna.SourceError, match="pass trust="):
        dna.at(0.5)
    with pytest.raises(lwdna.SourceError, match="pass the model"):
        replace(dna, source=None).at(0.5)


# --- two DNAs ---


def test_a_comparison_names_what_differs(dna: Any) -> None:
    other = dna.at(0.3, plain(24))
    said = lwdna.diff(dna, other)
    assert {pair[0].name for pair in said.groups} == {
        a.name for a, b in zip(dna.groups, other.groups, strict=True) if a != b
    }
    assert said.fields == ("settings",)
    assert other.findings is None
    text = str(said)
    assert f"settings.scaled: None | {other.settings['scaled']}" in text
    assert "settings.constraints" not in text
    assert f"{dna.before.macs:,}" in text and f"{other.after.macs:,}" in text
    row = next(line.split() for line in text.splitlines() if line.startswith("inner"))
    widths = [next(g.width for g in d.groups if g.name == "inner") for d in (dna, other)]
    assert row[2:4] == [str(w) for w in widths]
    same = lwdna.diff(dna, lwdna.Dna.from_json(json.dumps(json.loads(dna.to_json()))))
    assert not same.groups and not same.fields and "groups are the same" in str(same)
    assert "–" in str(lwdna.diff(dna, shrunk(Hard()).meta["lwdna"]))
    with pytest.raises(TypeError, match="pass DNAs"):
        lwdna.diff(dna, Plain())  # type: ignore[arg-type]
