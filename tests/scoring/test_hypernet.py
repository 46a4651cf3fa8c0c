from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lwdna.scoring import SGD, Hypernet, Scoring, ScoringContext, generated, get, score
from lwdna.scoring.embedding import Embedding, draws, gain
from lwdna.tensor_channels import WeightRole
from tests.scoring.networks import NETWORKS, Depthwise, Net, Residual, context_of, made
from tests.scoring.reference import Reference


class Branch(Residual):
    def __init__(self) -> None:
        super().__init__()
        self.two = nn.Sequential(nn.Conv2d(8, 6, 1), nn.Conv2d(6, 8, 1), nn.BatchNorm2d(8))


def zero_gain() -> nn.Module:
    """A residual branch that ends in a gain of zero."""
    model = made(Branch)
    nn.init.zeros_(model.two[2].weight)
    return model


MODELS = [
    *(pytest.param(lambda c=c: made(c), id=c.__name__) for c in NETWORKS),
    pytest.param(zero_gain, id="zero_gain"),
]
Build = Callable[[], nn.Module]


def close(actual: Any, expected: Any, tolerance: float = 1e-9) -> None:
    actual, expected = torch.as_tensor(actual).detach(), torch.as_tensor(expected).detach()
    torch.testing.assert_close(
        actual, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max())
    )


def gradients_of(context: ScoringContext, E: int) -> np.ndarray:
    return score(context, get("latent-grad", normalize=False, embedding=E))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("E", [1, 2, 8])
def test_equals_autograd_through_the_whole_hypernetwork(model: Build, E: int) -> None:
    context = context_of(model(), 1)
    reference = Reference(context, E)
    weights = reference.weights()
    torch.manual_seed(context.seed)  # of dropout
    expected = reference.step(context.batches[0]).abs()
    actual = gradients_of(context, E)
    close(actual, expected)
    made_weights = generated(context, embedding=E)
    assert made_weights.keys() == weights.keys()
    for name, w in made_weights.items():
        close(w, weights[name])
    prunable = context.graph.prunable[context.graph.group_of]
    assert (actual[prunable] > 0).mean() > 0.9


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("E", [1, 2, 8])
def test_trained_like_autograd_and_sgd_train_it(model: Build, E: int) -> None:
    context = context_of(model(), 3, options=Scoring(batches=3, sgd=SGD(), average="last"))
    reference = Reference(context, E)
    torch.manual_seed(context.seed)
    for k, batch in enumerate(context.batches):
        so_far = replace(context, batches=context.batches[: k + 1])
        close(gradients_of(so_far, E), reference.step(batch).abs())
        close(score(so_far, get("latent-magnitude", embedding=E)), reference.z.abs())
    expected = reference.weights() | reference.ordinary
    for tensors in (generated(so_far, embedding=E), generated(context, embedding=E)):
        assert tensors.keys() == expected.keys()  # not the gains that counted as one
        for name, tensor in tensors.items():
            close(tensor, expected[name])


def test_other_settings_of_sgd() -> None:
    sgd = SGD(lr=0.03, momentum=0.0, weight_decay=0.2)
    context = context_of(made(Residual), 2, options=Scoring(sgd=sgd, average="last"))
    reference = Reference(context, 2, lr=0.03, momentum=0.0, weight_decay=0.2)
    torch.manual_seed(context.seed)
    grads = [reference.step(batch).abs() for batch in context.batches]
    close(gradients_of(context, 2), grads[-1])


