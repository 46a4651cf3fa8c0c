"""Networks for the tests of other tools: widened by 2, then shrunk to uneven widths."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lwdna
from lwdna.fx_passes import verify

SIDE, CLASSES = 64, 10

#: Batch norms and shortcuts; attention, norms and parameters of the network itself; depthwise
#: convolutions and gates.
NETWORKS = {
    "resnet": ("test_resnet", {}),
    "vit": ("test_vit", {"img_size": SIDE}),
    "mobilenet": ("test_efficientnet", {}),
}
each = pytest.mark.parametrize("name", NETWORKS)
#: Where a network takes many seconds.
quick_two = pytest.mark.parametrize(
    "name", ["resnet", "vit", pytest.param("mobilenet", marks=pytest.mark.slow)]
)


def original(name: str) -> nn.Module:
    """The network as timm makes it; the same one each time."""
    kind, options = NETWORKS[name]
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(kind, num_classes=CLASSES, **options)
    return model


@cache
def _shrunk(name: str) -> nn.Module:
    net = lwdna.shrink(
        original(name), 0.7, criterion="random", example_inputs=images(), progress=False
    )
    verify.stir(net)  # timm begins with norms of zeros, which silence branches
    return net


def shrunk(name: str) -> Any:
    """A copy of the shrunk network, in training mode."""
    return copy.deepcopy(_shrunk(name))


def images(n: int = 4) -> Tensor:
    return torch.randn(n, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def targets(n: int = 4) -> Tensor:
    return torch.arange(n) % CLASSES


def loss_of(network: Any, n: int = 4) -> Tensor:
    return F.cross_entropy(network(images(n)).float(), targets(n))


def gradients(network: Any, n: int = 4) -> list[Tensor]:
    """Of the loss on one batch, with respect to every parameter."""
    return list(torch.autograd.grad(loss_of(network, n), list(network.parameters())))


def close(found: Any, expected: Any, rtol: float = 1e-4, atol: float = 1e-5) -> None:
    """Equal up to float32's rounding, tensor by tensor."""
    torch.testing.assert_close(found, expected, rtol=rtol, atol=atol)
