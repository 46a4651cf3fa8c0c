from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lwdna.errors import ScoringError
from lwdna.scoring import SGD, Scoring, ScoringContext, batch_loss, criteria, get, score
from lwdna.scoring.probing import mixes_samples, uncut
from lwdna.scoring.running import Model
from tests.scoring.networks import NETWORKS, Net, Residual, Tokens, context_of, conv, made

WITH_DATA = ("latent-grad", "latent-magnitude", "taylor", "snip", "grasp", "fisher")


def same(actual: np.ndarray, expected: np.ndarray) -> None:
    assert np.abs(expected).max() > 0
    np.testing.assert_allclose(actual, expected, rtol=1e-10, atol=1e-10 * np.abs(expected).max())


def with_options(context: ScoringContext, **options: Any) -> ScoringContext:
    return replace(context, options=replace(context.options, **options))


class Plain(nn.Module):
    """No batch norm: it treats samples one by one. In place where it can."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=2)
        self.act, self.drop, self.fc = nn.SiLU(inplace=True), nn.Dropout(0.2), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.one(x))
        return self.fc(self.drop(self.act(self.two(x)).mean((2, 3))))


class InPlace(nn.Module):
    """Activations and sums that write over what a batch norm returned, and over the input."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.bn1, self.act = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Hardswish(True)
        self.two, self.bn2, self.fc = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x -= 0.5
        x = self.act(self.bn1(self.one(x)))
        y = self.bn2(self.two(x))
        half = y[:, :4]
        y = y + 0.1
        half += 1  # not seen by y
        y += x
        y = y.mul_(1.5)
        return self.fc(torch.tanh(y).mean((2, 3)) + half.mean())


@pytest.mark.parametrize("name", WITH_DATA)
@pytest.mark.parametrize("model", [Residual, InPlace, Tokens, Plain])
@pytest.mark.parametrize("sgd", [None, SGD(lr=0.01)])
def test_pieces_give_the_same_scores(name: str, model: type[nn.Module], sgd: SGD | None) -> None:
    # Samples one by one: dropout would draw other masks. Mixed: it draws the same ones.
    dropout = 0.0 if model in (Tokens, Plain) else 0.2
    options = Scoring(sgd=sgd)
    context = context_of(made(model, dropout=dropout), samples=7, options=options)
    whole = score(context, name)
    for micro_batch in (1, 3, 4, 7, 9):
        same(score(with_options(context, micro_batch=micro_batch), name), whole)


@pytest.mark.parametrize("model", [Residual, Plain])
def test_pieces_with_a_step_function(model: type[nn.Module]) -> None:
    def step(model: Any, batch: Any) -> Tensor:
        return F.cross_entropy(model(batch["x"]), batch["y"]) + model(x=batch["x"]).square().mean()

    batches = [{"x": torch.randn(5, 3, 8, 8), "y": torch.randint(5, (5,))} for _ in range(2)]
    context = context_of(made(model, dropout=0), batches, step_fn=step)
    for name in WITH_DATA:
        same(score(with_options(context, micro_batch=2), name), score(context, name))


def test_criteria_without_data_ignore_the_size_of_pieces() -> None:
    context = context_of(made(Residual))
    for name in set(criteria()) - set(WITH_DATA):
        a, b = (score(c, name) for c in (context, with_options(context, micro_batch=1)))
        np.testing.assert_array_equal(a, b)


class Sizes:
    """Number of samples in every run of a module."""

    def __init__(self, module: nn.Module) -> None:
        self.seen: list[int] = []
        module.register_forward_hook(lambda m, args, out: self.seen.append(len(out)))


@pytest.mark.parametrize("name", ["latent-grad", "taylor", "grasp", "fisher"])
@pytest.mark.parametrize(("micro_batch", "pieces"), [(1, [1] * 7), (3, [3, 3, 1]), (7, [7])])
def test_no_piece_is_larger_than_asked_for(name: str, micro_batch: int, pieces: list[int]) -> None:
    context = context_of(made(Tokens, dropout=0), 1, samples=7)
    sizes = Sizes(context.network.get_submodule("two"))
    score(with_options(context, micro_batch=micro_batch), name)
    probes = [2, 2, 1] if micro_batch < 7 else []
    assert sizes.seen[: len(probes) + len(pieces)] == probes + pieces
    assert max(sizes.seen[len(probes) :]) == micro_batch


