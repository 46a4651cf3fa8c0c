"""The metric ``activations`` against a count of what real networks compute."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import lwdna
from lwdna.fx_passes.widen import widen_copies
from lwdna.graph import ChannelGraph

aten = torch.ops.aten
PRODUCTS = {aten.convolution, aten.linear, aten.mm, aten.addmm, aten.bmm, aten.baddbmm}


class Counter(TorchDispatchMode):
    """Adds up the elements of what the operators return that really run."""

    elements = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._schema.name
        if func.overloadpacket in PRODUCTS:
            self.elements += out.numel()
        elif "scaled_dot_product" in name:
            query, key = args[:2]
            out_first = out if isinstance(out, Tensor) else out[0]
            self.elements += query.shape[:-1].numel() * key.shape[-2] + out_first.numel()
        return out


def counted(model: nn.Module, x: Tensor) -> int:
    with torch.no_grad(), Counter() as counter:
        model.to("meta").eval()(x[:1].to("meta"))
    return counter.elements


def vit(fused: bool) -> nn.Module:
    before = timm.layers.use_fused_attn()
    timm.layers.set_fused_attn(fused)
    try:
        return timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2, num_classes=10)
    finally:
        timm.layers.set_fused_attn(before)


NETWORKS = {
    "resnet18": lambda: torchvision.models.resnet18(),
    "mobilenet_v2": lambda: torchvision.models.mobilenet_v2(),
    "densenet": lambda: torchvision.models.DenseNet(8, (2, 2), 16),
    "vit": lambda: vit(True),
    "transposed": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3, 2), nn.ConvTranspose2d(8, 6, 4, 2), nn.Conv2d(6, 4, 1, groups=2)
    ),
}


def graph_of(model: nn.Module, x: Tensor) -> tuple[nn.Module, ChannelGraph]:
    gm = lwdna.capture(model, x)
    return gm, lwdna.analyse(gm, x)


@pytest.mark.parametrize("name", NETWORKS)
def test_predicted_is_counted(name: str) -> None:
    x = torch.zeros(2, 3, 64, 64)
    gm, graph = graph_of(NETWORKS[name](), x)
    expected = counted(NETWORKS[name](), x)
    assert graph.cost().activations == expected > 0
    rng = np.random.default_rng(0)
    thin = graph.keep_all()
    for group in graph.groups:
        if group.prunable:
            thin[group.units] = rng.random(group.width) < 0.6
            thin[group.units[0]] = 1
    for copies in (thin, widen_copies(graph, 1.5)):
        predicted = graph.cost(copies).activations
        assert predicted != expected
        assert predicted == graph.restrict(copies).cost().activations
        assert predicted == counted(lwdna.resize(gm, graph, copies), x)


def test_fused_attention_counts_like_its_two_products() -> None:
    x = torch.zeros(2, 3, 64, 64)
    assert graph_of(vit(True), x)[1].cost().activations == counted(vit(False), x)


@pytest.mark.parametrize(
    ("name", "millions"), [("resnet50", "11.1"), ("resnet101", "16.2"), ("regnetx_040", "12.2")]
)
def test_published_figures(name: str, millions: str) -> None:
    """Tables of pycls' model zoo (convolutions only), the paper's own code."""
    x = torch.zeros(2, 3, 224, 224)
    model = timm.create_model(name).to("meta")
    classes = 1000  # the classifier's outputs, which those tables leave out
    cost = lwdna.analyse(lwdna.capture(model, x), x).cost()
    assert f"{(cost.activations - classes) / 1e6:.1f}" == millions
