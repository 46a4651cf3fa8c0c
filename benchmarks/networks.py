"""The reference networks: one list for the benchmarks and the tests.

A network is named ``"library:name"``. All are built without pretrained weights.
"""

from __future__ import annotations

from typing import Any

import timm
import torchvision
from torch import nn

from benchmarks.detectors import DETECTORS, SIDE, detector
from lwdna.source import without_values

Size = tuple[int, int, int]

#: Every mechanism that couples channels occurs in at least one of them.
NETWORKS: tuple[str, ...] = (
    "timm:resnet18",
    "timm:resnet50",
    "timm:resnext50_32x4d",
    "timm:regnetx_040",
    "timm:regnety_004",
    "timm:mobilenetv1_100",
    "timm:mobilenetv2_100",
    "timm:mobilenetv3_small_100",
    "timm:efficientnet_b0",
    "timm:densenet121",
    "timm:vgg11_bn",
    "timm:convnext_tiny",
    "timm:res2net50_26w_4s",
    "timm:resnest14d",
    "timm:skresnet18",
    "timm:hrnet_w18_small",
    "timm:dla34",
    "timm:cspdarknet53",
    "timm:repvgg_a0",
    "timm:ghostnet_100",
    "timm:eca_resnet33ts",
    "timm:nfnet_f0",
    "timm:inception_v3",
    "timm:nasnetalarge",
    "timm:mixer_s32_224",
    "timm:vit_tiny_patch16_224",
    "timm:swin_tiny_patch4_window7_224",
    "timm:mobilevit_xxs",
    "timm:xcit_nano_12_p8_224",
    "timm:sequencer2d_s",
    "torchvision:resnet50",
    "torchvision:shufflenet_v2_x1_0",
    "torchvision:swin_t",
    "torchvision:deeplabv3_resnet50",
    "torchvision:fcn_resnet50",
    "torchvision:squeezenet1_1",
)

_SMALL = 96  # pixels; the reference resolution of tests
#: Below these, the network takes another branch than at its default size.
_SMALL_EXCEPTIONS = {"torchvision:swin_t": 224, "timm:mobilevit_xxs": 128, "timm:vgg11_bn": 224}


def build(name: str, **settings: Any) -> tuple[nn.Module, Size]:
    """Build a network with random weights.

    The weights follow the global random state: call ``torch.manual_seed`` before.

    Args:
        name: ``"timm:resnet18"``, ``"torchvision:resnet50"``; any network of the two libraries.
        settings: further arguments of the library's constructor.

    Returns:
        The network in training mode, and its default input size (C, H, W). Detectors are set up
        for small images (see ``benchmarks.detectors``).

    Raises:
        ValueError: the library is neither timm nor torchvision.
    """
    library, _, model = name.partition(":")
    if library == "timm":
        return timm.create_model(model, pretrained=False, **settings), default_size(name)
    if library == "torchvision":
        if model in DETECTORS:
            return detector(model), default_size(name)
        segmentation = torchvision.models.list_models(module=torchvision.models.segmentation)
        if model in segmentation:
            settings = {"weights_backbone": None, **settings}
        return torchvision.models.get_model(model, weights=None, **settings), default_size(name)
    raise ValueError(f"{name!r}: write 'timm:<name>' or 'torchvision:<name>'")


def build_on_meta(name: str, **settings: Any) -> tuple[nn.Module, Size]:
    """:func:`build` without values: parameters and buffers on the meta device."""
    return without_values(lambda: build(name, **settings)[0]), default_size(name)


def default_size(name: str) -> Size:
    """The input size (C, H, W) in a timm model's configuration; 224 pixels for torchvision."""
    library, _, model = name.partition(":")
    if library == "torchvision" and model in DETECTORS:
        return 3, SIDE, SIDE
    config = timm.get_pretrained_cfg(model) if library == "timm" else None
    return (3, 224, 224) if config is None else config.input_size


def small_size(name: str) -> Size:
    """The smallest input size (C, H, W) that is worth testing: the default where it is fixed."""
    library, _, model = name.partition(":")
    if library == "timm":
        config = timm.get_pretrained_cfg(model)
        if config is not None and config.fixed_input_size:
            return default_size(name)
    elif model in DETECTORS:
        return default_size(name)
    side = _SMALL_EXCEPTIONS.get(name, _SMALL)
    return 3, side, side
