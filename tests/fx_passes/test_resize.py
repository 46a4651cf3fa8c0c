"""Resize: every literal follows, every attribute tells the truth, new entries follow their law."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule

from lwdna.errors import ResizeError
from lwdna.fx_passes import init_law, literals, verify
from lwdna.fx_passes.analyse import analyse
from lwdna.fx_passes.capture import capture
from lwdna.fx_passes.resize import resize
from lwdna.graph import ChannelGraph, Copies
from tests.rules.samples import Net

X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def between(f: Callable[[Any, Tensor], Tensor], out: int, into: int, **layers: Any) -> nn.Module:
    """conv a (``out`` channels) -> ``f(self, x)`` -> conv b (``into`` channels)."""
    return Net(
        lambda s, x: s.b(f(s, s.a(x))),
        a=nn.Conv2d(3, out, 1),
        b=nn.Conv2d(into, 4, 1),
        **layers,
    )


def analysed(model: nn.Module, x: Any = X, **kwargs: Any) -> tuple[GraphModule, ChannelGraph]:
    gm = capture(model, x)
    return gm, analyse(gm, x, **kwargs)


def at_widths(graph: ChannelGraph, widths: dict[str, int]) -> Copies:
    """Copies that give the named groups these widths: the last units go, the first are copied."""
    copies = graph.keep_all()
    for name, width in widths.items():
        (units,) = (g.units for g in graph.groups if g.name == name)
        every, extra = divmod(width, len(units))
        copies[units] = every
        copies[units[:extra]] += 1
    return copies


def resized(model: nn.Module, widths: dict[str, int], x: Any = X, **kwargs: Any) -> GraphModule:
    """The model at these widths; masking is checked where it shrank, and it runs at other sizes."""
    verify.stir(model)
    gm, graph = analysed(model, x, **kwargs)
    copies = at_widths(graph, widths)
    new: GraphModule = resize(gm, graph, copies)
    if (copies <= 1).all():
        verify.masked_equivalence(gm, graph, copies, new, x)
    else:
        verify.round_trip(gm, graph, copies, x)
    verify.restriction(graph, copies, new)
    verify.cost(graph, copies, new)
    verify.trains(new, x)
    return new


def literal_arguments(gm: GraphModule, target: Any) -> list[Any]:
    """Arguments of the only node of a target, with ``...`` for nodes."""
    (node,) = (n for n in gm.graph.nodes if n.target == target)
    arguments = (*node.args[1:], *node.kwargs.values())
    return list(torch.fx.node.map_arg(arguments, lambda _: ...))


# --- literals ---


def assigned(x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y[:, 2:] = 2 * x[:, 2:]
    y[:, :-6] = x[:, :-6]
    return y


SIZES: dict[str, tuple[Callable[[Any, Tensor], Tensor], int, int, int, int]] = {
    # f, channels of a, channels of b, width of a before and after: one unit may be several channels
    "reshape": (lambda s, x: x.reshape(-1, 8, 36).unflatten(2, (6, 6)), 8, 8, 8, 5),
    "reshape function": (lambda s, x: torch.reshape(x, (-1, 8, 6, 6)), 8, 8, 8, 5),
    "view with sizes of x": (
        lambda s, x: x.view(x.shape[0], x.shape[1], -1).view(x.size(0), x.size(1), 6, 6),
        *(8, 8, 8, 5),
    ),
    "view with a computed size": (
        lambda s, x: x.view(x.shape[0], x.shape[1] // 2, 2, 6, 6).sum(2),
        *(8, 4, 4, 3),
    ),
    "view as a stranger": (
        lambda s, x: x.flatten(2).view(x.shape),
        *(8, 8, 8, 5),
    ),
    "flatten and view": (
        lambda s, x: s.fc(x.view(x.shape[0], 8 * 36)).view(-1, 9, 6, 6)[:, :8] * x.mean(),
        *(8, 8, 8, 5),
    ),
    "unflatten": (lambda s, x: x.unflatten(1, (4, -1)).sum(1), 8, 2, 4, 3),
    "unflatten from the end": (lambda s, x: x.unflatten(-3, (2, 4)).sum(1), 8, 4, 4, 3),
    "expand": (lambda s, x: s.g.expand(1, 8, 1, 1) * x, 8, 8, 8, 5),
    "expand to a shape": (lambda s, x: s.g.expand(x.shape) * x, 8, 8, 8, 5),
    "expand as": (lambda s, x: s.g.expand_as(x) * x, 8, 8, 8, 5),
    "repeat": (lambda s, x: s.g.repeat(1, 8, 1, 1) * x, 8, 8, 8, 5),
    "repeat of channels": (lambda s, x: x.repeat(1, 3, 1, 1), 4, 12, 4, 3),
    "zeros": (lambda s, x: x + torch.zeros(1, 8, 1, 1, device=x.device), 8, 8, 8, 5),
    "zeros of a tuple": (lambda s, x: x + torch.zeros((8, 1, 1), device=x.device), 8, 8, 8, 5),
    "zeros of a size of x": (
        lambda s, x: x + torch.zeros(x.shape[1], 1, 1, device=x.device),
        *(8, 8, 8, 5),
    ),
    "new_zeros": (lambda s, x: x + x.new_zeros(8, 1, 1), 8, 8, 8, 5),
    "new_full": (lambda s, x: x * x.new_full((8, 1, 1), 2.0), 8, 8, 8, 5),
    "zeros that are written to": (
        lambda s, x: (
            torch.zeros_like(x).add_(1)
            + torch.zeros(x.shape[0], 8, 6, 6, device=x.device, dtype=x.dtype).copy_(x)
        ),
        *(8, 8, 8, 5),
    ),
    "slice": (lambda s, x: x[:, :4] * x[:, 4:], 8, 4, 4, 3),
    "slice from the end": (lambda s, x: x[:, :-4] * x[:, -4:], 8, 4, 4, 3),
    "slice with symbolic bounds": (
        lambda s, x: x[:, : x.shape[1] // 2] * x[:, x.shape[1] // 2 :],
        *(8, 4, 4, 3),
    ),
    "slice after an ellipsis": (lambda s, x: x[..., 4:, :, :] + x[:, None, :4].sum(1), 8, 4, 4, 3),
    "slice in the middle": (lambda s, x: x[:, 4:12] * x[:, :8] * x[:, 8:], 16, 8, 4, 3),
    "chunk": (lambda s, x: math.prod(x.chunk(2, 1)), 8, 4, 4, 3),
    "chunk function": (lambda s, x: math.prod(torch.chunk(x, 4, dim=1)), 16, 4, 4, 3),
    "split": (lambda s, x: math.prod(x.split(4, dim=1)), 8, 4, 4, 3),
    "split by sizes": (lambda s, x: math.prod(torch.split(x, [4, 4], 1)), 8, 4, 4, 3),
    "tensor_split": (lambda s, x: math.prod(x.tensor_split(2, 1)), 8, 4, 4, 3),
    "narrow": (lambda s, x: x.narrow(1, 0, 4) * x.narrow(1, x.shape[1] - 4, 4), 8, 4, 4, 3),
    "functional convolution": (
        lambda s, x: F.conv2d(x, s.w, None, 1, 0, 1, 8),
        *(8, 8, 8, 5),
    ),
    "functional convolution with a symbolic number of groups": (
        lambda s, x: F.conv2d(x, s.w, groups=x.shape[1]),
        *(8, 8, 8, 5),
    ),
    "functional conv1d": (
        lambda s, x: F.conv1d(x.flatten(2), s.w[..., 0], groups=8).unflatten(2, (6, 6)),
        *(8, 8, 8, 5),
    ),
    "functional conv3d": (
        lambda s, x: F.conv3d(x.unsqueeze(2), s.w.unsqueeze(2), groups=8).squeeze(2),
        *(8, 8, 8, 5),
    ),
    "functional conv_transpose1d": (
        lambda s, x: F.conv_transpose1d(x.flatten(2), s.w[..., 0], groups=8).view(-1, 8, 6, 6),
        *(8, 8, 8, 5),
    ),
    "functional conv_transpose2d": (
        lambda s, x: F.conv_transpose2d(x, s.w, None, 1, 0, 0, 8),
        *(8, 8, 8, 5),
    ),
    "functional conv_transpose3d": (
        lambda s, x: F.conv_transpose3d(x[:, :, None], s.w[:, :, None], groups=8)[:, :, 0],
        *(8, 8, 8, 5),
    ),
    "item assignment": (lambda s, x: assigned(x), 8, 8, 8, 5),
    "group_norm": (lambda s, x: F.group_norm(x, 4), 8, 8, 4, 3),
    "group_norm within groups": (lambda s, x: F.group_norm(x, 2, s.v, s.v), 8, 8, 4, 3),
    "layer_norm": (
        lambda s, x: F.layer_norm(x.permute(0, 2, 3, 1), (8,), s.v).permute(0, 3, 1, 2),
        *(8, 8, 8, 5),
    ),
    "layer_norm over a map": (lambda s, x: F.layer_norm(x, [8, 6, 6]), 8, 8, 8, 5),
    "layer_norm over a size of x": (
        lambda s, x: F.layer_norm(x.mT, x.shape[-1:]) + F.layer_norm(x, x.shape[1:]),
        *(8, 8, 8, 5),
    ),
    "rms_norm": (lambda s, x: F.rms_norm(x.movedim(1, 3), (8,), s.v).movedim(3, 1), 8, 8, 8, 5),
    "batch_norm": (lambda s, x: F.batch_norm(x, None, None, s.v, s.v, True), 8, 8, 8, 5),
    "a channel count as a factor": (lambda s, x: x * x.shape[1] ** -0.5, 8, 8, 8, 5),
    "a channel count as a divisor": (
        lambda s, x: x.sum(1, keepdim=True) / x.size(1) + x / math.sqrt(x.shape[1]),
        *(8, 8, 8, 5),
    ),
}


def layers_for(name: str) -> dict[str, Any]:
    torch.manual_seed(1)
    parameters = {
        "g": nn.Parameter(torch.randn(1, 1, 1, 1)),
        "w": nn.Parameter(torch.randn(8, 1, 1, 1)),
        "v": nn.Parameter(torch.rand(8)),
    }
    used = {"expand": "g", "repeat": "g", "functional": "w", "batch_norm": "v"}
    return {
        **{k: p for word, k in used.items() if name.startswith(word) for p in [parameters[k]]},
        **({"v": parameters["v"]} if "norm" in name else {}),
        **({"fc": nn.Linear(8 * 36, 9 * 36)} if "view" in name else {}),
    }


@pytest.mark.parametrize("change", ["shrunk", "widened by one", "doubled"])
@pytest.mark.parametrize("name", SIZES)
def test_literals_follow_the_channels(name: str, change: str) -> None:
    f, out, into, width, kept = SIZES[name]
    new = {"shrunk": kept, "widened by one": width + 1, "doubled": 2 * width}[change]
    result = resized(between(f, out, into, **layers_for(name)), {"a": new})
    assert result.get_submodule("a").out_channels == out * new // width
    assert result.eval()(torch.cat([X, X, X])).shape[0] == 6


def test_a_size_of_batch_and_heads_follows_both() -> None:
    def body(s: Any, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        heads = 4
        y = x.reshape(n * heads, c // heads, h * w)  # (batch · heads, width, positions)
        y = torch.bmm(torch.bmm(y, y.mT).softmax(-1), y)
        return y.reshape(n, c, h, w)

    for policy, widths in (("outer", {"a": 3}), ("outer", {"a": 8}), ("inner", {"a": 5})):
        model = between(body, 24, 24)
        new = resized(model, widths, policy=policy)
        assert new(torch.cat([X] * 3)).shape == (6, 4, 6, 6)


def test_numbers_that_a_repair_added_survive_the_next_resizing() -> None:
    """Widen, then shrink the widened network with its restricted graph."""

    def body(s: Any, x: Tensor) -> Tensor:
        n = x.shape[0]
        y = x.view(n * 4, 2, 6, 6) * 2
        return y.view(n, 8, 6, 6) + x.mean(1, True).broadcast_to(x.shape)

    model = between(body, 8, 8)
    gm, graph = analysed(model, policy="outer")
    wide_copies = at_widths(graph, {"a": 6})
    wide, wide_graph = resize(gm, graph, wide_copies), graph.restrict(wide_copies)
    copies = at_widths(wide_graph, {"a": 3})
    small = resize(wide, wide_graph, copies)
    verify.masked_equivalence(wide, wide_graph, copies, small, X)
    assert small(X[:1]).shape == (1, 4, 6, 6) and small(torch.cat([X, X])).shape == (4, 4, 6, 6)


class Attention(nn.Module):
    """8 heads x 4, with the scale computed from the width."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.qkv, self.proj = nn.Linear(3, 96), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2).mT
        n, length, _ = x.shape
        qkv = self.qkv(x)
        width = qkv.shape[-1] // 3
        q, k, v = qkv.reshape(n, length, 3, 8, width // 8).permute(2, 0, 3, 1, 4)
        if self.how == "sdpa":
            y = F.scaled_dot_product_attention(q, k, v)
        elif self.how == "sdpa scale":
            y = F.scaled_dot_product_attention(q, k, v, scale=(width // 8) ** -0.5)
        else:
            y = ((q * (width // 8) ** -0.5) @ k.mT).softmax(-1) @ v
        out: Tensor = self.proj(y.transpose(1, 2).reshape(n, length, width))
        return out


@pytest.mark.parametrize("how", ["sdpa", "sdpa scale", "factor"])
@pytest.mark.parametrize(("policy", "width"), [("inner", 3), ("inner", 6), ("outer", 5)])
def test_attention_keeps_its_scale_and_can_lose_width_or_heads(
    how: str, policy: str, width: int
) -> None:
    """Torch-Pruning #287 #258 #393 #340 #490: heads and fused qkv without patching forward."""
    new = resized(Attention(how), {"qkv": width}, policy=policy)
    total = width * (8 if policy == "inner" else 4)
    assert new.get_submodule("qkv").weight.shape == (3 * total, 3)
    assert new.get_submodule("proj").in_features == total
    if how == "sdpa" and policy == "inner":
        (node,) = (n for n in new.graph.nodes if n.target is F.scaled_dot_product_attention)
        assert node.kwargs["scale"] == 0.5  # 1 / sqrt(4), the original's


@pytest.mark.parametrize(
    ("f", "into"),
    [
        (lambda x: torch.cat([x[:, :5], x[:, 4:]], 1), 9),  # ... 3 4 | 4 5 ...
        (lambda x: torch.cat([shuffled(x), shuffled(x)], 1), 16),  # one unit, twice
    ],
)
def test_a_channel_beside_itself_can_be_widened(f: Any, into: int) -> None:
    model = between(lambda s, x: f(x), 8, into)
    gm, graph = analysed(model)
    copies = at_widths(graph, {g.name: 2 * g.width for g in graph.groups if g.prunable})
    verify.restriction(graph, copies, resize(gm, graph, copies))


def shuffled(x: Tensor) -> Tensor:
    return x + x.view(-1, 2, 4, *x.shape[2:]).transpose(1, 2).reshape(x.shape)


def test_assertions_on_channel_counts_do_not_stop_a_resized_network() -> None:
    def body(s: Any, x: Tensor) -> Tensor:
        torch._assert(x.shape[1] == 8, "8 channels")
        torch._assert(x.shape[2] == 6, "6 rows")
        return x

    new = resized(between(body, 8, 8), {"a": 5})
    with pytest.raises(AssertionError, match="6 rows"):
        new(torch.randn(2, 3, 5, 6))


def test_no_global_literal_is_left_after_pruning() -> None:
    """Torch-Pruning #125 #153: constants of reshape and view."""
    f = SIZES["reshape"][0]
    gm, graph = analysed(between(f, 8, 8))
    small = resize(gm, graph, at_widths(graph, {"a": 5}))
    assert literal_arguments(gm, "reshape") == [-1, 8, 36]
    assert literal_arguments(small, "reshape") == [-1, 5, 36]


def test_what_follows_a_shape_is_left_symbolic() -> None:
    f = SIZES["view with sizes of x"][0]
    gm, graph = analysed(between(f, 8, 8))
    small = resize(gm, graph, at_widths(graph, {"a": 5}))
    assert small.code == gm.code


def test_a_literal_without_a_repair_is_refused_until_it_has_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def body(s: Any, x: Tensor) -> Tensor:
        left, right = s.a(x).hsplit([3])
        out: Tensor = s.b(left) + s.c(right)
        return out

    model = Net(body, a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(3, 4, 1), c=nn.Conv2d(5, 4, 1))
    gm, graph = analysed(model)
    copies = at_widths(graph, {"a": 2, "a#2": 4})
    with pytest.raises(ResizeError, match=r"lwdna\.rules\.repairs") as e:
        resize(gm, graph, copies)
    assert "hsplit" in str(e.value)
    assert "(1, 3, 6, 6)" in str(e.value) and "(1, 2, 6, 6)" in str(e.value)

    monkeypatch.setattr(literals, "_REPAIRS", dict(literals._REPAIRS))

    @literals.repairs("hsplit")
    def _(context: literals.Repair) -> None:
        context.set_argument(1, "indices", [context.shape(context.old[0])[1]])

    small = resize(gm, graph, copies)
    assert literal_arguments(small, "hsplit") == [[2]]
    verify.masked_equivalence(gm, graph, copies, small, X)


# --- attributes of modules ---


@pytest.mark.parametrize("width", [5, 12])
def test_module_attributes_tell_the_new_widths(width: int) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1),
        nn.BatchNorm2d(8),
        nn.PReLU(8),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.InstanceNorm2d(8, affine=True, track_running_stats=True),
        nn.GroupNorm(8, 8),
        nn.ConvTranspose2d(8, 8, 2, 2, groups=8),
        nn.LayerNorm([8, 12, 12]),
        nn.Flatten(1),
        nn.Linear(8 * 144, 7),
        nn.LayerNorm(7),
        nn.RMSNorm(7),
        nn.Linear(7, 4),
    )
    new = resized(model, {"0": width, "9": width})
    get = new.get_submodule
    conv, depthwise, transposed = get("0"), get("3"), get("6")
    assert (conv.in_channels, conv.out_channels, conv.groups) == (3, width, 1)
    for m in (depthwise, transposed):
        assert (m.in_channels, m.out_channels, m.groups) == (width, width, width)
    assert get("1").num_features == len(get("1").running_mean) == width
    assert get("2").num_parameters == width
    assert get("4").num_features == len(get("4").running_var) == width
    assert (get("5").num_groups, get("5").num_channels) == (width, width)
    assert get("7").normalized_shape == (width, 12, 12)
    assert (get("9").in_features, get("9").out_features) == (width * 144, width)
    assert get("10").normalized_shape == get("11").normalized_shape == (width,)
    assert (get("12").in_features, get("12").out_features) == (width, 4)
    assert f"Conv2d(3, {width}, kernel_size=(1, 1)" in repr(conv)


class Functional(nn.Module):
    """Calls none of its layers, and uses the tensors of all."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.depthwise = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.group_norm, self.norm = nn.GroupNorm(8, 8), nn.LayerNorm(8)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.conv.weight, self.conv.bias)
        x = F.conv2d(x, self.depthwise.weight, self.depthwise.bias, padding=1, groups=x.shape[1])
        x = F.group_norm(x, x.shape[1], self.group_norm.weight, self.group_norm.bias)
        x = x.mean((2, 3))
        x = F.layer_norm(x, x.shape[1:], self.norm.weight, self.norm.bias)
        return F.linear(x, self.fc.weight, self.fc.bias)


@pytest.mark.parametrize("width", [5, 12])
def test_attributes_of_layers_that_are_not_called_tell_the_new_widths(width: int) -> None:
    new = resized(Functional(), {"conv": width})
    get = new.get_submodule
    assert (get("conv").in_channels, get("conv").out_channels) == (3, width)
    depthwise = get("depthwise")
    widths = (depthwise.in_channels, depthwise.out_channels, depthwise.groups)
    assert widths == (width, width, width)
    assert (get("group_norm").num_groups, get("group_norm").num_channels) == (width, width)
    assert get("norm").normalized_shape == (width,)
    assert (get("fc").in_features, get("fc").out_features) == (width, 4)


@pytest.mark.parametrize("width", [5, 12])
def test_unflatten_modules(width: int) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.Flatten(), nn.Unflatten(1, (8, 6, 6)), nn.Conv2d(8, 4, 1)
    )
    new = resized(model, {"0": width})
    assert tuple(new.get_submodule("2").unflattened_size) == (width, 6, 6)


def test_grouped_convolutions_keep_or_lose_groups() -> None:
    for policy, widths, expected in (
        ("outer", {"0": 3}, (6, 9, 3)),
        ("inner", {"0": 1, "1": 2}, (4, 8, 4)),
    ):
        model = nn.Sequential(
            nn.Conv2d(3, 8, 1), nn.Conv2d(8, 12, 3, groups=4), nn.Conv2d(12, 4, 1)
        )
        gm, graph = analysed(model, policy=policy)
        copies = at_widths(graph, widths)
        new = resize(gm, graph, copies)
        verify.masked_equivalence(gm, graph, copies, new, X)
        conv = new.get_submodule("1")
        assert (conv.in_channels, conv.out_channels, conv.groups) == expected


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("width", [3, 8])
def test_recurrent_modules(kind: Any, width: int) -> None:
    def body(s: Any, x: Tensor) -> Tensor:
        out: Tensor = s.head(s.rnn(s.embed(x))[0])
        return out

    x = torch.randn(2, 7, 4)
    options: dict[str, Any] = {"num_layers": 2, "bidirectional": True, "batch_first": True}
    model = Net(body, embed=nn.Linear(4, 6), rnn=kind(6, 5, **options), head=nn.Linear(10, 3))
    gm, graph = analysed(model, x)
    prunable = {g.name: g.width for g in graph.groups if g.prunable}
    assert prunable.pop("embed") == 6
    (name,) = prunable
    assert prunable[name] == 5
    copies = at_widths(graph, {"embed": 4, name: width})
    new = resize(gm, graph, copies)
    rnn = new.get_submodule("rnn")
    assert (rnn.input_size, rnn.hidden_size) == (4, width)
    assert new.get_submodule("head").in_features == 2 * width
    assert new(torch.randn(5, 9, 4)).shape == (5, 9, 3)
    if width < 5:
        with torch.no_grad():
            assert new(x).isfinite().all()
    verify.round_trip(gm, graph, at_widths(graph, {"embed": 9, name: 8}), x)


def test_embeddings() -> None:
    tokens = torch.randint(11, (2, 5), generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(nn.Embedding(11, 8), nn.Linear(8, 3))
    new = resized(model, {"0.weight[1]": 5}, tokens)
    assert (new.get_submodule("0").num_embeddings, new.get_submodule("0").embedding_dim) == (11, 5)


# --- values ---


def test_kept_entries_keep_their_values_in_order() -> None:
    gm, graph = analysed(nn.Sequential(nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.Conv2d(6, 4, 1)))
    copies = graph.keep_all()
    (units,) = (g.units for g in graph.groups if g.name == "0")
    copies[units] = [1, 0, 2, 1, 0, 3]
    new = resize(gm, graph, copies).state_dict()
    old = gm.state_dict()
    assert torch.equal(new["0.weight"][[0, 1, 3, 4]], old["0.weight"][[0, 2, 3, 5]])
    assert torch.equal(new["2.weight"][:, [0, 1, 3, 4]], old["2.weight"][:, [0, 2, 3, 5]])
    assert new["0.weight"].shape[0] == 7
    for k in (2, 5, 6):  # copies are drawn, not copied
        assert not (new["0.weight"][k] == old["0.weight"]).any()
        assert not (new["2.weight"][:, [k]] == old["2.weight"]).any()


def widened(model: nn.Module, widths: dict[str, int], seed: int = 0) -> GraphModule:
    gm, graph = analysed(model)
    new: GraphModule = resize(gm, graph, at_widths(graph, widths), seed=seed)
    return new


@pytest.mark.parametrize(
    ("init", "std", "mean"),
    [
        (lambda w: nn.init.kaiming_uniform_(w, a=math.sqrt(5)), (1 / 3 / (128 * 9)) ** 0.5, 0.0),
        (lambda w: nn.init.kaiming_normal_(w), (2 / (128 * 9)) ** 0.5, 0.0),
        (lambda w: nn.init.trunc_normal_(w, std=0.002), 0.002, 0.0),
        (lambda w: nn.init.uniform_(w, 0.1, 0.2), 0.1 / 12**0.5, 0.15),
        (lambda w: nn.init.constant_(w, 0.3), 0.0, 0.3),
    ],
)
def test_new_entries_follow_the_law_of_the_old(init: Any, std: float, mean: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.Conv2d(64, 80, 3), nn.Conv2d(80, 4, 1))
    init(model[1].weight)
    new = widened(model, {"0": 128, "1": 160}).get_submodule("1").weight.detach().double()
    kept = torch.zeros(160, 128, dtype=torch.bool)
    kept[::2, ::2] = True  # copies stand directly after their originals
    assert torch.equal(new[kept].float(), model[1].weight.detach().flatten(0, 1))
    fresh = new[~kept]
    error = 4 * std / len(fresh.flatten()) ** 0.5 + 1e-6
    assert float(fresh.std()) == pytest.approx(std, rel=0.01, abs=1e-6)
    assert float(fresh.mean()) == pytest.approx(mean, abs=error)


@pytest.mark.parametrize(
    ("init", "expected"),
    [
        (lambda w: nn.init.kaiming_uniform_(w, a=math.sqrt(5)), ("uniform", "fan_in")),
        (lambda w: nn.init.kaiming_normal_(w), ("normal", "fan_in")),
        (lambda w: nn.init.kaiming_normal_(w, mode="fan_out"), ("normal", "fan_out")),
        (lambda w: nn.init.kaiming_uniform_(w, mode="fan_out"), ("uniform", "fan_out")),
        (lambda w: nn.init.normal_(w, std=0.02), ("normal", "fixed")),
        (lambda w: nn.init.trunc_normal_(w, std=0.02), ("normal", "fixed")),
        (lambda w: nn.init.uniform_(w, -0.5, 0.5), ("uniform", "fixed")),
        (lambda w: nn.init.zeros_(w), ("constant", "fixed")),
        (lambda w: nn.init.ones_(w), ("constant", "fixed")),
    ],
)
def test_the_law_of_an_initialisation_is_recognised(init: Any, expected: tuple[str, str]) -> None:
    torch.manual_seed(0)
    weight = init(torch.empty(160, 48, 3, 3))
    law = init_law.detect(weight, 48 * 9, 160 * 9)
    assert (law.kind, law.scale) == expected
    assert law.std == pytest.approx(float(weight.std()), rel=1e-3)


def test_drawing_a_law_at_a_new_fan() -> None:
    generator = torch.Generator().manual_seed(0)
    like = torch.empty(400, 400)
    normal = init_law.draw(init_law.InitLaw("normal", 0.5, 0.2, "fan_in"), like, 4.0, generator)
    assert float(normal.std()) == pytest.approx(0.1, rel=0.02)
    assert float(normal.mean()) == pytest.approx(0.5, abs=0.002)
    uniform = init_law.draw(init_law.InitLaw("uniform", 0.0, 1.0, "fixed"), like, 1.0, generator)
    assert float(uniform.std()) == pytest.approx(1.0, rel=0.02)
    assert float(uniform.abs().max()) == pytest.approx(3**0.5, rel=1e-3)
    constant = init_law.draw(init_law.InitLaw("constant", 7.0, 0.0, "fixed"), like, 9.0, generator)
    assert (constant == 7).all()
    half = init_law.draw(init_law.InitLaw("normal", 0.0, 1.0, "fixed"), like.half(), 1.0, generator)
    assert half.dtype == torch.float16


def test_fan_out_laws_scale_with_the_outputs() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 48, 3), nn.Conv2d(48, 160, 3), nn.Conv2d(160, 4, 1))
    nn.init.kaiming_normal_(model[1].weight, mode="fan_out")
    new = widened(model, {"0": 96, "1": 320}).get_submodule("1").weight.detach()
    assert float(new[1::2].std()) == pytest.approx((2 / (320 * 9)) ** 0.5, rel=0.02)
    assert float(new[::2, ::2].std()) == pytest.approx((2 / (160 * 9)) ** 0.5, rel=0.02)  # kept


def test_buffers_are_copied_and_norms_stay_constant() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1))
    model[1].running_mean.copy_(torch.arange(4.0))
    new = widened(model, {"0": 6}).get_submodule("1")
    assert new.running_mean.tolist() == [0, 0, 1, 1, 2, 3]
    assert new.weight.tolist() == [1] * 6 and new.bias.tolist() == [0] * 6
    assert new.num_batches_tracked.shape == ()


def test_a_seed_decides_and_the_global_random_state_is_left_alone() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1))
    state = torch.get_rng_state()
    a, b, c = (widened(model, {"0": 12}, seed).state_dict()["0.weight"] for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(a, b) and not torch.equal(a, c)
    torch.manual_seed(123)
    assert torch.equal(widened(model, {"0": 12}).state_dict()["0.weight"], a)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_precision_flags_and_modes_are_kept(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)).to(dtype)
    model[1].eval()
    model[2].weight.requires_grad_(False)
    gm, graph = analysed(model, X.to(dtype))
    new = resize(gm, graph, at_widths(graph, {"0": 12}))
    for (name, p), (other, q) in zip(model.named_parameters(), new.named_parameters(), strict=True):
        assert (name, p.requires_grad, p.dtype) == (other, q.requires_grad, q.dtype)
    assert new.get_submodule("1").running_var.dtype == dtype
    assert not new.get_submodule("1").training and new.get_submodule("0").training


def test_ties_survive() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
            self.c.weight = self.b.weight
            self.head = nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.b(self.a(x))
            out: Tensor = self.head(self.c(x).relu() + self.b(x))
            return out

    for width in (5, 12):
        new = resized(Tied(), {"a": width})
        assert new.get_submodule("c").weight is new.get_submodule("b").weight
        assert new.get_submodule("b").weight.shape == (width, width, 1, 1)


def test_second_names_survive() -> None:
    def body(s: Any, x: Tensor) -> Tensor:
        out: Tensor = s.b(s.alias(x))
        return out

    model = Net(body, a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(8, 4, 1))
    model.alias = model.a
    gm, graph = analysed(model)
    assert list(resize(gm, graph, graph.keep_all()).state_dict()) == list(model.state_dict())


def test_nothing_is_shared_and_the_argument_is_left_alone() -> None:
    gm, graph = analysed(nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)))
    code = gm.code
    for widths in ({}, {"0": 4}, {"0": 12}):
        with verify.untouched(gm):
            new = resize(gm, graph, at_widths(graph, widths))
        ours = {t.data_ptr() for t in gm.state_dict().values()}
        assert not ours & {t.data_ptr() for t in new.state_dict().values()}
        assert [n.name for n in new.graph.nodes] == [n.name for n in gm.graph.nodes]
    assert gm.code == code


# --- refusals ---


def test_frozen_groups_are_refused() -> None:
    gm, graph = analysed(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)))
    for name in ("1", "0.weight[1]"):
        with pytest.raises(ValueError, match="is fixed"):
            resize(gm, graph, at_widths(graph, {name: 2}))
    with pytest.raises(ValueError, match="would be empty"):
        resize(gm, graph, at_widths(graph, {"0": 0}))


def test_a_graph_of_another_network_is_refused() -> None:
    gm, _ = analysed(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)))
    _, graph = analysed(nn.Sequential(nn.Conv2d(3, 9, 1), nn.Conv2d(9, 4, 1)))
    with pytest.raises(ValueError, match=r"'0\.weight'"):
        resize(gm, graph, graph.keep_all())
    with pytest.raises(TypeError, match=r"lwdna\.capture"):
        resize(nn.Sequential(), graph, graph.keep_all())  # type: ignore[arg-type]


def test_a_repair_is_registered_once() -> None:
    with pytest.raises(ValueError, match="already has a repair"):
        literals.repairs("view")(lambda context: None)


def test_copies_must_be_integers_of_the_right_length() -> None:
    gm, graph = analysed(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)))
    with pytest.raises(ValueError, match="non-negative integers"):
        resize(gm, graph, np.ones(3, dtype=np.int64))
