"""Every network that lwdna promises to handle, through every invariant.

Traced, counted and budgeted at the default resolution; run at a small one where the architecture
allows, which also shows that the resolution stayed dynamic.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

import lwdna
from benchmarks.networks import NETWORKS, build, small_size
from lwdna.fx_passes import verify
from lwdna.fx_passes.widen import widen_copies

#: One or two of each mechanism; the others are run by `make test-all`.
QUICK = {
    "timm:resnet18",  # residual stages
    "timm:mobilenetv2_100",  # depthwise
    "timm:mobilenetv3_small_100",  # squeeze-and-excitation
    "timm:regnety_004",  # grouped convolution
    "timm:resnest14d",  # split attention
    "timm:skresnet18",  # selective kernels
    "timm:dla34",  # aggregation trees
    "timm:repvgg_a0",  # branches with identity
    "timm:ghostnet_100",  # concatenation, slicing
    "timm:eca_resnet33ts",  # convolution along the channels
    "timm:mixer_s32_224",  # token mixing
    "timm:vit_tiny_patch16_224",  # attention
    "timm:mobilevit_xxs",  # convolution and attention
    "torchvision:shufflenet_v2_x1_0",  # channel shuffle
    "torchvision:squeezenet1_1",  # a convolution as classifier
    "torchvision:swin_t",  # functional attention, scale from the width
}


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in NETWORKS]
)
def test_shrinking_to_70_percent_keeps_every_invariant(name: str) -> None:
    torch.manual_seed(0)
    model, size = build(name)
    verify.stir(model)
    full, small = torch.empty(2, *size), torch.randn(2, *small_size(name))
    with verify.untouched(model):
        net = lwdna.shrink(
            model, 0.7, widen=1.0, criterion="random", data=None, example_inputs=full
        )
    dna = net.meta["lwdna"]
    assert 0.6965 <= dna.after.macs / dna.before.macs <= 0.7, dna.note

    gm = lwdna.capture(model, full)
    graph = lwdna.analyse(gm, full)
    copies = dna.copies(graph)
    verify.identity(model, gm, small)
    verify.identity(model, lwdna.resize(gm, graph, graph.keep_all()), small)
    verify.cost(graph, copies, net)
    verify.restriction(graph, copies, net)
    verify.masked_equivalence(gm, graph, copies, net, small)
    verify.trains(net, small)
    if name != "timm:vgg11_bn":  # four times 133 M parameters: the round trip is in test_resize
        verify.round_trip(gm, graph, widen_copies(graph, 1.25), small)


def test_a_wrong_width_is_noticed() -> None:
    """The oracle of the tests above fails when one channel is not the one that was meant."""
    torch.manual_seed(0)
    model, _ = build("timm:resnet18")
    verify.stir(model)
    x = torch.randn(2, 3, 64, 64)
    gm = lwdna.capture(model, x)
    graph = lwdna.analyse(gm, x)
    copies = verify.random_copies(graph, 0.7, np.random.default_rng(0))
    net = lwdna.resize(gm, graph, copies)
    group = next(g for g in graph.groups if g.prunable)
    swapped = copies.copy()
    removed, kept = (group.units[copies[group.units] == n][0] for n in (0, 1))
    swapped[[removed, kept]] = 1, 0
    verify.masked_equivalence(gm, graph, copies, net, x)
    with pytest.raises(lwdna.VerificationError, match="masked equivalence"):
        verify.masked_equivalence(gm, graph, swapped, net, x)
