from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from lwdna.errors import ScoringError
from lwdna.scoring import ScoringContext, as_batches, criteria, preserved, score
from tests.scoring.networks import Net, analysed


@pytest.fixture
def context() -> ScoringContext:
    gm, graph = analysed(Net())
    gm.one.eval()  # a mixed mode, to be kept
    for p in gm.parameters():
        p.grad = torch.randn_like(p)
    gm.get_parameter("three.0.weight").requires_grad_(False)
    batch = (torch.randn(4, 3, 8, 8), torch.randint(5, (4,)))
    return ScoringContext(gm, graph, as_batches(batch, network=gm))


def state(network: nn.Module) -> dict[str, object]:
    return {
        "values": {k: v.clone() for k, v in network.state_dict().items()},
        "grads": {k: p.grad.clone() for k, p in network.named_parameters()},
        "flags": {k: p.requires_grad for k, p in network.named_parameters()},
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
    context.network(context.batches[0][0]).sum().backward()
    context.network.zero_grad(set_to_none=True)
    np.asarray(torch.rand(3))
    return np.arange(context.graph.units)


@pytest.mark.parametrize("criterion", [*criteria(), careless])
def test_network_and_random_state_are_untouched(context: ScoringContext, criterion) -> None:  # type: ignore[no-untyped-def]
    before = state(context.network)
    addresses = [p.data_ptr() for p in context.network.parameters()]
    score(context, criterion)
    assert_same(before, state(context.network))
    assert addresses == [p.data_ptr() for p in context.network.parameters()]


def test_untouched_after_an_error_too(context: ScoringContext) -> None:
    def fails(context: ScoringContext) -> np.ndarray:
        careless(context)
        raise KeyError("mine")

    before = state(context.network)
    with pytest.raises(KeyError, match="mine"):
        score(context, fails)
    assert_same(before, state(context.network))


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
    on_gpu = ScoringContext(network, context.graph, as_batches(context.batches, network=network))
    before, cuda = state(network), torch.cuda.get_rng_state()
    np.testing.assert_array_equal(score(on_gpu), score(on_gpu))
    assert_same(before, state(network))
    assert torch.equal(cuda, torch.cuda.get_rng_state())
