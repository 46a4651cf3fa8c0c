"""Networks that never ask for their mode are traced once; all others in both modes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lwdna
from lwdna.fx_passes.mode_reads import set_mode
from lwdna.fx_passes.tracer import HintedTracer

IMAGE = torch.randn(2, 3, 8, 8)


class Net(nn.Module):
    """Convolution, norm and what ``act`` does."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.drop = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)

    def act(self, x: Tensor) -> Tensor:
        return x.relu()

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.act(self.bn(self.conv(x))))


class Direct(Net):
    def act(self, x: Tensor) -> Tensor:
        return x * 2 if self.training else x


class ByName(Net):
    def act(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5, getattr(self, "tr" + "aining"))


class OfAChild(Net):
    def act(self, x: Tensor) -> Tensor:
        return x * 2 if self.bn.training else x


class Negative(nn.BatchNorm2d):
    """A norm whose mode decides over its child's call."""

    def __init__(self) -> None:
        super().__init__(4)
        self.after = Direct()

    def forward(self, x: Tensor) -> Tensor:
        return self.after.act(super().forward(x))


class InALeaf(Net):
    def __init__(self) -> None:
        super().__init__()
        self.bn = Negative()


class Switched(Net):
    factor = 1

    def train(self, mode: bool = True) -> Any:
        self.factor = 2 if mode else 1
        return super().train(mode)

    def act(self, x: Tensor) -> Tensor:
        return x * self.factor


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Modes in which the network was traced."""
    modes: list[bool] = []
    trace = HintedTracer.trace

    def counted(self: HintedTracer, root: Any, *args: Any) -> Any:
        modes.append(root.training)
        return trace(self, root, *args)

    monkeypatch.setattr(HintedTracer, "trace", counted)
    return modes


def test_a_network_that_does_not_ask_is_traced_once(traces: list[bool]) -> None:
    model = Net()
    gm = lwdna.capture(model, IMAGE)
    assert traces == [False]
    assert "training" not in vars(nn.Module)
    for mode in (True, False):
        results = []
        for net in (model, gm):
            torch.manual_seed(0)
            results.append(net.train(mode)(IMAGE))
        torch.testing.assert_close(*results, rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:.*overrides train")
@pytest.mark.parametrize("kind", [Direct, ByName, OfAChild, InALeaf, Switched])
def test_whoever_may_see_the_mode_has_both_traced(kind: type[Net], traces: list[bool]) -> None:
    lwdna.capture(kind(), IMAGE)
    assert traces[:2] == [False, True]


def test_a_network_that_fails_leaves_modules_as_they_were() -> None:
    model = Net()
    with pytest.raises(lwdna.CaptureError):
        lwdna.capture(model, torch.randn(2, 5, 8, 8))
    assert "training" not in vars(nn.Module)
    assert model.training


class _Cached(nn.Linear):
    """Clears what it caches in training."""

    def train(self, mode: bool = True) -> nn.Linear:
        self.seen = [*getattr(self, "seen", []), mode]
        return super().train(mode)


class _Flagged(nn.Module):
    """Keeps its mode elsewhere."""

    @property
    def training(self) -> bool:
        return self.mode == "train"

    @training.setter
    def training(self, value: bool) -> None:
        vars(self)["mode"] = "train" if value else "eval"


class _Noting(nn.Module):
    """Sees what is set."""

    def __setattr__(self, name: str, value: object) -> None:
        vars(self).setdefault("noted", []).append((name, value))
        super().__setattr__(name, value)


@pytest.mark.parametrize("training", [False, True])
def test_set_mode_does_what_train_does(training: bool) -> None:
    net = nn.Sequential(nn.ReLU(), nn.Sequential(_Flagged(), _Noting()))
    set_mode(net.train(not training), training)
    assert all(m.training is training for m in net.modules())
    assert net[1][1].noted[-1] == ("training", training)


def test_set_mode_calls_a_train_of_a_modules_own_in_both_modes() -> None:
    net = nn.Sequential(nn.ReLU(), _Cached(2, 3))
    set_mode(net, training=False)
    assert net[1].seen == [True, False]
    assert not any(m.training for m in net.modules())
