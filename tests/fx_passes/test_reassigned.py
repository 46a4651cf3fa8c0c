"""Buffers that ``forward`` replaces or updates: carried over, or refused with what helps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lwdna
from lwdna.errors import CaptureError

IMAGE = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))


class Centred(nn.Module):
    """Two convolutions; between them the moving mean of the channels, kept in a buffer."""

    def __init__(self, update: Callable[[Any, Tensor], None]) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)
        self.update = update
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        self.update(self, h.detach().mean((0, 2, 3)))
        out: Tensor = self.b(h - self.mean[:, None, None])
        return out


class Mean(nn.Module):
    """The same buffer in a module of its own."""

    def __init__(self, update: Callable[[Any, Tensor], None]) -> None:
        super().__init__()
        self.update = update
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, h: Tensor) -> Tensor:
        self.update(self, h.detach().mean((0, 2, 3)))
        return h - self.mean[:, None, None]


def assigned(s: Any, mean: Tensor) -> None:
    s.mean = 0.9 * s.mean + 0.1 * mean


def assigned_in_training(s: Any, mean: Tensor) -> None:
    if s.training:
        assigned(s, mean)


def counted(s: Any, _: Tensor) -> None:
    s.mean = s.mean + 1


def in_place_in_training(s: Any, mean: Tensor) -> None:
    if s.training:
        s.mean.lerp_(mean, 0.1)


UPDATES = [assigned, assigned_in_training, counted, in_place_in_training]


@pytest.mark.parametrize("update", UPDATES)
def test_a_buffer_of_the_network_itself_is_refused(update: Any) -> None:
    with pytest.raises(CaptureError, match="Keep the buffer and what updates it in a module"):
        lwdna.capture(Centred(update), IMAGE)


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("inner", [Mean, Centred])
def test_a_buffer_of_a_module_is_updated_as_in_the_model(inner: Any, update: Any) -> None:
    channels = (3, 8) if inner is Mean else (3, 3)
    model = nn.Sequential(nn.Conv2d(*channels, 1), inner(update), nn.ReLU())
    gm = lwdna.capture(model, IMAGE)
    for training in (True, False, True):
        assert torch.equal(model.train(training)(IMAGE), gm.train(training)(IMAGE))
        assert torch.equal(model[1].mean, gm.get_buffer("1.mean"))
    assert model[1].mean.abs().sum() > 0


def test_a_cache_is_no_state() -> None:
    def cached(s: Any, _: Tensor) -> None:
        s.mean = torch.arange(8.0) + s.a.bias

    model = Centred(cached)
    gm = lwdna.capture(model, IMAGE)
    assert torch.equal(gm(IMAGE), model(IMAGE))


def test_a_buffer_of_another_module_is_refused() -> None:
    def other(s: Any, mean: Tensor) -> None:
        s.b.scale = mean

    model = Centred(other)
    model.b.register_buffer("scale", torch.zeros(8))
    with pytest.raises(CaptureError, match=r"assigns the buffer 'b\.scale'"):
        lwdna.capture(model, IMAGE)


def test_a_change_in_place_of_an_activation_asks_for_a_new_tensor() -> None:
    class Doubled(Centred):
        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            seen = h.view(-1)
            if self.training:
                h.mul_(2)
            return self.b(h) + seen.sum()

    with pytest.raises(CaptureError, match=r"x = x \* 2"):
        lwdna.capture(Doubled(assigned), IMAGE)
