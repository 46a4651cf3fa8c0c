"""Networks for images of 28 and 32 pixels; logits (N, classes)."""

from __future__ import annotations

from itertools import pairwise

import timm
import torch.nn.functional as F
from torch import Tensor, nn


def resnet(depth: int = 20, width: int = 16, classes: int = 10) -> CifarResNet:
    """ResNet for CIFAR: 20, 32, 44, 56 or 110 layers.

    Raises:
        ValueError: a depth that is not 6n + 2.
    """
    blocks, rest = divmod(depth - 2, 6)
    if rest or blocks < 1:
        raise ValueError(f"depth={depth}: 6n + 2, such as 20, 56 or 110")
    return CifarResNet(blocks, width, classes)


def small_cnn(width: int = 16, classes: int = 10) -> nn.Sequential:
    """Four convolutions with batch norm and a linear layer, for grey images of 28x28."""
    widths = (1, width, 2 * width, 4 * width, 4 * width)
    layers = [
        layer
        for (inputs, outputs), stride in zip(pairwise(widths), (1, 2, 2, 1), strict=True)
        for layer in (_conv(inputs, outputs, stride), nn.BatchNorm2d(outputs), nn.ReLU())
    ]
    head = nn.Linear(widths[-1], classes)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)


def mobilenetv2(name: str = "mobilenetv2_050", stride: int = 8, classes: int = 10) -> nn.Module:
    """MobileNetV2 of timm with less reduction, for images of 32 or 64 pixels.

    Args:
        name: of timm's model.
        stride: pixels of the image for each position of the last features: 32 as for ImageNet, 16
            without the stem's stride, 8 without that of the second stage, either.
        classes: number of classes.

    Raises:
        ValueError: another stride.
    """
    if stride not in (8, 16, 32):
        raise ValueError(f"stride={stride}: 8, 16 or 32")
    model = timm.create_model(name, num_classes=classes)
    # With kernels of 3 the padding of 1 is right for either stride.
    opened = [model.conv_stem, model.blocks[1][0].conv_dw][: (32 // stride).bit_length() - 1]
    for conv in opened:
        conv.stride = (1, 1)
    return model


class CifarResNet(nn.Module):
    """Three stages of basic blocks, of ``width``, twice and four times as many channels.

    Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2, with
    projections where the shape changes (option B of section 4.1): the identity of option A ties
    the widths of the stages to one another.
    """

    def __init__(self, blocks: int, width: int, classes: int) -> None:
        super().__init__()
        self.conv = _conv(3, width)
        self.norm = nn.BatchNorm2d(width)
        widths = [width] + [width * 2**stage for stage in range(3) for _ in range(blocks)]
        strides = [2 if stage and not block else 1 for stage in range(3) for block in range(blocks)]
        self.blocks = nn.Sequential(
            *(_Block(a, b, s) for (a, b), s in zip(pairwise(widths), strides, strict=True))
        )
        self.head = nn.Linear(widths[-1], classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)  # the paper's: He et al., ICCV 2015

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.norm(self.conv(x))))
        out: Tensor = self.head(x.mean((2, 3)))
        return out


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = _conv(inputs, outputs, stride), nn.BatchNorm2d(outputs)
        self.conv2, self.norm2 = _conv(outputs, outputs), nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride > 1 or inputs != outputs:
            projection = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.shortcut(x) + self.norm2(self.conv2(y)))


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
