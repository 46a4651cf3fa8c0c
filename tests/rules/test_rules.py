"""Every rule has a sample, and every sample keeps the invariants."""

from __future__ import annotations

from collections import defaultdict
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.fx import GraphModule

from lwdna.errors import LwdnaError
from lwdna.fx_passes import channel_mode, verify
from lwdna.fx_passes.analyse import analyse
from lwdna.fx_passes.capture import capture
from lwdna.fx_passes.resize import resize
from lwdna.fx_passes.rules import registered, registry
from lwdna.graph import ChannelGraph, Copies
from tests.rules.all_samples import SAMPLES, Sample

every_sample = pytest.mark.parametrize("sample", SAMPLES, ids=[s.id for s in SAMPLES])


@cache
def prepared(sample: Sample) -> tuple[nn.Module, Any, GraphModule, ChannelGraph]:
    """The sample's network with non-trivial values, its input, capture and analysis."""
    torch.manual_seed(0)
    model = sample.net()
    verify.stir(model)
    x = sample.inputs()
    gm = capture(model, x)
    return model, x, gm, analyse(gm, x, policy=sample.policy)


def shrunk_copies(graph: ChannelGraph, sample: Sample) -> Copies:
    """About 30 % of every prunable group removed, at least one unit of each, two left."""
    rng = np.random.default_rng(sum(map(ord, sample.id)))
    copies = graph.keep_all()
    for group in graph.groups:
        if group.prunable:
            copies[rng.permutation(group.units)[: max(1, round(0.3 * group.width))]] = 0
            assert copies[group.units].sum() > 1
    return copies


def widened_copies(graph: ChannelGraph) -> Copies:
    """Alternately x2 and x1.5."""
    copies = graph.keep_all()
    for k, group in enumerate(g for g in graph.groups if g.prunable):
        copies[group.units[:: 1 + k % 2]] = 2
    return copies


@pytest.mark.parametrize("operator", sorted(registered()))
def test_every_rule_has_a_sample_that_reaches_it(operator: str) -> None:
    name = operator.removeprefix("aten::")
    samples = [s for s in SAMPLES if name in s.ops.split()]
    assert samples, f"the rule for {operator} has no sample in tests/rules/samples_*.py"


def test_samples_name_registered_operators_only() -> None:
    named = {name for s in SAMPLES for name in s.ops.split()}
    assert named <= {name.removeprefix("aten::") for name in registered()}
    assert len({s.id for s in SAMPLES}) == len(SAMPLES)


@every_sample
def test_the_operator_meets_its_rule_in_the_analysis(
    sample: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    met: set[str] = set()

    def noting(func: Any) -> Any:
        found = registry.rule_for(func)
        name = func.overloadpacket._qualified_op_name
        if found is not None and found is registered().get(name):
            met.add(name.removeprefix("aten::"))
        return found

    _, x, gm, _ = prepared(sample)
    monkeypatch.setattr(channel_mode, "rule_for", noting)
    analyse(gm, x, policy=sample.policy)
    assert set(sample.ops.split()) <= met


@every_sample
def test_exactly_the_expected_groups_are_prunable(sample: Sample) -> None:
    *_, graph = prepared(sample)
    assert {g.name: g.width for g in graph.groups if g.prunable} == dict(sample.prunable)
    found = defaultdict(str)
    for group in graph.groups:
        found[group.name.split("#")[0]] += str(group.reasons)
    for name, reason in sample.frozen.items():
        assert reason in found[name]


@every_sample
def test_all_kept_is_the_model_to_the_bit(sample: Sample) -> None:
    model, x, gm, graph = prepared(sample)
    verify.identity(model, gm, x)
    verify.identity(model, resize(gm, graph, graph.keep_all()), x)


@every_sample
def test_widening_and_back_is_the_model_to_the_bit(sample: Sample) -> None:
    _, x, gm, graph = prepared(sample)
    copies = widened_copies(graph)
    wide = resize(gm, graph, copies)
    wide_widths = {g.name: g.width for g in graph.restrict(copies).groups if g.prunable}
    assert all(wide_widths[name] > width for name, width in sample.prunable.items())
    verify.round_trip(gm, graph, copies, x)
    verify.restriction(graph, copies, wide)
    verify.cost(graph, copies, wide)
    verify.trains(wide, x)


@every_sample
def test_shrinking_is_masking(sample: Sample) -> None:
    model, x, gm, graph = prepared(sample)
    copies = shrunk_copies(graph, sample)
    with verify.untouched(model), verify.untouched(gm):
        small = resize(gm, graph, copies)
    kept = {g.name: g.width for g in graph.restrict(copies).groups if g.prunable}
    assert all(kept[name] < width for name, width in sample.prunable.items())
    verify.masked_equivalence(gm, graph, copies, small, x)
    verify.restriction(graph, copies, small)
    verify.cost(graph, copies, small)
    verify.trains(small, x)


@pytest.mark.parametrize(
    "sample", [s for s in SAMPLES if s.id in ("linear", "cat", "split")], ids=lambda s: s.id
)
def test_a_rule_that_forgets_a_coupling_is_caught(
    sample: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oracles are no formality: the same network under a broken rule fails them."""
    _, x, gm, _ = prepared(sample)
    monkeypatch.setattr(registry.OpCall, "couple", lambda self, a, b: None)
    with pytest.raises((LwdnaError, RuntimeError)):
        graph = analyse(gm, x, policy=sample.policy)
        copies = shrunk_copies(graph, sample)
        small = resize(gm, graph, copies)
        verify.masked_equivalence(gm, graph, copies, small, x)


def test_the_registry_refuses_a_second_rule() -> None:
    with pytest.raises(ValueError, match="already has a rule"):
        registry.rule(torch.ops.aten.cat)(lambda op: None)
    with pytest.raises(ValueError, match="aten::cat already has a rule"):
        registry.rule("aten::cat")(lambda op: None)


@pytest.mark.parametrize("name", ["cat", "aten.cat", "aten::cat.default", ""])
def test_the_registry_refuses_other_names(name: str) -> None:
    with pytest.raises(ValueError, match="library::name"):
        registry.rule(name)
