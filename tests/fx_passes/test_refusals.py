"""Networks without values: what needs none works on them, and what needs some says so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import lwdna
from lwdna.fx_passes.module import meta_twin
from lwdna.fx_passes.reinitialise import reinitialise
from lwdna.fx_passes.verify import measured_cost
from tests.factories import hard, plain

X = torch.randn(2, 3, 16, 16)


def parts(model: nn.Module) -> tuple[nn.Module, lwdna.ChannelGraph]:
    gm = lwdna.capture(model, X)
    return gm, lwdna.analyse(gm, X)


@pytest.mark.parametrize("make", [plain, hard])
def test_structure_needs_no_values(make: Callable[[], nn.Module]) -> None:
    """Sizes and costs are those of the network with values."""
    real, blank = parts(make()), parts(meta_twin(make()))
    wide, wide_graph = lwdna.widen(*blank, 1.5)
    expected, expected_graph = lwdna.widen(*real, 1.5)
    assert shapes(wide) == shapes(expected) and wide_graph.cost() == expected_graph.cost()
    assert all(p.is_meta for p in wide.parameters())
    copies = wide_graph.keep_all()
    group = next(g for g in wide_graph.groups if g.prunable)
    copies[group.units[1:]] = 0
    copies = wide_graph.completed(copies)
    small = lwdna.shrink_graph(wide, wide_graph, copies)
    assert shapes(small) == shapes(lwdna.shrink_graph(expected, expected_graph, copies))
    assert measured_cost(small, X[:1]) == measured_cost(
        lwdna.shrink_graph(expected, expected_graph, copies), X[:1]
    )
    model = meta_twin(make())
    assert str(lwdna.explain(model, X)) == str(lwdna.explain(make(), X))
    assert lwdna.attainable(model, example_inputs=X) == lwdna.attainable(make(), example_inputs=X)


def shapes(net: nn.Module) -> dict[str, torch.Size]:
    return {name: t.shape for name, t in net.state_dict().items()}


def fresh(model: nn.Module) -> None:
    gm, graph = parts(model)
    reinitialise(gm, gm, graph, seed=0)


def scored(model: nn.Module) -> None:
    gm, graph = parts(model)
    lwdna.score(lwdna.ScoringContext(gm, graph), "magnitude")


NEED: dict[str, Callable[[nn.Module], Any]] = {
    "shrink": lambda m: lwdna.shrink(m, 0.8, criterion="magnitude", example_inputs=X),
    "verify": lambda m: lwdna.verify(m, X),
    "measure_latency": lambda m: lwdna.measure_latency(m, X, configurations=4),
    "reinitialise": fresh,
    "score": scored,
}


@pytest.mark.parametrize("name", NEED)
@pytest.mark.parametrize("partly", [False, True])
def test_what_needs_values_says_so(name: str, partly: bool) -> None:
    model = plain()
    if partly and name != "score":
        model.bn.running_mean = model.bn.running_mean.to("meta")  # type: ignore[union-attr]
        missing = "'bn.running_mean'"
    else:
        model.to("meta")
        missing = "the network" if name == "score" else "'stem.weight'"
    with pytest.raises(lwdna.LwdnaError, match=f"{missing} is on the meta device, and .* need"):
        NEED[name](model)
