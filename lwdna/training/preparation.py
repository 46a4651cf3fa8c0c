"""The part of a protocol that is about images: how they are cut, changed and given to a network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from lwdna.errors import TrainingError

Crop = Literal["whole", "padded", "resized"]


@dataclass(frozen=True)
class Images:
    """How the images of a classifier are cut, changed and normalised.

    Attributes:
        size: side of the network's input, in pixels.
        crop: of a training image: ``"whole"`` (resized and cut in the middle, as for testing),
            ``"padded"`` (a random ``size`` × ``size`` window of the image with a black frame) or
            ``"resized"`` (a random window, resized).
        padding: width of the black frame, in pixels.
        area: least and greatest share of the image that a resized window has.
        flip: probability of a mirrored training image.
        auto_augment: timm's policy, such as ``"rand-m9-mstd0.5"``; None for none.
        color_jitter: timm's strength; 0 for none.
        erasing: probability of timm's random erasing.
        mixup: alpha of mixup; 0 for none.
        cutmix: alpha of CutMix; 0 for none.
        test_share: share of the image that the window in the middle has, in width.
        mean: per channel, of values in [0, 1].
        std: per channel.
    """

    size: int
    crop: Crop = "resized"
    padding: int = 4
    area: tuple[float, float] = (0.08, 1.0)
    flip: float = 0.5
    auto_augment: str | None = None
    color_jitter: float = 0.0
    erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    test_share: float = 0.875
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        require_positive(self, "size", "test_share")
        require_shares(self, "flip", "erasing", "test_share")
        for name in ("padding", "color_jitter", "mixup", "cutmix"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        least, most = self.area
        require(0 < least <= most <= 1, "area", self.area, "two shares, the smaller first")
        if self.crop != "resized":
            for name in ("auto_augment", "color_jitter", "erasing"):
                value = getattr(self, name)
                require(not value, name, value, "null or 0 unless crop='resized'")
        require(len(self.mean) == len(self.std), "std", self.std, "as long as mean")
        require(all(s > 0 for s in self.std), "std", self.std, "positive numbers")


@dataclass(frozen=True)
class Patches:
    """How patches are cut from pictures for super-resolution and denoising.

    Attributes:
        size: side of a patch of the target, in pixels.
        per_epoch: patches that make an epoch; each picture gives the same number, or one more.
        channels: 3 for colour, 1 for grey.
        scale: of super-resolution; the input is the target, bicubic, by this factor smaller.
        sigma: standard deviation of the Gaussian noise, for white = 255.
        flips: patches are mirrored and transposed, each with probability 0.5.
        white: value of white in the network's inputs and outputs.
        multiple: test pictures are mirrored at their edges up to sides that are multiples of it
            (of the input), and the output is cut: for networks that halve the picture.
    """

    size: int
    per_epoch: int
    channels: int = 3
    scale: int = 1
    sigma: float = 0.0
    flips: bool = True
    white: float = 255.0
    multiple: int = 1

    def __post_init__(self) -> None:
        require_positive(self, "size", "per_epoch", "scale", "white", "multiple")
        require(self.channels in (1, 3), "channels", self.channels, "1 or 3")
        require(self.sigma >= 0, "sigma", self.sigma, "0 or more")
        require(self.size % self.scale == 0, "size", self.size, f"a multiple of {self.scale}")


def require(holds: bool, name: str, value: Any, remedy: str) -> None:
    """Refuse a setting that does not hold, by its name and what it must be."""
    if not holds:
        raise TrainingError(f"{name}={value!r}: must be {remedy}")


def require_positive(of: Any, *names: str) -> None:
    """Refuse settings that are not above 0."""
    for name in names:
        require(getattr(of, name) > 0, name, getattr(of, name), "positive")


def require_shares(of: Any, *names: str) -> None:
    """Refuse settings that are not between 0 and 1."""
    for name in names:
        require(0 <= getattr(of, name) <= 1, name, getattr(of, name), "between 0 and 1")
