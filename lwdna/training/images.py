"""Images of classifiers as a protocol has them: cut, mirrored, normalised."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from lwdna.errors import TrainingError
from lwdna.training.data import LabelledImages, TensorImages
from lwdna.training.preparation import Images
from lwdna.training.randomness import Draw, generator, seeded


class TensorSet(Dataset[Any]):
    """Images in memory; a whole batch is cut and mirrored at once.

    Args:
        source: images and labels.
        settings: of the protocol.
        training: cut and mirror at random.

    Raises:
        TrainingError: what the settings ask for needs files, or images of another size.
    """

    def __init__(self, source: TensorImages, settings: Images, *, training: bool) -> None:
        self.source, self.settings, self.training = source, settings, training
        channels, height, width = source.images.shape[1:]
        if training and settings.crop == "resized":
            raise TrainingError(
                "images in memory are cut with images.crop='padded' or 'whole': change the "
                "protocol, or take a folder of files"
            )
        if (height, width) != (settings.size, settings.size):
            raise TrainingError(
                f"images of {height}x{width}, and the protocol's images.size={settings.size}"
            )
        if channels != len(settings.mean):
            raise TrainingError(
                f"images of {channels} channels, and images.mean={settings.mean} of "
                f"{len(settings.mean)}"
            )
        # Of one epoch at a time.
        self._of_epoch = lru_cache(maxsize=1)(self._drawn)

    def __len__(self) -> int:
        return len(self.source)

    def __getitems__(self, draws: Sequence[Draw]) -> tuple[Tensor, Tensor]:
        """A batch: float32 (B, C, H, W), in channels-last order, and int64 (B,)."""
        index = torch.tensor([draw.number for draw in draws])
        device = self.source.images.device
        images = self.source.images[index.to(device)]
        if self.training:
            # As many random numbers for every image, and those of its own: of any batch the same.
            offsets, mirrored = self._of_epoch(draws[0].seed, draws[0].epoch)
            images = self._cut(images, offsets[index].to(device), mirrored[index].to(device))
        return self._normalised(images), self.source.labels[index.to(device)]

    def _drawn(self, seed: int, epoch: int) -> tuple[Tensor, Tensor]:
        """Offsets of the window, (N, 2), and whether it is mirrored, (N,), of all images."""
        g = generator(seed, epoch)
        most = 2 * self.settings.padding if self.settings.crop == "padded" else 0
        offsets = torch.randint(most + 1, (len(self), 2), generator=g)
        return offsets, torch.rand(len(self), generator=g) < self.settings.flip

    def _cut(self, images: Tensor, offsets: Tensor, mirrored: Tensor) -> Tensor:
        count, _, size, _ = images.shape
        along = torch.arange(size, device=images.device)
        rows = offsets[:, :1] + along
        columns = offsets[:, 1:] + torch.where(mirrored[:, None], along.flip(0), along)
        if self.settings.crop == "padded":
            images = F.pad(images, (self.settings.padding,) * 4)
        image = torch.arange(count, device=images.device)
        # Indices around a slice come first: (B, H, W, C), which is channels-last order.
        cut = images[image[:, None, None], :, rows[:, :, None], columns[:, None, :]]
        return cut.permute(0, 3, 1, 2)

    def _normalised(self, images: Tensor) -> Tensor:
        mean, std = (
            255 * torch.tensor(values, device=images.device).view(1, -1, 1, 1)
            for values in (self.settings.mean, self.settings.std)
        )
        return images.float().sub_(mean).div_(std)


class FileSet(Dataset[Any]):
    """Images of a torchvision or timm data set, each changed with random numbers of its own.

    Args:
        source: gives PIL images and classes.
        settings: of the protocol.
        training: change them at random.
    """

    def __init__(self, source: LabelledImages, settings: Images, *, training: bool) -> None:
        self.source = source
        self.transform = _transform(settings, training)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, draw: Draw) -> tuple[Tensor, int]:
        """One image, float32 (C, H, W), and its class."""
        image, label = self.source[draw.number]
        with seeded(*draw):
            return self.transform(image), label


def _transform(settings: Images, training: bool) -> Any:
    """The transform of timm; the padded window is torchvision's, which timm does not offer."""
    from timm.data import create_transform
    from torchvision import transforms as T

    channels = len(settings.mean)
    shape = (channels, settings.size, settings.size)
    common: dict[str, Any] = {"input_size": shape, "mean": settings.mean, "std": settings.std}
    if not training or settings.crop == "whole":
        whole = create_transform(**common, crop_pct=settings.test_share)
        flip = T.RandomHorizontalFlip(settings.flip if training else 0.0)
        return T.Compose([_mode(channels), flip, whole])
    if settings.crop == "padded":
        cut = T.RandomCrop(settings.size, padding=settings.padding)
        steps = [cut, T.RandomHorizontalFlip(settings.flip), T.ToTensor()]
        return T.Compose([_mode(channels), *steps, T.Normalize(settings.mean, settings.std)])
    resized = create_transform(
        **common,
        is_training=True,
        scale=settings.area,
        hflip=settings.flip,
        color_jitter=settings.color_jitter,
        auto_augment=settings.auto_augment,
        re_prob=settings.erasing,
    )
    return T.Compose([_mode(channels), resized])


class _mode:  # noqa: N801 - a step of a transform, which workers have to pickle
    """Grey images among colour ones, and the other way round."""

    def __init__(self, channels: int) -> None:
        self.name = "L" if channels == 1 else "RGB"

    def __call__(self, image: Any) -> Any:
        return image.convert(self.name)
