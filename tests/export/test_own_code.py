"""Functions and modules of the user's own, and what is refused."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lwdna
from lwdna.errors import UnsupportedModelError
from lwdna.fx_passes import modules
from tests.export.comparison import exported, round_trip, same
from tests.export.networks import X
from tests.toy_detector import batch, detector

HOSTILE = '"]); import os #\n"""'  # capture refuses such names; they can come later


class Doubled(torch.autograd.Function):
    """Another gradient than its operators have."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * 5


@torch.jit.script
def scripted(x: Tensor) -> Tensor:
    return x.relu() + 1


class Kept(nn.Module):
    """Declared a leaf; one attribute is counted on."""

    def __init__(self, channels: int, rate: float = 0.5) -> None:
        super().__init__()
        self.channels, self.rate, self.calls = channels, rate, 0
        self.weight = nn.Parameter(torch.rand(channels))
        self.act: nn.Module = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(x) * self.weight[:, None, None] * (self.rate + self.calls)
        return out


class Lost(Kept):
    """Forgets what it was made with."""

    def __init__(self, size: int) -> None:
        super().__init__(size)


class Odd(Kept):
    """Keeps what no code can say."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.handle = object()


@pytest.fixture
def declared() -> Any:
    """Modules that stay whole, for the time of a test."""
    before = dict(modules._RESIZERS)
    lwdna.rules.resizes(Kept, Lost, Odd)(lambda module, facts, shape: None)
    yield
    modules._RESIZERS.clear()
    modules._RESIZERS.update(before)


class Calls(nn.Module):
    """Calls a function, and holds a layer."""

    def __init__(self, function: Callable[[Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.conv, self.function = nn.Conv2d(3, 3, 1), function
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.conv(x))


def test_functions_are_called_by_name(tmp_path: Path) -> None:
    text = round_trip(Calls(lambda x: scripted(Doubled.apply(x))), tmp_path, X)
    assert "test_own_code.Doubled.apply(x)" in text and "test_own_code.scripted(x)" in text


def test_modules_of_the_users_own_are_made_again(declared: None, tmp_path: Path) -> None:
    kept = Kept(3, rate=0.25)
    kept.calls, kept.act = 3, nn.Hardtanh(-1, 2)
    text = round_trip(nn.Sequential(nn.Conv2d(3, 3, 1), kept), tmp_path, X)
    assert "test_own_code.Kept(3, rate=0.25)" in text
    assert "self[1].calls = 3" in text and "self[1].act = nn.Hardtanh(" in text


def hooked() -> nn.Module:
    net = lwdna.capture(Calls(F.relu), X)
    net.conv.register_forward_hook(lambda *_: None)  # type: ignore[union-attr, operator]
    return net


def local() -> nn.Module:
    class Layer(nn.ReLU):
        pass

    net = lwdna.capture(Calls(F.relu, act=nn.ReLU()), X)
    net.act = Layer()
    return net


def argument() -> nn.Module:
    class Network(nn.Module):
        def forward(self, nn: Tensor) -> Tensor:
            return nn + 1

    return lwdna.capture(Network(), X)


@torch.library.custom_op("test_export::twice", mutates_args=())
def twice(x: Tensor) -> Tensor:
    return x * 2


@twice.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def parametrized() -> nn.Module:
    conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 3, 1))
    return lwdna.capture(nn.Sequential(conv), X)


def leaf(kind: type[nn.Module]) -> nn.Module:
    return lwdna.capture(nn.Sequential(nn.Conv2d(3, 3, 1), kind(3)), X)


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (hooked, "module 'conv' .Conv2d. has hooks"),
        (local, "module 'act' .Layer. needs .*Layer"),
        (argument, "an argument 'nn'"),
        (
            lambda: lwdna.capture(Calls(lambda x: torch.ops.test_export.twice(x)), X),
            "nothing tells which import registers it",
        ),
        (parametrized, "module '0' .ParametrizedConv2d. has a parametrization"),
        (lambda: leaf(Lost), "module '1' .Lost. does not keep the argument 'size'"),
        (lambda: leaf(Odd), "module '1' .Odd. differs from what its constructor makes: handle"),
        (lambda: lwdna.capture(detector(), batch()), "captured in parts"),
    ],
)
def test_what_cannot_be_written_is_named(
    declared: None, net: Callable[[], nn.Module], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "exported.py"
    path.write_text("as it was")
    captured = net()
    with pytest.raises(UnsupportedModelError, match=message):
        lwdna.export_source(captured, path)
    assert path.read_text() == "as it was" and list(tmp_path.iterdir()) == [path]


def test_layers_that_were_put_in_later_come_along(tmp_path: Path) -> None:
    net = lwdna.capture(Calls(F.relu, head=nn.Conv2d(3, 4, 1)), X)
    net.conv = nn.Sequential(nn.Dropout(0.5), nn.Conv2d(3, 6, 1))
    net.head = nn.Conv2d(4, 5, 1)
    same(net, exported(net, tmp_path), X)


def test_names_that_came_later_are_quoted(tmp_path: Path) -> None:
    net = lwdna.capture(Calls(F.relu), X)
    net.add_module(HOSTILE, nn.Sequential(OrderedDict({"a'b": nn.Conv2d(3, 3, 1)})))
    net.register_buffer("a\\", torch.rand(1))
    same(net, exported(net, tmp_path), X)


def test_a_part_of_a_detector_is_a_network(tmp_path: Path) -> None:
    parts = lwdna.capture(detector(), batch())
    part: Any = parts.get_submodule("stem")
    same(part, exported(part, tmp_path), X)


def test_what_is_not_captured_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="pass what lwdna"):
        lwdna.export_source(nn.ReLU(), tmp_path / "exported.py")
