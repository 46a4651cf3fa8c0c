from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lwdna.errors import ScoringError
from lwdna.scoring import Batch, LossFn, Scoring, ScoringContext, batch_loss
from tests.scoring.networks import Net, analysed

X, Y = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])


def batch(x: Tensor, y: Any) -> Batch:
    return Batch((x,), y, (x, y), len(x))


def make_context(
    model: nn.Module | None = None, x: Tensor = X, y: Any = Y, loss_fn: LossFn | None = None
) -> ScoringContext:
    gm, graph = analysed(model or Net())
    return ScoringContext(gm.eval(), graph, [batch(x, y)], loss_fn)


class Dense(nn.Module):
    """Returns what a segmentation network returns."""

    def __init__(self, wrap: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.conv, self.wrap = nn.Conv2d(3, 5, 1), wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(self.conv(x))


def test_default_is_cross_entropy() -> None:
    context = make_context()
    assert torch.equal(batch_loss(context, 0), F.cross_entropy(context.network(X), Y))


def test_a_loss_of_ones_own() -> None:
    context = make_context(y=2.0, loss_fn=lambda out, y: (out - y).abs().mean())
    assert torch.equal(batch_loss(context, 0), (context.network(X) - 2.0).abs().mean())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: x,
        lambda x: OrderedDict(out=x, aux=0 * x),
        lambda x: OrderedDict(aux=0 * x, out=x),
        lambda x: {"logits": x},
    ],
)
def test_segmentation_targets_and_dict_outputs(wrap: Callable[[Tensor], Any]) -> None:
    y = torch.randint(5, (4, 8, 8))
    context = make_context(Dense(wrap), y=y)
    expected = F.cross_entropy(context.network.get_submodule("conv")(X), y)
    assert torch.equal(batch_loss(context, 0), expected)


def test_ones_own_loss_sees_the_whole_output() -> None:
    context = make_context(Dense(lambda x: {"out": x}), loss_fn=lambda out, _: out["out"].sum())
    assert batch_loss(context, 0).requires_grad


def test_tensors_take_the_place_of_parameters_and_buffers_stay() -> None:
    context = make_context()
    context.network.train()
    before = {name: b.clone() for name, b in context.network.named_buffers()}
    bias = torch.full((5,), 3.0, requires_grad=True)
    (grad,) = torch.autograd.grad(batch_loss(context, 0, {"fc.bias": bias}), [bias])
    assert grad.any()
    assert all(torch.equal(b, before[name]) for name, b in context.network.named_buffers())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"batches": [batch(X[:, :1], Y)]},
            r"refuses batch 0 of shape \(4, 1, 8, 8\).*\(N, 3, 8, 8\)",
        ),
        ({"batches": [batch(X.long(), Y)]}, r"dtype torch.int64"),
        ({"batches": [batch(X, Y[:3])]}, r"loss refuses batch 0.*\(4, 5\).*\(3,\).*own loss"),
        ({"batches": [batch(X, Y + 99)]}, "loss refuses batch 0.*out of bounds"),
        ({"batches": [batch(X, "cat")]}, "targets of shape a str"),
        ({"loss_fn": lambda out, y: out.square()}, r"loss of batch 0 is \(4, 5\), not a scalar"),
        ({"loss_fn": lambda out, y: 3.0}, "is a float, not a scalar"),
        ({"loss_fn": lambda out, y: out.sum() / 0}, "loss of batch 0 is -?inf"),
        ({"loss_fn": lambda out, y: out.sum() * float("nan")}, "loss of batch 0 is nan"),
        ({"loss_fn": lambda out, y: out.detach().sum()}, "depends on no parameter.*detach"),
    ],
)
def test_refusals(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ScoringError, match=f"(?s){message}"):
        batch_loss(replace(make_context(), **change), 0)


def test_no_default_loss_for_tuples() -> None:
    with pytest.raises(ScoringError, match=r"returns a tuple.*pass loss_fn"):
        batch_loss(make_context(Dense(lambda x: (x, x))), 0)


def test_a_loss_over_tuple_outputs() -> None:
    context = make_context(
        Dense(lambda x: (x, x.mean((2, 3)))),
        loss_fn=lambda out, y: out[0].square().mean() + F.cross_entropy(out[1], y),
    )
    dense = context.network.get_submodule("conv")(X)
    expected = dense.square().mean() + F.cross_entropy(dense.mean((2, 3)), Y)
    assert torch.equal(batch_loss(context, 0), expected)


def test_a_step_function_sees_the_batch_as_it_came() -> None:
    seen: list[Any] = []

    def step(model: Any, whole: Any) -> Tensor:
        seen.append(whole)
        return model(whole[0]).square().mean()

    context = replace(make_context(), step_fn=step)
    assert torch.equal(batch_loss(context, 0), context.network(X).square().mean())
    assert torch.equal(seen[0][0], X) and torch.equal(seen[0][1], Y)


def test_a_step_function_may_change_its_batch_in_place() -> None:
    def step(model: Any, whole: Any) -> Tensor:
        return model(whole[0].mul_(2)).square().mean()

    context, before = replace(make_context(), step_fn=step), X.clone()
    first = batch_loss(context, 0)
    assert torch.equal(first, batch_loss(context, 0)) and torch.equal(X, before)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (lambda model, b: model(b[0]), r"loss of batch 0 is \(4, 5\), not a scalar"),
        (lambda model, b: model(b[0]).mean() / 0, "loss of batch 0 is -?inf"),
        (lambda model, b: model(b[0]).mean().item(), "is a float, not a scalar"),
        (lambda model, b: b[0].mean(), "depends on no parameter"),
        (lambda model, b: F.cross_entropy(model(b[0]), b[1][:2]), "step_fn fails on batch 0: Val"),
        (lambda model, b: model(b[0][:, :2]).sum(), r"network refuses batch 0 .*\(4, 2, 8, 8\)"),
    ],
)
def test_what_a_step_function_does_wrong(step: Any, message: str) -> None:
    with pytest.raises(ScoringError, match=f"(?s){message}"):
        batch_loss(replace(make_context(), step_fn=step), 0)


def test_bfloat16_losses_are_float32() -> None:
    for loss_fn in (None, lambda out, y: out.square().mean()):
        context = make_context(loss_fn=loss_fn)
        full, half = (
            batch_loss(replace(context, options=Scoring(bfloat16=on)), 0) for on in (False, True)
        )
        assert half.dtype is torch.float32 and half != full
        torch.testing.assert_close(half, full, rtol=0.03, atol=0)


def test_an_outer_autocast_has_no_say() -> None:
    context = make_context()
    expected = batch_loss(context, 0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(batch_loss(context, 0), expected)
