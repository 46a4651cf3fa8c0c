from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from lwdna.errors import ScoringError
from lwdna.scoring import SGD, Scoring, ScoringContext, score
from tests.scoring.networks import NETWORKS, Net, Overflow, Residual, Transposed, context_of, made

LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


def filters(context: ScoringContext) -> dict[str, tuple[int, Any]]:
    """Weight -> (its output dimension, unit of each filter)."""
    result = {}
    for name, module in context.network.named_modules():
        if isinstance(module, LAYERS):
            dim = 1 if isinstance(module, nn.ConvTranspose2d) else 0
            result[f"{name}.weight"] = (dim, context.graph.tensors[f"{name}.weight"][dim])
    return result


def by_unit(
    context: ScoringContext, values: dict[str, Tensor], *, vectors: bool = False
) -> np.ndarray:
    """Sum of every unit's filters, filter by filter; or of its biases, gains and shifts, too."""
    result = np.zeros(context.graph.units)
    for name, (dim, units) in filters(context).items():
        for k, unit in enumerate(units):
            result[unit] += values[name].select(dim, k).sum().item()
    for name, value in values.items():
        if vectors and value.dim() == 1:
            for unit, entry in zip(context.graph.tensors[name][0], value, strict=True):
                result[unit] += entry.item()
    return result


def gradients(network: nn.Module, batch: Any) -> dict[str, Tensor]:
    network.zero_grad()
    F.cross_entropy(network(*batch.inputs), batch.targets).backward()
    return {name: p.grad.clone() for name, p in network.named_parameters()}


@pytest.mark.parametrize("model", NETWORKS)
def test_taylor_and_snip_filter_by_filter(model: type[nn.Module]) -> None:
    context = context_of(made(model, dropout=0))
    network = copy.deepcopy(context.network).train()
    squares, moduli = [], []
    for batch in context.batches:
        g = gradients(network, batch)
        gw = {name: g[name] * p.detach() for name, p in network.named_parameters()}
        squares.append(by_unit(context, gw, vectors=True) ** 2)
        moduli.append(by_unit(context, {name: v.abs() for name, v in gw.items()}))
    np.testing.assert_allclose(score(context, "taylor"), np.mean(squares, 0), rtol=1e-9)
    np.testing.assert_allclose(score(context, "snip"), np.mean(moduli, 0), rtol=1e-9)


def test_taylor_is_the_squared_first_order_change_of_the_loss() -> None:
    context = context_of(made(Residual, dropout=0), 1)
    network, batch = copy.deepcopy(context.network).train(), context.batches[0]
    saliency, eps = score(context, "taylor"), 1e-6
    for unit in context.graph.groups[1].units[:3]:  # of the residual stage: two filters each
        losses = []
        for factor in (1 + eps, 1 - eps):
            w = {name: p.detach().clone() for name, p in network.named_parameters()}
            for name, (dim, units) in filters(context).items():
                w[name].movedim(dim, 0)[torch.as_tensor(units == unit)] *= factor
            for name, value in w.items():
                if value.dim() == 1:
                    units = context.graph.tensors[name][0]
                    value[torch.as_tensor(units == unit)] *= factor
            losses.append(F.cross_entropy(functional_call(network, w, batch.inputs), batch.targets))
        change = (losses[0] - losses[1]).item() / (2 * eps)
        assert saliency[unit] == pytest.approx(change**2, rel=1e-5)


def test_taylor_is_no_noise_behind_batch_norms() -> None:
    """There it is the effect of the norm's output: what a mask behind the norm would get."""
    context = context_of(made(Net, dropout=0), 1)
    network, batch = copy.deepcopy(context.network).train(), context.batches[0]
    for name in ("one", "two", "three"):
        mask = torch.ones(1, 8, 1, 1, dtype=torch.float64, requires_grad=True)
        norm = network.get_submodule(f"{name}.1")
        handle = norm.register_forward_hook(lambda m, args, out, mask=mask: out * mask)
        loss = F.cross_entropy(network(*batch.inputs), batch.targets)
        handle.remove()
        expected = torch.autograd.grad(loss, mask)[0].flatten().square()
        units = context.graph.tensors[f"{name}.0.weight"][0]
        # Filters add what the norm's eps leaves of them.
        np.testing.assert_allclose(score(context, "taylor")[units], expected, rtol=0.01)


