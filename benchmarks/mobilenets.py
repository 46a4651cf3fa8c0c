"""MobileNets: V1 and V2 for Tiny-ImageNet's 64x64 images, V3-small for ImageNet.

Written for the rows of ``lwdna.recipes``; ``docs/recipes.md`` says which details the published
costs settle. Images are (N, 3, H, W), float; outputs are logits (N, classes).
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

_V1 = (  # outputs, stride
    *((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)),
    *((512, 1),) * 5,
    *((1024, 2), (1024, 1)),
)
_V2 = (  # expansion, outputs, blocks, stride; the first 6-fold stage keeps its size
    *((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2)),
    *((6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)),
)
_V3_SMALL = (  # kernel, expanded width, outputs, squeeze-and-excitation, hard swish, stride
    (3, 16, 16, True, False, 2),
    (3, 72, 24, False, False, 2),
    (3, 88, 24, False, False, 1),
    (5, 96, 40, True, True, 2),
    (5, 240, 40, True, True, 1),
    (5, 240, 40, True, True, 1),
    (5, 120, 48, True, True, 1),
    (5, 144, 48, True, True, 1),
    (5, 288, 96, True, True, 2),
    (5, 576, 96, True, True, 1),
    (5, 576, 96, True, True, 1),
)

Activation = Callable[[], nn.Module]


class MobileNet(nn.Module):
    """A feature extractor, the mean over positions, a classifier."""

    def __init__(self, features: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.features = features
        self.classifier = classifier

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.classifier(self.features(x).mean((2, 3)))
        return out


def mobilenetv1(classes: int = 200) -> MobileNet:
    """MobileNetV1, width 1. Source: Howard et al., arXiv 1704.04861."""
    layers: list[nn.Module] = [_unit(3, 32, 3, stride=2, activation=nn.ReLU)]
    inputs = 32
    for outputs, stride in _V1:
        layers += [
            _unit(inputs, inputs, 3, stride=stride, groups=inputs, activation=nn.ReLU),
            _unit(inputs, outputs, 1, activation=nn.ReLU),
        ]
        inputs = outputs
    return MobileNet(
        nn.Sequential(*layers), nn.Sequential(nn.Dropout(0.2), nn.Linear(inputs, classes))
    )


def mobilenetv2(classes: int = 200) -> MobileNet:
    """MobileNetV2, width 1. Source: Sandler et al., CVPR 2018."""
    layers: list[nn.Module] = [_unit(3, 32, 3, stride=2, activation=nn.ReLU6)]
    inputs = 32
    for expansion, outputs, blocks, stride in _V2:
        for block in range(blocks):
            layers.append(
                InvertedResidual(
                    inputs, inputs * expansion, outputs, 3, stride if block == 0 else 1, nn.ReLU6
                )
            )
            inputs = outputs
    layers.append(_unit(inputs, 1280, 1, activation=nn.ReLU6))
    return MobileNet(
        nn.Sequential(*layers), nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, classes))
    )


def mobilenetv3_small(classes: int = 1000) -> MobileNet:
    """MobileNetV3-small, width 1. Source: Howard et al., ICCV 2019, hidden layer as in DHP."""
    layers: list[nn.Module] = [_unit(3, 16, 3, stride=2, activation=HardSwish)]
    inputs = 16
    for kernel, hidden, outputs, squeeze, swish, stride in _V3_SMALL:
        activation = HardSwish if swish else nn.ReLU
        layers.append(
            InvertedResidual(inputs, hidden, outputs, kernel, stride, activation, squeeze=squeeze)
        )
        inputs = outputs
    layers += [_unit(inputs, 576, 1, activation=HardSwish), SqueezeExcitation(576)]
    return MobileNet(
        nn.Sequential(*layers),
        nn.Sequential(nn.Linear(576, 1280), HardSwish(), nn.Linear(1280, classes)),
    )


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution, linear projection; a skip where the shape is kept."""

    def __init__(
        self,
        inputs: int,
        hidden: int,
        outputs: int,
        kernel: int,
        stride: int,
        activation: Activation,
        *,
        squeeze: bool = False,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        if hidden != inputs:
            layers.append(_unit(inputs, hidden, 1, activation=activation))
        layers.append(
            _unit(hidden, hidden, kernel, stride=stride, groups=hidden, activation=activation)
        )
        if squeeze:
            layers.append(SqueezeExcitation(hidden))
        layers.append(_unit(hidden, outputs, 1))
        self.layers = nn.Sequential(*layers)
        self.skip = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.layers(x) if self.skip else self.layers(x)
        return out


class SqueezeExcitation(nn.Module):
    """Every channel times a gate from the means of all channels; the hidden width is a quarter."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.Linear(width, width // 4), nn.ReLU(), nn.Linear(width // 4, width), HardSigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        gate: Tensor = self.gate(x.mean((2, 3)))
        return x * gate[:, :, None, None]


class HardSigmoid(nn.Module):
    """``relu6(x + 3) / 6``, with the ReLU6 as a module, which the authors' counter sees."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU6()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.relu(x + 3) / 6
        return out


class HardSwish(nn.Module):
    """``x * hard_sigmoid(x)``."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = HardSigmoid()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x * self.gate(x)
        return out


def _unit(
    inputs: int,
    outputs: int,
    kernel: int,
    *,
    stride: int = 1,
    groups: int = 1,
    activation: Activation | None = None,
) -> nn.Sequential:
    """Convolution, batch norm, and the activation if there is one."""
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    if activation is not None:
        layers.append(activation())
    return nn.Sequential(*layers)