@pytest.mark.parametrize(
    ("shape", "role"),
    [
        ((64, 32, 3, 3), WeightRole(0, 1, 9)),
        ((256, 1, 5, 5), WeightRole(0, 1, 25)),  # depthwise
        ((32, 96, 2, 2), WeightRole(1, 0, 4)),  # transposed
        ((128, 96), WeightRole(0, 1, 1)),
        ((64, 32, 9), WeightRole(0, 1, 9)),
    ],
)
@pytest.mark.parametrize("E", [2, 8])
def test_hyperfan_in(shape: tuple[int, ...], role: WeightRole, E: int) -> None:
    c_i = shape[role.in_dim]
    pairs = list(draws(torch.Size(shape), role, c_i, E, torch.Generator().manual_seed(0)))
    assert len(pairs) == E
    bound = (3 / (E * c_i * role.kernel)) ** 0.5
    for w1, w2 in pairs:
        assert w1.shape == shape[:2] and w2.shape == shape
        assert 0.97 * 3**0.5 < w1.abs().max() <= 3**0.5  # uniform: the bound is approached
        assert 0.97 * bound < w2.abs().max() <= bound * (1 + 1e-6)
        assert w1.var().item() == pytest.approx(1, rel=0.15)
    a = gain(iter(pairs))
    # z_in and z_out have variance 1 and are independent, so Var W = Var A = 1 / (C_i K).
    assert a.var().item() * c_i * role.kernel == pytest.approx(1, rel=0.1)
    assert not torch.equal(pairs[0][0], pairs[1][0])


def test_variance_of_generated_weights() -> None:
    # z are shared by a whole row, so the variance is taken over many hypernetworks.
    context = context_of(Net((16, 16, 16)), 1)
    drawn = [generated(replace(context, seed=s)) for s in range(300)]
    for name in drawn[0]:
        c_i = context.network.get_parameter(name).shape[1]
        w = torch.stack([weights[name] for weights in drawn])
        assert w.var().item() * c_i * 9 == pytest.approx(1, rel=0.1), name
        assert abs(w.mean().item()) < 0.02


def test_generated_weight_is_the_product_of_latents_and_gain() -> None:
    for layer in Hypernet(context_of(Residual(), 1)).layers:
        w = layer.weight()
        assert isinstance(layer.made, torch.Tensor) and w.is_leaf and w.requires_grad
        o, i = w.shape[0] - 1, w.shape[1] - 1
        expected = layer.z_out.values()[o] * layer.z_in.values()[i] * layer.made[o, i]
        torch.testing.assert_close(w[o, i].detach(), expected)


def test_what_is_generated() -> None:
    context = context_of(Depthwise(), 1)
    hypernet = Hypernet(context)
    assert hypernet.z.shape == (context.graph.units,)
    layers = {layer.name: layer for layer in hypernet.layers}  # no norms, no classifier
    assert list(layers) == ["one.0.weight", "two.0.weight", "three.0.weight"]
    depthwise = layers["two.0.weight"]
    assert depthwise.z_in.units is None and depthwise.z_in.values().shape == (1,)
    assert torch.equal(depthwise.z_out.values(), layers["one.0.weight"].z_out.values())


def test_residual_convs_share_their_latent() -> None:
    layers = {layer.name: layer for layer in Hypernet(context_of(Residual(), 1)).layers}
    one, two, three = (layers[f"{name}.0.weight"] for name in ("one", "two", "three"))
    for latent in (two.z_in, two.z_out, three.z_in):
        assert torch.equal(latent.values(), one.z_out.values())
    assert not torch.equal(three.z_out.values(), one.z_out.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_have_the_parameters_shape_and_dtype(dtype: torch.dtype) -> None:
    for sgd in (None, SGD()):
        context = context_of(Residual(), 1, dtype=dtype)
        hypernet = Hypernet(context, sgd=sgd)
        assert hypernet.z.dtype is torch.float32
        for name, w in hypernet.weights().items():
            p = context.network.get_parameter(name)
            assert w.shape == p.shape and w.dtype is dtype and w.is_contiguous()


def test_trained_or_not_the_same_draw() -> None:
    context = context_of(made(Residual), 1)
    fixed, trained = Hypernet(context), Hypernet(context, sgd=SGD())
    assert torch.equal(fixed.z, trained.z)
    for a, b in zip(fixed.layers, trained.layers, strict=True):
        assert isinstance(a.made, torch.Tensor) and isinstance(b.made, Embedding)
        close(b.made.gain(), a.made, 1e-14)
        close(b.weight(), a.weight(), 1e-13)


def test_embedding_size_must_be_positive() -> None:
    with pytest.raises(ValueError, match="embedding=0"):
        Hypernet(context_of(Net(), 1), embedding=0)
