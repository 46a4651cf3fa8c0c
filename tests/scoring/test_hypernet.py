from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from lwdna.errors import ScoringError
from lwdna.graph import WeightRole
from lwdna.scoring import ScoringContext, as_batches, generate, latent_grad, score
from lwdna.scoring.hypernet import embeddings
from tests.scoring.networks import NETWORKS, Depthwise, Net, Residual, analysed


def make_context(
    model: nn.Module, batches: int = 2, dtype: torch.dtype = torch.float64, seed: int = 0
) -> ScoringContext:
    gm, graph = analysed(model, dtype=dtype)
    g = torch.Generator().manual_seed(7)
    data = [
        (torch.randn(4, 3, 8, 8, generator=g), torch.randint(5, (4,), generator=g))
        for _ in range(batches)
    ]
    return ScoringContext(gm, graph, as_batches(data, batches, network=gm), seed=seed)


def reference(context: ScoringContext, E: int) -> np.ndarray:
    """∂L/∂z by autograd through W0, W1 and W as METHOD §1 writes them, w1 and w2 in full."""
    graph, g = context.graph, context.generator()
    z = torch.randn(graph.units, generator=g, dtype=torch.float64).requires_grad_()
    weights = {}
    for name, p in context.network.named_parameters():
        role = graph.roles.get(name)
        if role is None or name == "fc.weight":
            continue
        assert (role.out_dim, role.in_dim) == (0, 1)
        z_out, z_in = (
            torch.randn(n, generator=g, dtype=torch.float64) if v is None else z[v]
            for v, n in zip(graph.tensors[name][:2], p.shape[:2], strict=True)
        )
        draws = list(embeddings(p.shape, role, E, g, torch.float64))
        w1 = torch.stack([a for a, _ in draws], -1)  # (C_i, C_o, E)
        w2 = torch.stack([b.flatten(2) for _, b in draws], -1)  # (C_i, C_o, K, E)
        W0 = z_in[:, None] @ z_out[None]
        W1 = W0[..., None] * w1
        W = (w2 @ W1[..., None]).squeeze(-1)
        weights[name] = W.permute(1, 0, 2).reshape(p.shape)
    loss = torch.zeros((), dtype=torch.float64)
    for x, y in context.batches:
        loss = loss + F.cross_entropy(functional_call(context.network, weights, (x,)), y)
    (loss / len(context.batches)).backward()
    return z.grad.numpy()


@pytest.mark.parametrize("model", NETWORKS)
@pytest.mark.parametrize("E", [1, 8])
def test_equals_autograd_through_the_whole_hypernetwork(model: type[Net], E: int) -> None:
    torch.manual_seed(0)
    net = model()
    net.drop.p = 0.0
    context = make_context(net)
    expected = np.abs(reference(context, E))
    actual = latent_grad(context, normalize=False, embedding=E)
    np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-9 * expected.max())
    prunable = context.graph.prunable[context.graph.group_of]
    assert (actual[prunable] > 0).mean() > 0.9


@pytest.mark.parametrize(
    ("shape", "role"),
    [
        ((64, 32, 3, 3), WeightRole(0, 1, 9)),
        ((256, 1, 5, 5), WeightRole(0, 1, 25)),  # depthwise
        ((32, 96, 2, 2), WeightRole(1, 0, 4)),  # transposed
        ((128, 96), WeightRole(0, 1, 1)),
    ],
)
@pytest.mark.parametrize("E", [2, 8])
def test_hyperfan_in(shape: tuple[int, ...], role: WeightRole, E: int) -> None:
    draws = list(embeddings(torch.Size(shape), role, E, torch.Generator().manual_seed(0)))
    assert len(draws) == E
    c_i, c_o = shape[role.in_dim], shape[role.out_dim]
    assert draws[0][0].shape == (c_i, c_o)
    assert draws[0][1].shape == (c_i, c_o, *shape[2:])
    gain = sum(w1.reshape(c_i, c_o, *[1] * (w2.dim() - 2)) * w2 for w1, w2 in draws)
    # z_in and z_out have variance 1 and are independent, so Var W = Var A = 1 / (C_i K).
    assert gain.var().item() * c_i * role.kernel == pytest.approx(1, rel=0.1)
    assert gain.abs().mean() > 0


def test_variance_of_generated_weights() -> None:
    # z are shared by a whole row, so the variance is taken over many hypernetworks.
    context = make_context(Net((16, 16, 16)), batches=1)
    draws = [generate(replace(context, seed=s)) for s in range(300)]
    for k, name in enumerate(w.name for w in draws[0]):
        c_i, kernel = context.network.get_parameter(name).shape[1], 9
        w = torch.stack([weights[k].weight().detach() for weights in draws])
        assert w.var().item() * c_i * kernel == pytest.approx(1, rel=0.1), name


