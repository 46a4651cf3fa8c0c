"""Photographs for the demo, out of scikit-image's wheel: no download, a stated licence each."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from skimage import data
from torch import Tensor
from torchvision.transforms import v2

#: (loader in skimage.data, what it shows, licence as scikit-image documents it, ImageNet class)
PHOTOS = (
    ("astronaut", "Eileen Collins, NASA Great Images", "public domain", 652),
    ("chelsea", "a cat, by Stefan van der Walt", "CC0", 281),
    ("coffee", "a cup of espresso, by Rachel Michetti", "CC0", 967),
    ("rocket", "Falcon 9 with DSCOVR, by SpaceX", "public domain", 657),
)
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def batches(
    n: int, size: int, *, resolution: int = 224, seed: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield ``n`` batches of random crops of the photographs, as ImageNet training makes them.

    Args:
        n: number of batches.
        size: crops per batch.
        resolution: side of the square crops, in pixels.
        seed: of the crops.

    Yields:
        (images (size, 3, resolution, resolution) float32 normalised, ImageNet labels (size,)).
    """
    crop = v2.Compose(
        [
            v2.RandomResizedCrop(resolution, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(_MEAN, _STD),
        ]
    )
    photos = [torch.from_numpy(getattr(data, name)()).permute(2, 0, 1) for name, *_ in PHOTOS]
    labels = torch.tensor([label for *_, label in PHOTOS])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for _ in range(n):
            picks = torch.arange(size) % len(photos)
            yield torch.stack([crop(photos[i]) for i in picks]), labels[picks]
