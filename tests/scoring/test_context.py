from __future__ import annotations

import copy
import gc
import weakref
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lwdna.errors import ScoringError
from lwdna.scoring import (
    SGD,
    Scoring,
    ScoringContext,
    as_batches,
    criteria,
    generated,
    preserved,
    score,
)
from tests.scoring.networks import Net, analysed, made


@pytest.fixture
def context() -> ScoringContext:
    gm, graph = analysed(made(Net))
    gm.one.eval()  # a mixed mode, to be kept
    for p in gm.parameters():
        p.grad = torch.randn_like(p)
    gm.get_parameter("three.0.weight").requires_grad_(False)
    batches = [(torch.randn(4, 3, 8, 8), torch.randint(5, (4,))) for _ in range(2)]
    return ScoringContext(gm, graph, as_batches(batches, network=gm))


def state(network: nn.Module) -> dict[str, object]:
    return {
        "values": {k: v.clone() for k, v in network.state_dict().items()},
        "grads": {k: p.grad.clone() for k, p in network.named_parameters()},
        "flags": {k: p.requires_grad for k, p in network.named_parameters()},
        "addresses": {k: t.data_ptr() for k, t in network.state_dict().items()},
        "objects": {k: id(t) for k, t in network.state_dict(keep_vars=True).items()},
        "modes": {k: m.training for k, m in network.named_modules()},
        "rng": torch.get_rng_state(),
    }


def assert_same(a: object, b: object) -> None:
    if isinstance(a, dict):
        assert isinstance(b, dict) and a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, torch.Tensor):
        assert isinstance(b, torch.Tensor) and torch.equal(a, b)
    else:
        assert a == b


def careless(context: ScoringContext) -> np.ndarray:
    context.network.train().requires_grad_(True)
    context.network(*context.batches[0].inputs).sum().backward()
    context.network.zero_grad(set_to_none=True)
    np.asarray(torch.rand(3))
    return np.arange(context.graph.units)


OPTIONS = {
    "plain": Scoring(),
    "steps": Scoring(sgd=SGD()),
    "bfloat16": Scoring(bfloat16=True),
    "pieces": Scoring(micro_batch=1),
    "all": Scoring(sgd=SGD(), bfloat16=True, micro_batch=2, average="exponential"),
}


@pytest.mark.parametrize("criterion", [*criteria(), careless])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_network_and_random_state_are_untouched(
    context: ScoringContext, criterion: Any, options: Scoring
) -> None:
    before = state(context.network)
    grads = {name: id(p.grad) for name, p in context.network.named_parameters()}
    score(replace(context, options=options), criterion)
    assert_same(before, state(context.network))
    assert grads == {name: id(p.grad) for name, p in context.network.named_parameters()}


def test_generated_leaves_the_network_alone(context: ScoringContext) -> None:
    before = state(context.network)
    for options in OPTIONS.values():
        generated(replace(context, options=options))
    assert_same(before, state(context.network))


def test_a_buffer_put_in_the_place_of_another_goes_again(context: ScoringContext) -> None:
    def replaces(context: ScoringContext) -> np.ndarray:
        norm = context.network.get_submodule("two.1")
        norm.running_mean = torch.ones(8)
        return np.ones(context.graph.units)

    before = state(context.network)
    score(context, replaces)
    assert_same(before, state(context.network))


def test_a_scored_context_keeps_no_cycle(context: ScoringContext) -> None:
    gc.collect()
    gc.disable()
    try:
        for criterion in criteria():
            mine = replace(context, options=Scoring(sgd=SGD(), micro_batch=2))
            score(mine, criterion)
            gone = weakref.ref(mine)
            del mine
            assert gone() is None, criterion
    finally:
        gc.enable()


def test_finished_work_belongs_to_one_context(context: ScoringContext) -> None:
    score(context, "latent-grad")
    assert context.finished and not replace(context).finished
    assert not replace(context, seed=1).finished


def test_untouched_after_an_error_too(context: ScoringContext) -> None:
    def fails(context: ScoringContext) -> np.ndarray:
        careless(context)
        raise KeyError("mine")

    before = state(context.network)
    with pytest.raises(KeyError, match="mine"):
        score(context, fails)
    assert_same(before, state(context.network))


def test_a_parameter_put_in_the_place_of_another_is_an_error(context: ScoringContext) -> None:
    def replaces(context: ScoringContext) -> np.ndarray:
        layer = context.network.get_submodule("two.0")
        layer.weight = nn.Parameter(layer.weight.detach().clone())
        return np.ones(context.graph.units)

    with pytest.raises(ScoringError, match=r"changed parameter 'two\.0\.weight'"):
        score(context, replaces)


@pytest.mark.parametrize(
    "change",
    [
        lambda p: p.data.mul_(1.5),  # unseen by autograd's version counter
        lambda p: setattr(p, "data", p.data.clone()),
        lambda p: p.detach().zero_(),
    ],
)
def test_a_changed_parameter_is_an_error(context: ScoringContext, change) -> None:  # type: ignore[no-untyped-def]
    parameter = context.network.get_parameter("two.0.weight")
    changed = pytest.raises(ScoringError, match=r"changed parameter 'two\.0\.weight'")
    with changed, preserved(context.network, 0):
        change(parameter)


def test_random_state_inside_comes_from_the_seed(context: ScoringContext) -> None:
    def draw(seed: int) -> torch.Tensor:
        with preserved(context.network, seed):
            return torch.rand(4)

    assert torch.equal(draw(3), draw(3)) and not torch.equal(draw(3), draw(4))


def test_device_of_a_network_without_parameters() -> None:
    gm, graph = analysed(Net())
    assert ScoringContext(nn.ReLU(), graph).device == torch.device("cpu")
    assert ScoringContext(copy.deepcopy(gm), graph).device == torch.device("cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu(context: ScoringContext) -> None:
    network = context.network.cuda()
    batches = as_batches([batch.whole for batch in context.batches], network=network)
    on_gpu = ScoringContext(network, context.graph, batches)
    before, cuda = state(network), torch.cuda.get_rng_state()
    np.testing.assert_array_equal(score(on_gpu), score(on_gpu))
    assert_same(before, state(network))
    assert torch.equal(cuda, torch.cuda.get_rng_state())
