"""The data of a run: training set and test sets, before any protocol has touched them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lwdna.errors import TrainingError

_SUFFIXES = (".png", ".bmp", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".ppm", ".pgm")


@dataclass(frozen=True, eq=False)
class TensorImages:
    """Images and labels in memory, on any device: the quickest for small images.

    Attributes:
        images: uint8, (N, C, H, W).
        labels: int64, (N,).

    Raises:
        TrainingError: other shapes or types.
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.dim() != 4:
            raise TrainingError(
                f"images are {self.images.dtype} of shape {tuple(self.images.shape)}: uint8 of "
                "shape (N, C, H, W) is wanted"
            )
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise TrainingError(
                f"labels are {self.labels.dtype} of shape {tuple(self.labels.shape)}: int64 of "
                f"shape ({len(self.images)},) is wanted"
            )

    def __len__(self) -> int:
        return len(self.images)


class LabelledImages(Sized, Protocol):
    """A map-style data set of (PIL image, class): torchvision's and timm's without a transform."""

    def __getitem__(self, index: int, /) -> tuple[Any, int]:
        """Image and class."""
        ...


@dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures for super-resolution and denoising, in memory as soon as they were used.

    Attributes:
        pictures: uint8 tensors (C, H, W), or paths of image files.
        channels: 3, or 1 for grey; files are converted.

    Raises:
        TrainingError: none, or tensors of another kind.
    """

    pictures: Sequence[Tensor | Path]
    channels: int = 3

    def __post_init__(self) -> None:
        if not len(self.pictures):
            raise TrainingError("no pictures: pass at least one")
        for n, picture in enumerate(self.pictures):
            if isinstance(picture, Tensor):
                right = picture.dtype == torch.uint8 and picture.dim() == 3
                if not right or len(picture) != self.channels:
                    raise TrainingError(
                        f"picture {n} is {picture.dtype} of shape {tuple(picture.shape)}: uint8 of "
                        f"shape ({self.channels}, H, W) is wanted"
                    )

    @classmethod
    def folder(cls, path: str | Path, channels: int = 3) -> Pictures:
        """All image files in a folder and the folders in it, by name.

        Raises:
            TrainingError: there are none.
        """
        found = sorted(p for p in Path(path).rglob("*") if p.suffix.lower() in _SUFFIXES)
        if not found:
            raise TrainingError(f"{path} holds no pictures ({' '.join(_SUFFIXES)})")
        return cls(found, channels)

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Tensor:
        """Picture ``index``, uint8, (C, H, W)."""
        if index not in self._read:
            self._read[index] = self._opened(self.pictures[index])
        return self._read[index]

    @cached_property
    def _read(self) -> dict[int, Tensor]:
        return {}

    def _opened(self, picture: Tensor | Path) -> Tensor:
        if isinstance(picture, Tensor):
            return picture
        try:
            with Image.open(picture) as image:
                values = np.array(image.convert("L" if self.channels == 1 else "RGB"))
        except OSError as e:
            raise TrainingError(f"{picture} is no picture: {e}") from e
        tensor = torch.from_numpy(values)
        return tensor[None] if self.channels == 1 else tensor.permute(2, 0, 1).contiguous()


Source = TensorImages | Pictures | LabelledImages


@dataclass(frozen=True, eq=False)
class Data:
    """What a network is trained and tested on.

    Attributes:
        name: tells it from other data, in results and when a run is resumed.
        train: training set; None if there is nothing but tests.
        tests: name -> test set. Metrics are called ``"name/metric"``.
        classes: number of classes; None for super-resolution and denoising.

    Raises:
        TrainingError: names that cannot be told apart.
    """

    name: str
    train: Source | None
    tests: Mapping[str, Source] = field(default_factory=dict)
    classes: int | None = None

    def __post_init__(self) -> None:
        for name in self.tests:
            if name in ("", "train", "ema") or "/" in name:
                raise TrainingError(f"a test set named {name!r}: take another name")


def tensor_data(
    train: tuple[Tensor, Tensor] | None,
    tests: Mapping[str, tuple[Tensor, Tensor]],
    *,
    classes: int,
    name: str = "tensors",
) -> Data:
    """Data of a classifier in memory.

    Args:
        train: images, uint8, (N, C, H, W), and labels, int64, (N,).
        tests: name -> the same.
        classes: number of classes.
        name: of the data.

    Raises:
        TrainingError: other shapes or types, or labels that are no classes.
    """
    for where, pair in (("train", train), *tests.items()):
        labels = None if pair is None else pair[1]
        if labels is not None and len(labels) and not 0 <= labels.min() <= labels.max() < classes:
            raise TrainingError(
                f"labels of {where!r} run from {labels.min()} to {labels.max()}: {classes} classes "
                f"are 0 to {classes - 1}"
            )
    sets = {key: TensorImages(*pair) for key, pair in tests.items()}
    return Data(name, None if train is None else TensorImages(*train), sets, classes)