@pytest.mark.parametrize("name", ["latent-grad", "taylor", "fisher"])
def test_only_the_boundaries_of_stretches_are_kept(name: str) -> None:
    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convs = nn.Sequential(*(conv(3 if k == 0 else 8, 8) for k in range(8)))
            self.fc = nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.convs(x).mean((2, 3)))

    context = context_of(made(Chain), 1, samples=16)

    alive: list[int] = []

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        shape = (16, 8, 8, 8)  # of an activation
        gc.collect()
        tensors = (t for t in gc.get_objects() if type(t) is Tensor)
        alive.append(sum(t.shape == shape for t in tensors))
        return F.cross_entropy(outputs, targets)

    for micro_batch in (None, 2):
        run = with_options(context, micro_batch=micro_batch)
        score(replace(run, loss_fn=loss), name)
    whole, pieces = alive
    assert whole >= 15  # what convolutions and batch norms returned, kept by autograd
    assert pieces <= 8 + 3  # eight stretches; the last is not computed again


@pytest.mark.parametrize("model", NETWORKS)
def test_batch_norms_mix_samples_in_training_only(model: type[nn.Module]) -> None:
    context = context_of(made(model, dropout=0), 1)
    inputs = (context.batches[0].inputs, {})
    assert mixes_samples(context.network.train(), {}, inputs) == (model is not Tokens)
    assert not mixes_samples(context.network.eval(), {}, inputs)


