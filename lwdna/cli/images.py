"""Scoring data from a folder of images, one folder per class."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from lwdna.fx_passes.module import meta_twin
from lwdna.inputs import default_inputs

#: Folders of a whole data set; scoring looks at what is trained on.
_SPLITS = {"train", "val", "valid", "validation", "test"}


def batches(
    folder: Path,
    net: nn.Module,
    size: tuple[int, ...] | None,
    *,
    count: int,
    batch_size: int,
    seed: int,
) -> list[tuple[Tensor, Tensor]]:
    """Batches of labelled images, drawn at random; no more files are read than are in them.

    Images are resized, cropped and normalised as the model's own configuration (timm's
    ``pretrained_cfg``) says for evaluation, and as for ImageNet where it has none.

    Args:
        folder: class folders with images, or a data set with such in ``train``.
        net: a classifier of images; its configuration is read, its weights are not.
        size: (C, H, W) of the images; by default the model's.
        count: number of batches.
        batch_size: images in each; fewer, with a warning, where the folder has too few.
        seed: of the draw.

    Returns:
        (images, labels) pairs: float32 of shape (B, 3, H, W), int64 of shape (B,), with the number
        of the class folder, in alphabetical order.

    Raises:
        click.UsageError: no class folders, an image that cannot be read, a network that does not
            classify images, or has fewer classes.

    Source: torchvision.datasets.ImageFolder; timm.data.create_transform.
    """
    from timm.data.config import resolve_model_data_config
    from timm.data.transforms_factory import create_transform

    size = tuple(default_inputs(net).shape[1:]) if size is None else size
    files, classes = _listed(folder)
    _check_network(net, size, classes)
    chosen = random.Random(seed).sample(files, min(count * batch_size, len(files)))
    if len(chosen) < count * batch_size:
        batch_size = -(-len(chosen) // count)
        click.echo(f"Warning: {folder} has {len(chosen)} images: batches of {batch_size}", err=True)
    settings = resolve_model_data_config(net, args={"input_size": size})
    transform = create_transform(**settings, is_training=False)
    bar = tqdm(chosen, desc="reading images", unit="image", delay=1, disable=None, leave=False)
    images = torch.stack([_read(path, transform) for path, _ in bar])
    labels = torch.tensor([label for _, label in chosen])
    return list(zip(images.split(batch_size), labels.split(batch_size), strict=True))


def _listed(folder: Path) -> tuple[list[tuple[str, int]], list[str]]:
    """(file, class) of every image, and the names of the classes."""
    from torchvision.datasets import ImageFolder

    try:
        found = ImageFolder(str(folder))
        if "train" in found.classes and set(found.classes) <= _SPLITS:
            click.echo(f"reading {folder / 'train'}, the training part of {folder}", err=True)
            found = ImageFolder(str(folder / "train"))
    except FileNotFoundError as e:
        raise click.UsageError(
            f"--images {folder}: {e}. Put the images of each class into a folder of its own"
        ) from e
    return found.samples, found.classes


def _check_network(net: nn.Module, size: tuple[int, ...], classes: Sequence[str]) -> None:
    """Refuse a network that cannot be scored on images with one label each."""
    if len(size) != 3 or size[0] != 3:
        raise click.UsageError(
            f"--images: the network takes inputs of {'x'.join(map(str, size))}, and images are "
            "3xHxW. Score with a --criterion that needs no data, or call lwdna.shrink in Python"
        )
    with torch.no_grad():
        out: Any = meta_twin(net).eval()(torch.empty(2, *size, device="meta"))
    if not isinstance(out, Tensor) or out.dim() != 2:
        raise click.UsageError(
            "--images: labels of images are for classifiers, and this network puts out something "
            "else. Score with a --criterion that needs no data, or call lwdna.shrink with loss_fn "
            "or step_fn in Python"
        )
    if len(classes) > out.shape[1]:
        raise click.UsageError(
            f"--images: {len(classes)} class folders, and the network tells {out.shape[1]} classes "
            f"apart: build it with --arg num_classes={len(classes)}"
        )
    if len(classes) < out.shape[1]:
        click.echo(
            f"Warning: {len(classes)} class folders, and the network has {out.shape[1]} classes: "
            "`lwdna train` refuses it on these images; for a network that it trains, pass "
            f"--arg num_classes={len(classes)}",
            err=True,
        )


def _read(path: str, transform: Any) -> Tensor:
    try:
        with Image.open(path) as image:
            tensor: Tensor = transform(image.convert("RGB"))
            return tensor
    except OSError as e:
        raise click.UsageError(f"--images: {path} cannot be read: {e}") from e