class Tiny(nn.Module):
    """So few parameters that the Hessian can be written out."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.up, self.fc = nn.ConvTranspose2d(3, 2, 2), nn.Linear(2, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.one(x))
        x = torch.tanh(x + self.two(x))
        return self.fc(torch.tanh(self.up(x)).mean((2, 3)))


def flat_loss(network: nn.Module, batch: Any) -> Any:
    names = [name for name, _ in network.named_parameters()]
    shapes = [p.shape for p in network.parameters()]

    def unpack(flat: Tensor) -> dict[str, Tensor]:
        parts = flat.split([shape.numel() for shape in shapes])
        return {n: t.view(shape) for n, t, shape in zip(names, parts, shapes, strict=True)}

    def loss(flat: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(network, unpack(flat), batch.inputs), batch.targets)

    return loss, torch.nn.utils.parameters_to_vector(network.parameters()).detach(), unpack


def test_grasp_from_the_whole_hessian() -> None:
    context = context_of(made(Tiny))
    expected = np.zeros(context.graph.units)
    for batch in context.batches:
        loss, w, unpack = flat_loss(context.network, batch)
        hessian = torch.autograd.functional.hessian(loss, w)
        g = torch.autograd.functional.jacobian(loss, w)
        expected += by_unit(context, unpack(w * (hessian @ g))) / len(context.batches)
    actual = score(context, "grasp")
    np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-14)
    assert (actual < 0).any() and (actual > 0).any()


def test_sign_of_grasp() -> None:
    """Where the score is negative, the gradient grows when the unit fades: it may go."""
    context = context_of(made(Tiny), 1)
    loss, w, unpack = flat_loss(context.network, context.batches[0])
    saliency, eps = score(context, "grasp"), 1e-5
    for unit in context.graph.groups[1].units:
        mask = unpack(torch.zeros_like(w))
        for name, (dim, units) in filters(context).items():
            mask[name].movedim(dim, 0)[torch.as_tensor(units == unit)] = 1
        fading = -eps * w * torch.cat([mask[name].flatten() for name in mask])
        norms = [
            torch.autograd.functional.jacobian(loss, w + sign * fading).square().sum() / 2
            for sign in (1, -1)
        ]
        growth = ((norms[0] - norms[1]) / (2 * eps)).item()
        assert saliency[unit] == pytest.approx(-growth, rel=1e-5)


@pytest.mark.parametrize("name", ["taylor", "snip", "grasp", "fisher"])
def test_weights_are_trained_like_torch_trains_them(name: str) -> None:
    sgd = SGD(lr=0.05, momentum=0.8, weight_decay=0.01)
    context = context_of(
        made(Transposed, dropout=0), 3, options=Scoring(batches=3, sgd=sgd, average="last")
    )
    trained = copy.deepcopy(context.network).train()
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.05, momentum=0.8, weight_decay=0.01)
    for batch in context.batches[:2]:
        gradients(trained, batch)
        optimizer.step()
    third = ScoringContext(trained, context.graph, context.batches[2:])
    actual, expected = score(context, name), score(third, name)
    np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-12 * abs(expected).max())
    untrained = score(ScoringContext(context.network, context.graph, context.batches[2:]), name)
    assert np.abs(actual - untrained).max() > 0.01 * np.abs(untrained).max()


def test_gains_of_zero_count_as_one() -> None:
    class Branch(Residual):
        def __init__(self) -> None:
            super().__init__()
            self.two = nn.Sequential(nn.Conv2d(8, 6, 1), nn.Conv2d(6, 8, 1), nn.BatchNorm2d(8))

    closed, opened = made(Branch), made(Branch)
    nn.init.zeros_(closed.two[2].weight)
    nn.init.ones_(opened.two[2].weight)
    for name in ("taylor", "snip", "grasp", "fisher", "synflow"):
        a, b = (score(context_of(model), name) for model in (closed, opened))
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", ["taylor", "snip", "grasp", "fisher"])
def test_refusals(name: str) -> None:
    with pytest.raises(ScoringError, match=f"'{name}' needs at least one batch: pass data"):
        score(context_of(made(Tiny), []), name)

    context = context_of(made(Tiny), loss_fn=lambda out, y: Overflow.apply(out))
    with pytest.raises(ScoringError, match=f"(gradient of 'one.weight' is|'{name}' gives) NaN or"):
        score(context, name)


def test_parameters_without_channels_are_left_out() -> None:
    class Shared(Net):
        def __init__(self) -> None:
            super().__init__()
            self.slope, self.unused = nn.PReLU(), nn.Parameter(torch.ones(3))

        def mix(self, x: Tensor, y: Tensor) -> Tensor:
            return self.slope(y)

    context = context_of(Shared(), 1)
    units = context.graph.tensors["two.0.weight"][0]
    assert score(context, "taylor")[units].all()
