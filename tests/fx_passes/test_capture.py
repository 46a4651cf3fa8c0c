"""Capture: the same network, with names, modes, sizes and sharing as they were."""

from __future__ import annotations

import copy
import operator
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.fx
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn
from torch.fx import GraphModule

from lwdna.errors import CaptureError, UnsupportedModelError
from lwdna.fx_passes import verify
from lwdna.fx_passes.analyse import analyse
from lwdna.fx_passes.capture import capture
from lwdna.fx_passes.resize import resize

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Of(nn.Module):
    """conv a -> ``f(self, x)`` -> whatever; extra layers by name."""

    def __init__(self, f: Callable[[Any, Tensor], Any], **layers: Any) -> None:
        super().__init__()
        self.f = f
        self.a = nn.Conv2d(3, 8, 1)
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: Tensor) -> Any:
        return self.f(self, self.a(x))


def captured(model: nn.Module, x: Any = X) -> GraphModule:
    """The capture, checked against the model in evaluation mode."""
    with verify.untouched(model):
        gm = capture(model, x)
    verify.identity(model, gm, x)
    return gm


def targets(gm: GraphModule, op: str) -> list[Any]:
    return [node.target for node in gm.graph.nodes if node.op == op]


def same_in_both_modes(model: nn.Module, gm: GraphModule, x: Tensor = X) -> None:
    """Equal outputs under equal random numbers, in training and in evaluation."""
    for training in (True, False, True):
        outputs = []
        for network in (model, gm):
            network.train(training)
            torch.manual_seed(5)
            outputs.append(network(x))
        assert torch.equal(*outputs), f"differs with training={training}"