def test_generated_weight_is_the_product_of_latents_and_gain() -> None:
    context = make_context(Residual())
    for w in generate(context):
        p = context.network.get_parameter(w.name)
        assert w.weight().shape == p.shape and w.weight().dtype == p.dtype
        o, i = p.shape[0] - 1, p.shape[1] - 1
        expected = w.z_out.z[o] * w.z_in.z[i] * w.gain[o, i]
        torch.testing.assert_close(w.weight()[o, i], expected)


def test_what_is_generated() -> None:
    context = make_context(Depthwise())
    names = {w.name for w in generate(context)}
    assert names == {"one.0.weight", "two.0.weight", "three.0.weight"}  # no norms, no classifier
    (depthwise,) = (w for w in generate(context) if w.name == "two.0.weight")
    assert depthwise.z_in.units is None and depthwise.z_in.z.shape == (1,)
    assert depthwise.z_out.units is not None


def test_residual_convs_share_their_latent() -> None:
    context = make_context(Residual())
    one, two = (w for w in generate(context) if w.name in ("one.0.weight", "two.0.weight"))
    assert torch.equal(one.z_out.z, two.z_out.z) and torch.equal(two.z_in.z, two.z_out.z)


def test_same_seed_same_scores() -> None:
    context = make_context(Net(), dtype=torch.float32)  # with dropout
    first = latent_grad(context)
    torch.rand(3)
    np.testing.assert_array_equal(first, latent_grad(context))
    assert (first != latent_grad(replace(context, seed=1))).any()


def test_normalised_per_group() -> None:
    context = make_context(Net())
    raw, normalised = latent_grad(context, normalize=False), latent_grad(context)
    for group in context.graph.groups:
        if raw[group.units].any():
            np.testing.assert_allclose(
                normalised[group.units], raw[group.units] / raw[group.units].max()
            )
        else:
            assert not normalised[group.units].any()


def test_gradients_average_over_batches_before_the_modulus() -> None:
    net = Net()
    net.drop.p = 0.0
    context = make_context(net, batches=1)
    (x, y) = context.batches[0]
    once = latent_grad(context, normalize=False)
    twice = latent_grad(replace(context, batches=[(x, y), (x, y)]), normalize=False)
    np.testing.assert_allclose(once, twice, rtol=1e-12)
    # Opposite losses cancel; the mean of moduli would not.
    signs = iter((1.0, -1.0))
    cancel = replace(
        context,
        batches=[(x, y), (x, y)],
        loss_fn=lambda out, target: next(signs) * F.cross_entropy(out, target),
    )
    with pytest.warns(UserWarning, match="no gradient reaches 3 of the channel groups"):
        assert not latent_grad(cancel, normalize=False).any()


def test_zero_initialised_gains_do_not_block_the_gradient() -> None:
    class Branch(Residual):
        def __init__(self) -> None:
            super().__init__()
            self.two = nn.Sequential(nn.Conv2d(8, 6, 1), nn.Conv2d(6, 8, 1), nn.BatchNorm2d(8))
            nn.init.zeros_(self.two[2].weight)

    context = make_context(Branch())
    (inner,) = (g for g in context.graph.groups if g.name == "two.0")
    assert inner.prunable
    assert latent_grad(context)[inner.units].all()
    assert not context.network.get_parameter("two.2.weight").any()  # only while scoring


def test_frozen_parameters_are_scored_too() -> None:
    context = make_context(Net())
    expected = latent_grad(context)
    context.network.requires_grad_(False)
    np.testing.assert_array_equal(latent_grad(context), expected)
    assert not any(p.requires_grad for p in context.network.parameters())


def test_half_precision() -> None:
    context = make_context(Net(), dtype=torch.bfloat16)
    assert context.batches[0][0].dtype is torch.bfloat16
    assert np.isfinite(score(context)).all()


def test_refusals() -> None:
    context = make_context(Net())
    with pytest.raises(ScoringError, match="needs at least one batch: pass data"):
        latent_grad(replace(context, batches=[]))
    with pytest.raises(ValueError, match="embedding=0"):
        latent_grad(context, embedding=0)
    biases_only = replace(
        context,
        loss_fn=lambda out, target: context.network.get_parameter("fc.bias").square().sum(),
    )
    with pytest.raises(ScoringError, match="depends on no convolution or linear weight"):
        latent_grad(biases_only)
    no_roles = replace(context, graph=replace(context.graph, roles={}))
    with pytest.raises(ScoringError, match="nothing to generate: score with 'magnitude'"):
        latent_grad(no_roles)

    class Overflow(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):  # type: ignore[no-untyped-def]
            return x.sum()

        @staticmethod
        def backward(ctx, grad):  # type: ignore[no-untyped-def]
            return torch.full((4, 5), float("inf"), dtype=torch.float64)

    with pytest.raises(ScoringError, match=r"gradient of '\w+\.0\.weight' is NaN or infinite"):
        latent_grad(replace(context, loss_fn=lambda out, target: Overflow.apply(out)))
