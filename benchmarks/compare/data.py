"""What a run sees: a part of the training images, and those that it is measured on.

The images that a table asks for are drawn once, by a seed that is the table's, of each class the
same number; some of them are held out for validation. A validation run trains on the others and
is measured on those held out. A test run trains on all of them, as the paper does, and is measured
on the test sets, which nothing else reads.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.compare.packs import PACKS, Images, read
from lwdna.errors import TrainingError
from lwdna.training import Data, Pictures, TensorImages
from lwdna.training.randomness import generator

Split = Literal["validation", "test"]


@dataclass(frozen=True)
class Choice:
    """Which images of a data set are trained on.

    Attributes:
        name: of the data set, one of :data:`benchmarks.compare.packs.PACKS`.
        validation: how many of the images are held out.
        images: how many there are with those; None for all.
        seed: of the draw.
    """

    name: str
    validation: int
    images: int | None = None
    seed: int = 0


def open_choice(
    choice: Choice, folder: Path, split: Split, *, channels: int, device: str = "cpu"
) -> Data:
    """The data of a run.

    Args:
        choice: what to train on.
        folder: with the packs.
        split: what to measure on.
        channels: of pictures.
        device: where images of classifiers go.

    Raises:
        TrainingError: files are missing, or fewer images than are asked for.
    """
    (source,) = read(choice.name, folder, "train", channels).values()
    count = len(source) if choice.images is None else choice.images
    if not 0 < choice.validation < count <= len(source):
        raise TrainingError(
            f"data {choice.name!r} has {len(source)} images to train on: images={count} of them, "
            f"and of these validation={choice.validation}, does not work"
        )
    order = _shuffled(source, choice.seed)[:count]
    kept = count - choice.validation
    if split == "validation":
        train, tests = order[:kept], {"validation": _part(source, order[kept:])}
    else:
        train, tests = order, dict(read(choice.name, folder, "test", channels))
    return Data(
        f"{choice.name}, {len(train)} images, {split}",
        _placed(_part(source, train), device),
        {name: _placed(images, device) for name, images in tests.items()},
        PACKS[choice.name].classes,
    )


def _shuffled(source: Images, seed: int) -> Tensor:
    """All image numbers, in an order of which every beginning has its share of each class."""
    order = torch.randperm(len(source), generator=generator(seed))
    if isinstance(source, Pictures):
        return order
    labels = source.labels[order]
    rank = F.one_hot(labels).cumsum(0).gather(1, labels[:, None]).squeeze(1)
    return order[rank.argsort(stable=True)]


def _part(source: Images, numbers: Tensor) -> Images:
    if isinstance(source, Pictures):
        return replace(source, pictures=[source[n] for n in numbers.tolist()])
    return TensorImages(source.images[numbers], source.labels[numbers])


def _placed(source: Images, device: str) -> Images:
    if isinstance(source, Pictures):
        return source  # patches are cut on the CPU
    return TensorImages(source.images.to(device), source.labels.to(device))
