"""Data, networks and protocols of the training tests: small, and learned in seconds."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lwdna.training import PRESETS, Data, Machine, Patches, Pictures, Protocol, tensor_data

CPU = Machine(device="cpu", threads=1)
SIDE = 8


def patterns(count: int, offset: int = 0) -> tuple[Tensor, Tensor]:
    """Noise with a bright quarter, whose place is the class."""
    g = torch.Generator().manual_seed(offset)
    labels = torch.arange(count) % 4
    images = torch.randint(60, (count, 3, SIDE, SIDE), generator=g, dtype=torch.uint8)
    for n, label in enumerate(labels.tolist()):
        half = SIDE // 2
        row, column = half * (label // 2), half * (label % 2)
        images[n, :, row : row + half, column : column + half] += 120
    return images, labels


def labelled(count: int = 64) -> Data:
    return tensor_data(patterns(count), {"test": patterns(24, 1)}, classes=4, name="patterns")


def protocol(*changes: str) -> Protocol:
    small = ["epochs=4", "milestones=[3]", "batch=16", "lr=0.05", f"images.size={SIDE}"]
    preset = PRESETS["cifar-resnet56"].but([*small, "images.padding=1", "images.flip=0"])
    return preset.but(list(changes))


class Plain(nn.Module):
    """Two convolutions and a classifier; no batch norm, so that batches may be split."""

    def __init__(self, width: int = 8, drop: float = 0.0) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, 8, 3, padding=1)
        self.drop = nn.Dropout(drop)
        self.head = nn.Linear(8 * 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv2(torch.relu(self.conv1(x))))
        x = nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)
        return self.head(self.drop(x))


class Normed(nn.Module):
    """With batch norm and dropout: state and random numbers beside the parameters."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(width * 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x)))
        x = nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)
        return self.head(self.drop(x))


def normed() -> nn.Module:
    """A factory: its network can be saved."""
    return seeded(Normed)


def seeded(make: type[nn.Module], seed: int = 0, **arguments: float) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make(**arguments)


def pictures(count: int, height: int, width: int, channels: int = 3) -> Pictures:
    """Smooth pictures: noise, enlarged."""
    g = torch.Generator().manual_seed(7)
    small = torch.rand((count, channels, height // 4, width // 4), generator=g)
    large = nn.functional.interpolate(small, (height, width), mode="bicubic").clamp(0, 1)
    return Pictures(list((255 * large).round().byte()), channels)


def restoration(task: str, **patches: object) -> Protocol:
    settings = {"size": 16, "per_epoch": 32, **patches}
    return Protocol(
        name="short",
        source="tests",
        task=task,  # type: ignore[arg-type]
        epochs=2,
        batch=8,
        lr=1e-3,
        optimizer="adam",
        loss="l1",
        patches=Patches(**settings),  # type: ignore[arg-type]
    )
