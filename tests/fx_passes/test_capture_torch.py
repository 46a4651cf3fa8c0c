"""Capture of what torch does around a model: attention layers, gradient modes, checkpoints."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.fx
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.fx import GraphModule

from lwdna.fx_passes import verify
from lwdna.fx_passes.analyse import analyse
from lwdna.fx_passes.capture import capture
from lwdna.fx_passes.patches import exact_attention
from tests.quality import resized

TOKENS = torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(0))


class Body(nn.Module):
    """linear stem -> ``f(self, x)`` -> linear head; extra layers by name."""

    def __init__(self, f: Callable[[Any, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.f, self.stem, self.head = f, nn.Linear(5, 16), nn.Linear(16, 3)
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.f(self, self.stem(x)))
        return out


def checked(model: nn.Module, x: Tensor = TOKENS) -> tuple[GraphModule, set[str]]:
    """The capture and its prunable tensors, after all invariants at random widths."""
    gm = capture(model, x)
    verify.identity(model, gm, x)
    graph, _ = resized(gm, x)
    prunable = (group for group in graph.groups if group.prunable)
    return gm, {slot.name for group in prunable for slot, _ in group.slots}


def gradients(model: nn.Module, x: Tensor) -> list[Tensor | None]:
    model.zero_grad()
    model(x).square().sum().backward()
    return [None if p.grad is None else p.grad.clone() for p in model.parameters()]


def same_gradients(model: nn.Module, gm: GraphModule, x: Tensor = TOKENS) -> None:
    """Bit-equal gradients, and none where the model has none."""
    pairs = zip(gradients(copy.deepcopy(model), x), gradients(gm, x), strict=True)
    for expected, given in pairs:
        assert (expected is None) == (given is None)
        assert expected is None or torch.equal(expected, given)


# --- attention layers ---


def attend(s: Any, x: Tensor) -> Tensor:
    y = x if s.att.batch_first else x.transpose(0, 1)
    out = s.att(y, s.k(y), s.v(y), need_weights=False, attn_mask=s.mask)[0]
    return x + (out if s.att.batch_first else out.transpose(0, 1))


CAUSAL = torch.triu(torch.ones(7, 7, dtype=torch.bool), 1)


@pytest.mark.parametrize(
    "options",
    [{}, {"batch_first": False}, {"bias": False}, {"kdim": 6, "vdim": 9}, {"add_bias_kv": True}],
    ids=str,
)
@pytest.mark.parametrize("mask", [None, CAUSAL], ids=["full", "causal"])
def test_multi_head_attention_is_opened(options: dict[str, Any], mask: Tensor | None) -> None:
    options = {"batch_first": True, **options}
    k = nn.Linear(16, options["kdim"]) if "kdim" in options else nn.Identity()
    v = nn.Linear(16, options["vdim"]) if "vdim" in options else nn.Identity()
    model = Body(attend, att=nn.MultiheadAttention(16, 4, **options), k=k, v=v)
    model.mask = mask
    gm, prunable = checked(model)
    projection = "att.q_proj_weight" if "kdim" in options else "att.in_proj_weight"
    assert {projection, "att.out_proj.weight", "stem.weight"} <= prunable
    assert not any(node.target == "att" for node in gm.graph.nodes)
    verify.trains(gm, TOKENS)


def test_attention_weights_are_averaged_over_the_heads_that_are_left() -> None:
    model = Body(
        lambda s, x: s.att(x, x, x)[1] @ x, att=nn.MultiheadAttention(16, 4, batch_first=True)
    )
    _, prunable = checked(model)
    assert "att.in_proj_weight" in prunable


@pytest.mark.parametrize("first", [True, False])
def test_transformer_layers_are_opened(first: bool) -> None:
    options: Any = {"batch_first": True, "norm_first": first, "dropout": 0.1}
    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(16, 4, 32, **options), 2, enable_nested_tensor=False
    )
    decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(16, 4, 32, **options), 1)
    model = Body(lambda s, x: s.dec(x, s.enc(x)), enc=encoder, dec=decoder)
    gm, prunable = checked(model)
    assert {
        "enc.layers.1.linear1.weight",
        "enc.layers.0.self_attn.in_proj_weight",
        "dec.layers.0.multihead_attn.in_proj_weight",
    } <= prunable
    for network in (model.train(), gm.train()):
        torch.manual_seed(3)
        network.out = network(TOKENS)
    assert torch.equal(model.out, gm.out)  # dropout follows the mode, with the same random numbers


def test_the_fused_kernel_is_back_after_capture() -> None:
    assert torch.backends.mha.get_fastpath_enabled()
    with exact_attention():
        assert not torch.backends.mha.get_fastpath_enabled()
    capture(Body(lambda s, x: x), TOKENS)
    assert torch.backends.mha.get_fastpath_enabled()


# --- gradient modes ---


def gate_without_gradient(s: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        gate = s.gate(x).sigmoid() * s.scale
        first, second = gate.split(8, -1)
        joined = torch.cat([second, first], -1)
        with torch.enable_grad():
            kept = s.kept(x)
    return x * joined + kept


@torch.no_grad()
def frozen_features(s: Any, x: Tensor) -> Tensor:
    return s.gate(x)


def rescaled_in_place(s: Any, x: Tensor) -> Tensor:
    y = x * 2
    with torch.no_grad():
        y.mul_(s.scale)
        z = s.scale.clone().clamp_(0, 1)
    return y + z


@pytest.mark.parametrize(
    "f",
    [
        gate_without_gradient,
        lambda s, x: frozen_features(s, x) + x,
        rescaled_in_place,
        lambda s, x: x if torch.set_grad_enabled(True) is None else x * s.scale,
    ],
)
def test_regions_without_gradients_are_carried_over(f: Any) -> None:
    model = Body(f, gate=nn.Linear(16, 16), kept=nn.Linear(16, 16))
    model.scale = nn.Parameter(torch.rand(16))
    gm = capture(model, TOKENS)
    verify.identity(model, gm, TOKENS)
    same_gradients(model, gm)
    with torch.no_grad():
        assert not gm(TOKENS).requires_grad


# --- checkpoints and wrapped functions ---


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints_are_traced_through_and_the_loss_is_told(reentrant: bool) -> None:
    def body(s: Any, x: Tensor) -> Tensor:
        def run(y: Tensor, scale: float) -> Tensor:
            out: Tensor = s.b(s.a(y).relu()) * scale
            return out

        y: Tensor = torch.utils.checkpoint.checkpoint(run, x, 2.0, use_reentrant=reentrant)
        z: Tensor = torch.utils.checkpoint.checkpoint_sequential(
            s.stages, 2, y, use_reentrant=reentrant
        )
        return z

    a, b = nn.Linear(16, 24), nn.Linear(24, 16)
    model = Body(body, a=a, b=b, stages=nn.Sequential(a, nn.ReLU(), b))
    original = torch.utils.checkpoint.checkpoint
    with pytest.warns(UserWarning, match="the memory of all activations"):
        gm, prunable = checked(model)
    assert torch.utils.checkpoint.checkpoint is original
    assert {"a.weight", "b.weight"} <= prunable
    same_gradients(model, gm)


class Steep(torch.autograd.Function):
    """A step with a gradient of its own, ten times that of the identity."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round() + x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 10 * gradient


