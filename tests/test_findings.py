"""What a search found on its way: compact, exact, and refused where it is damaged."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lwdna
from lwdna.findings import BINS, DECADES, Findings, _histogram
from lwdna.group_width import group_widths
from lwdna.selection import select
from lwdna.strict_json import build
from tests.scoring.networks import Residual
from tests.toys import graph_of, toy


def found(freeze: tuple[str, ...] = ()) -> tuple[Findings, lwdna.ChannelGraph, Any]:
    """Findings of a selection from a network whose saliencies are the numbers of its units."""
    graph = graph_of(Residual)
    wide = graph_of(Residual, 2).freeze(freeze)
    saliency = np.arange(wide.units, dtype=np.float64)
    limit = int(graph.cost().macs * 0.9)
    selection = select(wide, saliency, {"macs": limit})
    return Findings.of(graph, wide, saliency, selection, {}), wide, selection


def test_layers_add_up_to_the_costs_before_and_after() -> None:
    findings, _, selection = found()
    before = graph_of(Residual).cost()
    for when, cost in enumerate((before, selection.cost)):
        assert sum(layer.macs[when] for layer in findings.layers) == cost.macs
        assert sum(layer.params[when] for layer in findings.layers) == cost.params


def test_what_the_user_froze_says_so() -> None:
    name = next(g.name for g in graph_of(Residual, 2).groups if g.prunable)
    wide = graph_of(Residual)  # frozen groups are not widened, so nothing is here
    saliency = np.arange(wide.units, dtype=np.float64)
    frozen = wide.freeze([name])
    selection = select(frozen, saliency, {"macs": wide.cost().macs})
    findings = Findings.of(wide, frozen, saliency, selection, {})
    assert findings.frozen[name] == (("frozen by the user", name),)
    assert name not in findings.saliency


def test_a_network_that_cannot_change_has_no_histogram() -> None:
    graph = toy()
    selection = lwdna.Selection(graph.keep_all(), graph.cost(), {}, float("inf"))
    findings = Findings.of(graph, graph, np.zeros(graph.units), selection, {})
    assert findings.histogram is None and findings.threshold is None
    assert read(plain(findings)) == findings


@settings(deadline=None)
@given(
    st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=50)
    | st.lists(st.floats(0, 1e3), min_size=1, max_size=50)
)
def test_every_unit_is_in_one_bin(values: list[float]) -> None:
    saliency = np.array(values)
    copies = np.arange(len(values)) % 2
    histogram = _histogram(saliency, copies)
    assert histogram is not None
    assert sum(histogram.kept) == copies.sum()
    assert sum(histogram.removed) == len(values) - copies.sum()
    assert histogram.log == (saliency.min() > -1e-300 and saliency.max() >= 1e-300)
    assert (np.diff(histogram.edges) > 0).all() and len(histogram.edges) == BINS + 1
    if histogram.log:
        assert histogram.most / histogram.least < 10.0 ** (DECADES + 1)


def plain(findings: Findings) -> Any:
    return json.loads(json.dumps(asdict(findings)))


def read(data: Any) -> Findings:
    found: Findings = build(Findings, data, "findings")
    return found


def test_json_gives_the_same_findings() -> None:
    findings, _, _ = found()
    assert read(plain(findings)) == findings


DAMAGE = [
    ("saliency", []),
    ("saliency", {"conv": [1, 2, 3, 4]}),
    ("saliency", {"conv": [1, 2, 3, 4, 3]}),
    ("saliency", {"conv": ["1"] * 5}),
    ("threshold", "0"),
    ("histogram", []),
    ("histogram", {"log": True}),
    ("histogram.least", 0.0),
    ("histogram.most", -1.0),
    ("histogram.least", float("nan")),
    ("histogram.log", 1),
    ("histogram.kept", [1] * (BINS - 1)),
    ("histogram.kept", [-1] * BINS),
    ("histogram.removed", [True] * BINS),
    ("layers", [{"path": 3, "macs": [1, 1], "params": [1, 1]}]),
    ("layers", [{"path": "a", "macs": [1], "params": [1, 1]}]),
    ("layers", [{"path": "a", "macs": [1, -1], "params": [1, 1]}]),
    ("layers", [{"path": "a", "macs": [1, 1.5], "params": [1, 1]}]),
    ("layers", 3),
    ("frozen", {"conv": [["why"]]}),
    ("frozen", {"conv": [["why", 3]]}),
    ("axes", {"view": None}),
    ("axes", ["view"]),
    ("other", 1),
]


@pytest.mark.parametrize(("field", "value"), DAMAGE, ids=[f"{f}={v}"[:40] for f, v in DAMAGE])
def test_damaged_findings_are_refused(field: str, value: Any) -> None:
    data = plain(found()[0])
    changed = deepcopy(data)
    *path, last = field.split(".")
    (changed[path[0]] if path else changed)[last] = value
    with pytest.raises(lwdna.DnaError):
        read(changed)
    assert read(data)


def test_findings_of_other_widths_or_costs_are_refused() -> None:
    findings, wide, selection = found()
    graph = graph_of(Residual)
    groups = group_widths(graph, wide, selection.copies)
    before, after = graph.cost(), selection.cost
    findings.check(groups, before, after)
    free = next(k for k, group in enumerate(groups) if group.prunable)
    fewer = replace(groups[free], width=groups[free].width - 1, kept=groups[free].kept[1:])
    for others, message in (
        ([*groups[:free], fewer, *groups[free + 1 :]], "of other widths"),
        ([*groups[:free], *groups[free + 1 :]], "of other channel groups"),
        ([replace(g, prunable=True) for g in groups], "of other channel groups"),
    ):
        with pytest.raises(lwdna.DnaError, match=message):
            findings.check(others, before, after)
    for costs in (
        (before, replace(after, macs=after.macs - 1)),
        (replace(before, params=1), after),
    ):
        with pytest.raises(lwdna.DnaError, match="the DNA says"):
            findings.check(groups, *costs)