class Wrapped(Plain):
    def __init__(self, wrap: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.wrap, self.drop.p = wrap, 0.0

    def forward(self, x: Tensor) -> Any:
        return self.wrap(super().forward(x))


@pytest.mark.parametrize(
    ("wrap", "mixes"),
    [
        (lambda x: x, False),
        (lambda x: (x, {"more": x.sigmoid() > 0.5}), False),
        (lambda x: (x, x.argmax(1)), False),
        (lambda x: x - x.mean(0), True),
        (lambda x: x - 1e-3 * x.amax(0, keepdim=True), True),
        (lambda x: x.cumsum(0).flip(0), True),
        (lambda x: x.T, True),  # the samples stand in the second dimension
        (lambda x: (x, x.square().mean()), True),  # an auxiliary loss
        (lambda x: (x, torch.arange(6.0)), True),  # belongs to no sample
    ],
)
def test_unusual_mixing_is_noticed(wrap: Callable[[Tensor], Any], mixes: bool) -> None:
    model = made(Plain)
    network = Wrapped(wrap)
    network.load_state_dict(model.state_dict())

    def loss(outputs: Any, targets: Tensor) -> Tensor:
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        first = outputs[0] if outputs[0].shape[0] == 6 else outputs[0].T
        extra = outputs[1] if len(outputs) > 1 and isinstance(outputs[1], Tensor) else first
        return F.cross_entropy(first, targets) + extra.double().square().mean()

    context = context_of(network, 1, samples=6, loss_fn=loss)
    inputs = (context.batches[0].inputs, {})
    assert mixes_samples(context.network, {}, inputs) == mixes
    for name in ("latent-grad", "fisher"):
        same(score(with_options(context, micro_batch=4), name), score(context, name))


def test_the_graph_is_not_cut_before_a_change_in_place() -> None:
    context = context_of(made(InPlace), 1)
    network: Any = context.network
    nodes = [node.name for node in network.graph.nodes if node.op != "placeholder"]
    forbidden = uncut(network.train(), {}, (context.batches[0].inputs, {}))
    at = nodes.index
    changed = {"act": "bn1", "iadd": "bn2", "iadd_1": "add", "mul_": "add"}
    expected = set(range(at("isub") + 1)) if "isub" in nodes else set()
    for node, opened in changed.items():
        expected |= set(range(at(opened) + 1, at(node) + 1))
    assert forbidden == expected and len(forbidden) < len(nodes) - 3


def test_the_batch_survives_a_network_that_writes_over_its_input() -> None:
    context = context_of(made(InPlace), 1)
    before = context.batches[0].inputs[0].clone()
    for micro_batch in (None, 2):
        score(with_options(context, micro_batch=micro_batch), "taylor")
        assert torch.equal(context.batches[0].inputs[0], before)


def test_masks_of_dropout_differ_where_samples_are_split() -> None:
    context = context_of(made(Tokens, dropout=0.5), 1)
    a, b = (score(c) for c in (context, with_options(context, micro_batch=1)))
    assert np.corrcoef(a, b)[0, 1] > 0.5 and (a != b).any()
    np.testing.assert_array_equal(b, score(with_options(context, micro_batch=1)))


def test_only_captured_networks_are_split_in_depth() -> None:
    context = context_of(made(Net), 1)
    plain = replace(with_options(context, micro_batch=2), network=made(Net).double().train())
    with pytest.raises(ScoringError, match=r"this is a Net: pass lwdna\.capture"):
        batch_loss(plain, 0)


def test_a_tied_weight_is_replaced_wherever_it_is_used() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.a, self.b = (nn.Conv2d(3, 6, 1), *(nn.Conv2d(6, 6, 3) for _ in "ab"))
            self.b.weight, self.fc = self.a.weight, nn.Linear(6, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(torch.tanh(self.b(torch.tanh(self.a(self.stem(x))))).mean((2, 3)))

    context = context_of(made(Tied), 1)
    parameters = dict(context.network.named_parameters())
    assert "b.weight" not in parameters
    grads = torch.autograd.grad(batch_loss(context, 0), list(parameters.values()))
    expected = np.zeros(context.graph.units)
    for (name, p), g in zip(parameters.items(), grads, strict=True):
        gp = (g * p).detach().flatten(1).sum(1) if p.dim() > 1 else (g * p).detach()
        np.add.at(expected, context.graph.tensors[name][0], gp.numpy())
    prunable = context.graph.prunable[context.graph.group_of]
    for micro_batch in (None, 2):
        actual = score(with_options(context, micro_batch=micro_batch), "taylor")
        same(actual[prunable], expected[prunable] ** 2)


def test_a_model_shows_its_network_and_takes_its_arguments() -> None:
    network = nn.Linear(2, 3)
    other = {"weight": torch.ones(3, 2), "bias": torch.zeros(3)}
    model = Model(network, other)
    assert torch.equal(model(torch.ones(4, 2)), torch.full((4, 3), 2.0))
    assert torch.equal(model(input=torch.ones(4, 2)), torch.full((4, 3), 2.0))
    assert dict(model.named_parameters()).keys() == {"network.weight", "network.bias"}


def test_weights_are_freed_with_their_batch() -> None:
    context = context_of(made(Residual), 2)
    seen: list[weakref.ref[Any]] = []
    outputs: list[weakref.ref[Any]] = []

    def loss(out: Tensor, targets: Tensor) -> Tensor:
        outputs.append(weakref.ref(out))
        return F.cross_entropy(out, targets)

    original = torch.Tensor.register_post_accumulate_grad_hook

    gc.collect()
    gc.disable()
    try:
        with pytest.MonkeyPatch.context() as patch:

            def register(self: Tensor, hook: Any) -> Any:
                if len(seen) >= 3:
                    assert all(ref() is None for ref in seen[:3])  # the first batch's
                seen.append(weakref.ref(self))
                return original(self, hook)

            patch.setattr(torch.Tensor, "register_post_accumulate_grad_hook", register)
            run = replace(context, loss_fn=loss)
            score(run, get("latent-grad"))
        assert len(seen) == 6 and all(ref() is None for ref in (*seen, *outputs))
        finished = [weakref.ref(h) for h, _ in run.finished.values()]
        del run
        assert finished and all(ref() is None for ref in finished)
    finally:
        gc.enable()