def test_a_backward_pass_of_its_own_is_kept() -> None:
    model = Body(lambda s, x: Steep.apply(Steep.apply(s.a(x))), a=nn.Linear(16, 16))
    gm, prunable = checked(model)
    assert {"a.weight", "stem.weight"} <= prunable
    same_gradients(model, gm)
    assert list(gm.state_dict()) == list(model.state_dict())
    assert torch.equal(Steep.apply(torch.ones(2)), torch.full((2,), 2.0))


def test_a_backward_pass_of_training_alone_is_kept() -> None:
    model = Body(lambda s, x: Steep.apply(s.a(x)) if s.training else s.a(x), a=nn.Linear(16, 16))
    gm = capture(model, TOKENS)
    verify.identity(model, gm, TOKENS)
    same_gradients(model.train(), gm.train())


def swish(x: Tensor) -> Tensor:
    return x * x.sigmoid()


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated")
def test_scripted_functions_and_activations_run_as_they_are() -> None:
    scripted = torch.jit.script(swish)
    act = torch.jit.script(nn.GELU())
    model = Body(lambda s, x: s.act(scripted(s.a(x)) + scripted(x)), a=nn.Linear(16, 16), act=act)
    gm, prunable = checked(model)
    assert {"a.weight", "stem.weight"} <= prunable
    same_gradients(model, gm)
    assert torch.equal(scripted(TOKENS), swish(TOKENS))


def bias_or_none(x: Tensor, wanted: bool) -> Tensor | None:
    return x.new_ones(x.shape[-1]) if wanted else None


def halves(x: Tensor) -> tuple[Tensor, ...]:
    return tuple(x.chunk(2, -1))


torch.fx.wrap("bias_or_none")
torch.fx.wrap("halves")


def test_functions_marked_by_fx_wrap_may_return_anything() -> None:
    def body(s: Any, x: Tensor) -> Tensor:
        a, b = halves(x)
        x = torch.cat([b, a], -1)
        bias = bias_or_none(x, wanted=True)
        assert bias_or_none(x, wanted=False) is None
        return x if bias is None else x + bias

    _, prunable = checked(Body(body))
    assert "stem.weight" in prunable


class Dynamic(nn.Module):
    """A mixture of kernels for each sample: a grouped convolution over the batch (CondConv)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)
        self.route = nn.Linear(8, 4)
        self.weight = nn.Parameter(torch.randn(4, 6 * 8 * 9) / 9)
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x))
        n, c, h, w = x.shape
        mixed = self.route(x.mean((2, 3))).sigmoid() @ self.weight
        y = F.conv2d(
            x.reshape(1, n * c, h, w), mixed.view(n * 6, 8, 3, 3), None, padding=1, groups=n
        )
        out: Tensor = self.head(y.permute(1, 0, 2, 3).view(n, 6, h, w))
        return out


def test_numbers_that_c_functions_take_stay_symbolic() -> None:
    x = torch.randn(2, 3, 6, 6)
    model = Dynamic()
    gm = capture(model, x)
    verify.identity(model, gm, x)
    for n in (1, 3):
        y = torch.randn(n, 3, 6, 6)
        assert torch.equal(gm.eval()(y), model.eval()(y))
    analyse(gm, x)  # on a batch of one


def test_a_view_of_a_parameter_made_without_gradients_is_counted() -> None:
    class Latent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.latent, self.q = nn.Parameter(torch.randn(1, 4, 5)), nn.Linear(5, 6)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.q(self.latent.expand(x.shape[0], -1, -1))
            return out

    assert verify.measured_cost(capture(Latent(), TOKENS), TOKENS) == (4 * 5 * 6, 4 * 5 + 5 * 6 + 6)