# --- names ---


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.bn = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.bn(self.conv(x)).relu()
        return out


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4, 1, 1))
        self.stem = nn.Conv2d(3, 4, 1)
        self.unused = nn.Linear(2, 2)
        self.blocks = nn.Sequential(Block(4), Block(4))
        self.register_buffer("mean", torch.zeros(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.ones(3, 1, 1))
        self.never = nn.Parameter(torch.ones(5), requires_grad=False)
        self.plain = torch.full((4, 1, 1), 2.0)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem((x - self.mean) / self.std) * self.scale
        out: Tensor = self.blocks(x) * self.plain
        return out


def test_module_calls_stay_module_calls() -> None:
    gm = captured(Named())
    assert targets(gm, "call_module") == [
        "stem",
        *(f"blocks.{k}.{name}" for k in (0, 1) for name in ("conv", "bn")),
    ]


def test_state_dict_keys_and_order_include_what_is_unused() -> None:
    model = Named()
    gm = captured(model)
    assert list(gm.state_dict()) == list(model.state_dict())
    assert {"unused.weight", "never", "std"} <= gm.state_dict().keys()
    assert "mean" not in gm.state_dict()  # a non-persistent buffer stays one
    assert "mean" in dict(gm.named_buffers())
    assert dict(gm.named_parameters()).keys() == dict(model.named_parameters()).keys()
    assert not gm.never.requires_grad
    gm.load_state_dict(model.state_dict(), strict=True)


def test_print_shows_the_original_class_names() -> None:
    text = str(captured(Named()))
    for line in (
        "Named(",
        "(stem): Conv2d(3, 4, kernel_size=(1, 1), stride=(1, 1))",
        "(blocks): Sequential(",
        "(0): Block(",
        "(bn): BatchNorm2d(4, eps=",
    ):
        assert line in text
    assert "Container" not in text and "GraphModule" not in text


def test_capturing_a_capture_changes_nothing() -> None:
    first = captured(Named())
    second = capture(first, X)
    assert second is not first
    assert second.code == first.code
    verify.identity(first, second, X)


# --- sizes ---


@pytest.mark.parametrize(
    "f",
    [
        lambda s, x: x.flatten(2).mean(-1),
        lambda s, x: x.view(x.shape[0], 2, 4, x.shape[2], -1).sum(1),
        lambda s, x: x.reshape(x.size(0), -1, x.size(-1)),
        lambda s, x: F.interpolate(x, size=(x.shape[2] * 2, x.shape[3] // 2)),
        lambda s, x: x + torch.arange(x.shape[3], device=x.device),
        lambda s, x: x * torch.linspace(0, 1, x.shape[2], device=x.device).unsqueeze(-1),
        lambda s, x: torch.cat([x, torch.zeros(x.shape[0], 1, *x.shape[2:], device=x.device)], 1),
        lambda s, x: torch.cat([x, x.new_ones(x.size(0), 1, x.shape[2], x.shape[3])], 1),
        lambda s, x: F.pad(x, (0, x.shape[3] % 3, 0, -x.shape[2] % 5)),
        lambda s, x: x[:, :, : x.shape[2] // 2, -(x.shape[3] // 2) :],
        lambda s, x: F.avg_pool2d(x, x.size()[2:]),
        lambda s, x: F.avg_pool2d(x, kernel_size=(x.size(2), x.shape[3] // 2)),
        lambda s, x: F.avg_pool1d(x.flatten(2), x.shape[2:3]),
        lambda s, x: F.adaptive_avg_pool1d(x.flatten(2), x.shape[2]),
        lambda s, x: F.interpolate(F.max_pool2d(x, 2), size=x.shape[2:], mode="bilinear"),
    ],
)
def test_batch_and_resolution_stay_dynamic(f: Any) -> None:
    model = Of(f)
    gm = captured(model)
    for n, h, w in ((1, 8, 8), (5, 8, 8), (3, 12, 10), (2, 6, 14)):
        x = torch.randn(n, 3, h, w)
        assert torch.equal(gm.eval()(x), model.eval()(x))


def test_the_length_of_a_batch_stays_dynamic_or_is_guarded() -> None:
    gm = captured(Of(lambda s, x: x.reshape(len(x), -1)))
    try:
        out = gm(X[:1])
    except AssertionError:
        return
    assert out.shape[0] == 1


def test_sizes_that_decide_the_control_flow_are_guarded() -> None:
    model = Of(lambda s, x: x[:, :4] if x.shape[2] > 7 else x)
    gm = captured(model)
    gm(torch.randn(3, 3, 9, 5))  # decided the same way
    with pytest.raises(AssertionError, match=r"captured for True .*capture again") as raised:
        gm(torch.randn(2, 3, 7, 8))
    assert f"{Path(__file__).name}:" in str(raised.value)
    assert str(Path(__file__).parent) not in gm.code  # graphs are saved, and used elsewhere
    assert capture(model, torch.randn(2, 3, 7, 8))(torch.randn(2, 3, 6, 6)).shape[1] == 8


@pytest.mark.parametrize("limit", [7, 9])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_guards_stand_in_the_way_of_no_other_tracer(limit: int) -> None:
    """torch.jit.trace, by which fvcore counts, makes tensors of sizes."""
    gm = captured(Of(lambda s, x: x[:, :4] if x.shape[2] > limit else x))
    assert torch.equal(torch.jit.trace(gm, X)(X), gm(X))


def test_numbers_taken_from_sizes_are_guarded() -> None:
    gm = captured(Of(lambda s, x: F.adaptive_avg_pool2d(x, int(x.shape[2] ** 0.5))))
    assert gm(torch.randn(5, 3, 8, 12)).shape == (5, 8, 2, 2)
    with pytest.raises(AssertionError, match="capture again"):
        gm(torch.randn(2, 3, 16, 16))


def test_no_example_size_is_written_into_the_graph() -> None:
    gm = captured(Of(lambda s, x: x.view(x.shape[0], -1, x.shape[2] * x.shape[3])))
    (view,) = (node for node in gm.graph.nodes if node.target == "view")
    assert [a for a in view.args if isinstance(a, int)] == [-1]


@pytest.mark.parametrize("factory", ["arange(8)", "zeros(8)", "ones(8, 1)", "rand(8)", "eye(8)"])
def test_factories_without_a_device(factory: str) -> None:
    model = Of(lambda s, x: x * eval(f"torch.{factory}"))
    gm = capture(model, X)
    analyse(gm, X)


# --- modes ---


class Gate(nn.Module):
    """Dropout by hand: a constant that follows the mode."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x * (self.p if self.training else 1.0), 0.25, self.training)


@pytest.mark.parametrize(
    "model",
    [
        Of(lambda s, x: F.dropout(x, 0.5, training=s.training)),
        Of(lambda s, x: F.dropout(x, p=0.5 if s.training else 0.0)),
        Of(lambda s, x: F.dropout(x, 0.5 if s.training else 0.0, True)),
        Of(lambda s, x: s.g(s.h(x)), g=Gate(0.5), h=Gate(3.0)),
        Of(lambda s, x: s.d(x), d=nn.Dropout(0.5)),
        Of(lambda s, x: x + s.d(x), d=DropPath(0.5)),
        Of(lambda s, x: x * (2 if s.training else 3)),
        Of(lambda s, x: x[:, : (4 if s.training else 8)].mean(1)),
        Of(
            lambda s, x: F.scaled_dot_product_attention(
                x, x, x, dropout_p=0.5 if s.training else 0.0
            )
        ),
        Of(lambda s, x: s.n(x), n=nn.BatchNorm2d(8)),
        Of(lambda s, x: F.batch_norm(x, s.m, s.v, training=s.training), m=None, v=None),
    ],
    ids=str,
)
def test_what_depends_on_the_mode_follows_train_and_eval(model: Of) -> None:
    model = copy.deepcopy(model)
    if "v" in vars(model):
        del model.m, model.v
        model.register_buffer("m", torch.zeros(8))
        model.register_buffer("v", torch.ones(8))
    for start in (True, False):
        gm = capture(model.train(start), X)
        assert gm.training is start
        reference = copy.deepcopy(model)
        same_in_both_modes(reference, gm)
        again = copy.deepcopy(gm)
        same_in_both_modes(reference.load_state_dict(gm.state_dict()) and reference, again)


def test_the_mode_of_each_module_is_kept() -> None:
    """A frozen batch norm in a training network stays in evaluation mode."""
    model = Named().train()
    model.blocks[0].bn.eval()
    gm = capture(model, X)
    assert gm.training and gm.get_submodule("blocks.1.bn").training
    assert not gm.get_submodule("blocks.0.bn").training
    torch.testing.assert_close(gm(X), model(X), rtol=0, atol=0)


def test_a_module_that_differs_in_structure_becomes_a_leaf() -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                x = x + torch.randn_like(x)
            return x.sin()

    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.noisy = Noisy()

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.noisy(x) * 2
            return out

    model = Of(lambda s, x: s.around(x), around=Around())
    gm = captured(model)
    assert targets(gm, "call_module") == ["a", "around.noisy"]  # the innermost
    same_in_both_modes(model, gm)


class Twice(nn.Module):
    """Two drop paths around one convolution: the paths to them are siblings of its path."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.drop1, self.conv, self.drop2 = DropPath(rate), nn.Conv2d(8, 8, 1), DropPath(rate)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop1(x.sin())
        out: Tensor = x + self.drop2(self.conv(x))
        return out


def test_only_the_innermost_module_becomes_a_leaf() -> None:
    model = Of(lambda s, x: s.blocks(x), blocks=nn.Sequential(Twice(0.5), Twice(0.0), Twice(0.5)))
    gm = captured(model)
    assert targets(gm, "call_module") == [
        "a",
        *("blocks.0.drop1", "blocks.0.conv", "blocks.0.drop2"),
        "blocks.1.conv",  # without a rate the drop paths are the same in both modes
        *("blocks.2.drop1", "blocks.2.conv", "blocks.2.drop2"),
    ]
    same_in_both_modes(model, gm)


class Auxiliary(nn.Module):
    """A second head in training, as in GoogLeNet; its result may be a pair or a named tuple."""

    def __init__(self, pack: Any = None) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6)
        self.aux = nn.Sequential(nn.Conv2d(6, 5, 1), nn.BatchNorm2d(5))
        self.head = nn.Conv2d(6, 4, 1)
        self.pack = pack

    def forward(self, x: Tensor) -> Any:
        x = self.bn(self.stem(x))
        aux = self.aux(x) if self.training else None
        x = self.head(x.relu())
        if self.pack is None or not self.training:
            return x
        return self.pack(x, aux)


class Outputs(NamedTuple):
    logits: Tensor
    aux: Tensor | None


@pytest.mark.parametrize("pack", [Outputs, lambda x, aux: {"out": x, "aux": aux}])
def test_outputs_of_training_mode_only_are_kept(pack: Any) -> None:
    model = Auxiliary(pack)
    gm = captured(model)
    model.train(), gm.train()
    expected, given = model(X), gm(X)
    assert type(given) is type(expected)
    torch.testing.assert_close(given, expected, rtol=0, atol=0)
    assert gm.aux[1].running_mean.abs().sum() > 0
    model.eval(), gm.eval()
    assert torch.equal(gm(X), model(X))
    kept = copy.deepcopy(gm.aux[1].running_mean)
    gm(X + 1)
    assert torch.equal(gm.aux[1].running_mean, kept)


def test_the_channels_of_a_training_output_are_fixed_and_those_before_it_shared() -> None:
    gm = capture(Auxiliary(Outputs), X)
    graph = analyse(gm, X)
    where = {s.name: group for group in graph.groups for s, _ in group.slots if s.dim == 0}
    assert not where["aux.0.weight"].prunable and not where["head.weight"].prunable
    assert where["stem.weight"].prunable
    copies = verify.random_copies(graph, 0.5, np.random.default_rng(0))
    small = resize(gm, graph, copies)
    assert small.train()(X).aux.shape == (2, 5, 8, 8)
    assert small.stem.weight.shape[0] < 6


def functional_drop_path(x: Tensor, rate: float, training: bool) -> Tensor:
    if not training:
        return x
    mask = x.new_empty(x.shape[0], 1, 1, 1).bernoulli_(1 - rate)
    mask.div_(1 - rate)
    return x * mask


class Functional(nn.Module):
    """A drop path that is no module: it may not close the block around it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.bn = nn.Conv2d(8, 6, 1), nn.Conv2d(6, 8, 1), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        x = x + functional_drop_path(self.b(self.a(x).relu()), 0.5, self.training)
        return x + functional_drop_path(self.bn(x), 0.5, self.training)


def test_functions_that_depend_on_the_mode_stay_open() -> None:
    model = Of(lambda s, x: s.blocks(x), blocks=nn.Sequential(Functional(), Functional()))
    gm = captured(model)
    calls = targets(gm, "call_module")
    assert len(calls) == 7 and calls.count("blocks.1.bn") == 1
    same_in_both_modes(model, gm)
    graph = analyse(gm, X)
    open_ = {s.name for group in graph.groups if group.prunable for s, _ in group.slots}
    assert {"blocks.0.a.weight", "blocks.1.a.weight"} <= open_
    copies = verify.random_copies(graph, 0.5, np.random.default_rng(0))
    verify.masked_equivalence(gm, graph, copies, resize(gm, graph, copies), X)


def test_a_choice_between_two_results_couples_their_channels() -> None:
    body = Of(
        lambda s, x: s.b(x) if s.training else s.c(x), b=nn.Conv2d(8, 8, 1), c=nn.Conv2d(8, 8, 1)
    )
    gm = captured(nn.Sequential(body, nn.Conv2d(8, 2, 1)))
    graph = analyse(gm, X)
    (group,) = (
        g for g in graph.groups if any(s.name == "0.b.weight" and s.dim == 0 for s, _ in g.slots)
    )
    assert group.prunable
    assert {s.name for s, _ in group.slots} >= {"0.b.weight", "0.c.weight", "1.weight"}


def test_what_one_mode_changes_in_place_stays_in_its_module() -> None:
    class Running(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 1)
            self.register_buffer("mean", torch.zeros(8, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            if self.training:
                self.mean.copy_(x.mean((0, 2, 3))[:, None, None])
            return x - self.mean

    model = Of(lambda s, x: s.r(x), r=Running())
    gm = captured(model)
    assert targets(gm, "call_module") == ["a", "r"]
    with pytest.raises(CaptureError, match=r"Running\.forward has a different .*in place") as e:
        capture(Running(), torch.randn(2, 8, 4, 4))
    assert "module of its own" in str(e.value)


class Caching(nn.Module):
    """Keeps what it computes, as ConViT keeps its position table."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.grid: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.grid is None or self.grid.shape[0] != x.shape[3]:
            self.grid = torch.arange(x.shape[3], device=x.device).float()
        out: Tensor = self.conv(x) + self.grid
        return out


def test_what_a_model_keeps_from_a_call_does_not_reach_the_next_trace() -> None:
    model = Caching()
    gm = capture(model, X)
    assert model.grid is None
    assert torch.equal(gm(X), model(X))


# --- refusals ---


@pytest.mark.parametrize(
    "f",
    [
        lambda s, x: x if x.sum() > 0 else -x,
        lambda s, x: x * int(x.amax()),
        lambda s, x: x * float(x.amax()),
        lambda s, x: x[[0] * x.argmax()],
        lambda s, x: x * x.sum().item(),
    ],
)
def test_control_flow_on_values_is_refused_with_the_source_line(f: Any) -> None:
    line = f.__code__.co_firstlineno
    with pytest.raises(CaptureError, match="static graph") as e:
        capture(Of(f), X)
    assert f"{Path(__file__).name}:{line}: " in str(e.value)


def test_control_flow_on_shapes_is_resolved() -> None:
    gm = captured(Of(lambda s, x: x.sum(1) if x.shape[1] == 8 and x.dim() == 4 else x))
    assert "sum" in targets(gm, "call_method")


def test_a_lazy_model_is_refused() -> None:
    model = nn.Sequential(nn.LazyConv2d(4, 1), nn.Conv2d(4, 2, 1))
    with pytest.raises(UnsupportedModelError, match=r"'0\.weight' is lazy.*run the model once"):
        capture(model, X)
    model(X)
    captured(model)


def test_a_missing_argument_is_named() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return x * mask

    with pytest.raises(CaptureError, match="'mask'"):
        capture(Two(), X)
    gm = capture(Two(), (X, X))
    assert torch.equal(gm(X, 2 * X), 2 * X * X)


def test_none_is_none() -> None:
    class Maybe(nn.Module):
        def forward(self, x: Tensor, mask: Tensor | None, scale: float) -> Tensor:
            return x * scale if mask is None else x * mask

    gm = capture(Maybe(), (X, None, 2.0))
    assert torch.equal(gm(X, None, 2.0), 2 * X)


class Picks(nn.Module):
    """Drops tokens in training, as timm's PatchDropout does."""

    def __init__(self, index_in_eval: bool) -> None:
        super().__init__()
        self.index_in_eval = index_in_eval

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        if not self.training:
            return x, torch.arange(8, device=x.device) if self.index_in_eval else None
        index = torch.randperm(8, device=x.device)
        return x[:, index], index


def picked(s: Any, x: Tensor) -> Tensor:
    x, index = s.picks(x)
    order = torch.arange(8, device=x.device).view(8, 1, 1) + 1
    return x * (order if index is None else order[index])


def test_a_leaf_may_return_a_tuple() -> None:
    model = Of(picked, picks=Picks(index_in_eval=True))
    gm = captured(model)
    assert targets(gm, "call_module") == ["a", "picks"]
    same_in_both_modes(model, gm)


def test_what_needs_a_value_of_one_mode_only_is_refused() -> None:
    with pytest.raises(CaptureError, match="a Tensor in that mode and a NoneType in the other"):
        capture(Of(picked, picks=Picks(index_in_eval=False)), X)


def test_defaults_of_arguments_that_are_not_given() -> None:
    class Optional(nn.Module):
        def forward(self, x: Tensor, mask: Tensor | None = None, scale: float = 3.0) -> Tensor:
            return x * scale if mask is None else x * mask

    gm = capture(Optional(), X)
    assert torch.equal(gm(X), 3 * X)


def test_defaults_that_are_numbers() -> None:
    class Scaled(nn.Module):
        def forward(self, x: Tensor, scale: float = 3.0) -> Tensor:
            return x * scale

    gm = capture(Scaled(), X)
    assert torch.equal(gm(X), 3 * X) and torch.equal(gm(X, 2.0), 2 * X)


# --- Python in forward ---


def outer_product(x: Tensor, y: Tensor) -> Tensor:
    return x.unsqueeze(1) * y.unsqueeze(2)


torch.fx.wrap("outer_product")


def test_functions_marked_by_fx_wrap_are_opened() -> None:
    gm = captured(Of(lambda s, x: outer_product(x, x.relu()).sum(1)))
    assert targets(gm, "call_method").count("unsqueeze") == 2
    assert outer_product not in targets(gm, "call_function")


def test_in_place_operators_and_item_assignment_survive() -> None:
    def body(s: Any, x: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        y[:, 2:5] = x[:, 2:5]
        y[:, 0] += 1
        y.mul_(2)
        x *= 3
        x -= y
        x[..., : x.shape[-1] // 2].add_(1)
        F.relu(x, inplace=True)
        unused = y.sin()  # noqa: F841
        return x

    gm = captured(Of(body))
    assert targets(gm, "call_function").count(operator.setitem) >= 1
    assert "sin" not in targets(gm, "call_method")  # without effect and without use
    x = torch.randn(3, 3, 6, 6)
    model = Of(body)
    model.load_state_dict(gm.state_dict())
    assert torch.equal(gm(x), model(x))


def test_tensors_made_in_forward_are_constants_or_factories() -> None:
    gm = captured(Of(lambda s, x: x * torch.tensor([1.0, 2.0]).repeat(4).view(8, 1, 1) + CONSTANT))
    assert any(torch.equal(t, CONSTANT) for t in gm.buffers())
    assert all("constant" not in key for key in gm.state_dict())


CONSTANT = torch.arange(8.0).view(8, 1, 1)


def test_a_constant_is_not_shared_with_its_module() -> None:
    gm = captured(Of(lambda s, x: x + CONSTANT))
    (found,) = (t for t in gm.buffers() if torch.equal(t, CONSTANT))
    assert found.data_ptr() != CONSTANT.data_ptr()
    assert CONSTANT.device.type == "cpu" and found.device.type == "cpu"


@pytest.mark.parametrize(
    "f",
    [
        lambda s, x: {"out": x, "pair": (x * 2, [x * 3])},
        lambda s, x: (x, None, 3),
        lambda s, x: [2 * y for y in x.split(2, 1)],
        lambda s, x: dict(zip("ab", x.chunk(2, 1), strict=True))["b"],
        lambda s, x: torch.stack(x.unbind(1)[::2]),
        lambda s, x: sum(part.mean() for part in x.split([3, 5], 1)),
    ],
)
def test_structured_values(f: Any) -> None:
    captured(Of(f))


def test_fields_of_named_results() -> None:
    captured(Of(lambda s, x: x.max(1).values + x.topk(2, 1).values.sum(1) + x.sort(1).values[:, 0]))


def test_forward_with_varargs() -> None:
    class Several(nn.Module):
        def forward(self, *xs: Tensor) -> Tensor:
            return xs[0].mean((2, 3)) + xs[1].mean((2, 3))

    gm = capture(Several(), (X, X))
    assert torch.equal(gm(X, X), 2 * X.mean((2, 3)))


@pytest.mark.parametrize(("call", "code"), [("where(x > 0, x, 0.0)", 0), ("clamp(x, 0, x)", 1)])
def test_scalar_overloads_do_not_crash_the_process(call: str, code: int) -> None:
    # torch has no clamp(Tensor, number, Tensor): an error, but not of the process
    program = f"""
import torch
from lwdna.fx_passes.capture import capture
class N(torch.nn.Module):
    def forward(self, x):
        return torch.{call}
capture(N(), torch.randn(2, 3, 4, 4))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=120)
    assert done.returncode == code
    assert (b"CaptureError" in done.stderr) == (code == 1)


# --- sharing ---


def test_shared_modules_and_tied_weights_stay_shared() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
            self.blocks = nn.Sequential(Block(3), Block(3))
            self.blocks[1] = self.blocks[0]
            self.c.weight = self.b.weight

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.blocks(self.a(self.a(self.b(self.c(x)))))
            return out

    gm = captured(Shared())
    assert gm.c.weight is gm.b.weight
    assert gm.get_submodule("blocks.0") is gm.get_submodule("blocks.1")
    again = copy.deepcopy(gm)
    assert again.c.weight is again.b.weight
    assert again.get_submodule("blocks.0") is again.get_submodule("blocks.1")
    verify.identity(gm, again, X)


@pytest.mark.parametrize("what", ["module", "parameter"])
def test_second_names_survive_a_deepcopy(what: str) -> None:
    class Alias(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(3, 3, 1)
            self.w = nn.Parameter(torch.ones(3, 1, 1))
            self.alias = self.a if what == "module" else self.w

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.a(x) * self.w
            return out

    gm = captured(Alias())
    assert list(copy.deepcopy(gm).state_dict()) == list(gm.state_dict())


@pytest.mark.parametrize(
    "container", [nn.ModuleList, lambda m: nn.ModuleDict({"0": m[0], "1": m[1]})]
)
def test_lists_and_dicts_of_modules_are_containers_too(container: Any) -> None:
    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Block(3)
            self.block.plain = torch.tensor(2.0)
            self.blocks = container([self.block, self.block])

        def forward(self, x: Tensor) -> Tensor:
            for k in (0, 1):
                x = self.blocks[k if isinstance(self.blocks, nn.ModuleList) else str(k)](x)
            return x

    gm = captured(Listed())
    assert gm.get_submodule("blocks.0") is gm.get_submodule("blocks.1") is gm.block
    assert not isinstance(gm.block, Block)


def test_nothing_is_shared_with_the_model() -> None:
    model = Named()
    gm = captured(model)
    ours = {t.data_ptr() for t in (*gm.parameters(), *gm.buffers())}
    theirs = {t.data_ptr() for t in (*model.parameters(), *model.buffers(), model.plain)}
    assert not ours & theirs
    assert not {id(m) for m in gm.modules()} & {id(m) for m in model.modules()}
    with torch.no_grad():
        for p in gm.parameters():
            p.zero_()
    assert all(p.abs().sum() > 0 for p in model.parameters() if p.requires_grad and p.dim() > 1)


def test_gradients_hooks_and_random_state_of_the_model_stay() -> None:
    model = Named()
    model(X).sum().backward()
    model.stem.register_forward_hook(lambda *_: None)
    with verify.untouched(model):
        capture(model, X)
    assert model.stem.weight.grad is not None


def test_meta_inputs_are_enough() -> None:
    model = Named()
    gm = capture(model, X.to("meta"))
    verify.identity(model, gm, X)


def test_a_batch_of_one_is_enough() -> None:
    model = Named()
    gm = capture(model, X[:1])
    verify.identity(model, gm, X)
    same_in_both_modes(copy.deepcopy(model), gm)


def test_the_captured_network_trains() -> None:
    verify.trains(captured(Named()), X)


class Keywords(nn.Module):
    """Words of Python, which are no names in code, as names of modules and tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleDict(
            {"in": nn.Conv2d(3, 8, 1), "class": nn.ModuleDict({"0": nn.BatchNorm2d(8)})}
        )
        self.scales = nn.ParameterDict({"for": torch.rand(8, 1, 1) + 1, "form": torch.rand(())})
        self.add_module("None", nn.Conv2d(8, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] == 3:  # asserted in the graph
            x = self.blocks["class"]["0"](self.blocks["in"](x))
        y: Tensor = self.get_submodule("None")(x * self.scales["for"] + self.scales["form"])
        return y


def test_words_of_python_are_names_too() -> None:
    model = Keywords()
    verify.stir(model)
    gm = captured(model)
    assert list(gm.state_dict()) == list(model.state_dict())
    verify.identity(model, copy.deepcopy(gm), X)
    assert verify.verify(model, X).statements


@pytest.mark.parametrize("name", ['a"b', "a\\b", "a\nb", 'x", __import__("os"), "'])
def test_names_do_not_become_code(name: str) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleDict({name: nn.Conv2d(3, 4, 1)})

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.layers[name](x)
            return y

    with pytest.raises(UnsupportedModelError, match="would become code"):
        capture(Named(), torch.randn(2, 3, 4, 4))
    parameters = nn.Module()
    parameters.register_parameter(name, nn.Parameter(torch.ones(3)))
    with pytest.raises(UnsupportedModelError, match="would become code"):
        capture(parameters, torch.randn(2, 3, 4, 4))


class Scaled(nn.Module):
    """A tensor that is no buffer, and what forward makes of it."""

    def __init__(self, use: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.scale, self.use = nn.Conv2d(3, 4, 1), torch.randn(4, 1, 1), use

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x) * self.use(self.scale)
        return y


@pytest.mark.parametrize(
    "use",
    [
        lambda s: s,
        lambda s: s[None],
        lambda s: s * 2 + 1,
        lambda s: torch.stack([s, s]).sum(0),
        lambda s: s.view(1, s.shape[0], 1, s.size(1)),
    ],
)
def test_tensors_that_are_no_buffers_keep_their_values(use: Callable[[Tensor], Tensor]) -> None:
    model, x = Scaled(use), torch.randn(2, 3, 4, 4)
    assert torch.equal(capture(model, x)(x), model(x))
    verify.verify(model, x)


def test_a_constant_without_values_is_refused() -> None:
    with pytest.raises(CaptureError, match="register that tensor as a buffer"):
        capture(Scaled(lambda s: s.mT.contiguous()), torch.randn(2, 3, 4, 4))
