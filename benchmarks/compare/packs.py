"""Images to train and test on: packs in one folder, read whole into memory.

Classifiers' images are sheets of tiles in a zip (CIFAR: ``meta.json`` names the sheets, lossless
WebP, row by row), folders per class in a ``tar.xz``, or the original files of Fashion-MNIST;
pictures are image files in a ``tar.xz``. Where the packs of CIFAR or Fashion-MNIST are missing,
torchvision's own files are read.
"""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lwdna.errors import TrainingError
from lwdna.training import Pictures, TensorImages, open_data
from lwdna.training.presets import PRESETS

Part = Literal["train", "test"]
Images = TensorImages | Pictures
_SUFFIXES = (".png", ".bmp", ".jpg", ".jpeg")


@dataclass(frozen=True)
class Pack:
    """A data set: how it is read.

    Attributes:
        read: (folder, part, channels) -> name of each set -> its images; one set to train on, one
            or more to test on.
        classes: number of classes; None for pictures.
    """

    read: Callable[[Path, Part, int], Mapping[str, Images]]
    classes: int | None = None


@lru_cache(maxsize=4)
def read(name: str, folder: Path, part: Part, channels: int = 3) -> Mapping[str, Images]:
    """The images of one part of a data set; of the other part nothing is read into memory.

    Args:
        name: one of :data:`PACKS`.
        folder: with the packs.
        part: what to read.
        channels: of pictures: 3, or 1 for grey.

    Raises:
        TrainingError: there is no such data set, or its files are missing.
    """
    if name not in PACKS:
        raise TrainingError(f"data {name!r}: one of {', '.join(PACKS)}")
    try:
        return PACKS[name].read(folder, part, channels)
    except FileNotFoundError as e:
        raise TrainingError(f"data {name!r} in {folder}: {Path(e.filename).name} is missing") from e


def _sheets(classes: int, files: tuple[str, ...], original: str | None = None) -> Pack:
    """CIFAR from zips, or from torchvision's files if there is no zip."""

    def read_part(folder: Path, part: Part, channels: int) -> dict[str, Images]:
        if original and not any((folder / file).exists() for file in files):
            return _of_torchvision(original, folder, part)
        found = [pair for file in files for pair in _tiles(folder / file, part)]
        images, labels = (torch.cat(kind) for kind in zip(*found, strict=True))
        return {part: TensorImages(images, labels)}

    return Pack(read_part, classes)


def _tiles(path: Path, part: Part) -> Iterator[tuple[Tensor, Tensor]]:
    """Images, uint8 (n, 3, 32, 32), and labels, (n,), of each sheet."""
    side = 32
    with zipfile.ZipFile(path) as pack:
        for sheet in json.loads(pack.read("meta.json"))["sheets"]:
            if sheet["split"] == part:
                pixels = _pixels(pack.read(sheet["file"]), "RGB")
                rows, columns = pixels.shape[0] // side, pixels.shape[1] // side
                grid = pixels.reshape(rows, side, columns, side, 3).transpose(0, 2, 4, 1, 3)
                tiles = grid.reshape(-1, 3, side, side)[: sheet["n"]]
                labels = torch.full((len(tiles),), sheet["label"], dtype=torch.int64)
                yield torch.from_numpy(tiles.copy()), labels


def _fashion(folder: Path, part: Part, channels: int) -> dict[str, Images]:
    """The original files; source of the format: Yann LeCun's page of MNIST ("idx")."""
    stem = {"train": "train", "test": "t10k"}[part]
    images, labels = (
        folder / "FashionMNIST" / "raw" / f"{stem}-{kind}-ubyte.gz"
        for kind in ("images-idx3", "labels-idx1")
    )
    if not images.exists():
        return _of_torchvision("fashion-mnist", folder, part)
    # Of the headers (16 and 8 bytes) sizes are all that is left to know.
    values = np.frombuffer(gzip.decompress(labels.read_bytes()), np.uint8, offset=8)
    pixels = np.frombuffer(gzip.decompress(images.read_bytes()), np.uint8, offset=16)
    tensor = torch.from_numpy(pixels.reshape(len(values), 1, 28, 28).copy())
    return {part: TensorImages(tensor, torch.from_numpy(values.astype(np.int64)))}


def _of_torchvision(name: str, folder: Path, part: Part) -> dict[str, Images]:
    found = open_data(f"{name}:{folder}", PRESETS["cifar-resnet56"])
    chosen = found.train if part == "train" else found.tests["test"]
    assert isinstance(chosen, TensorImages)
    return {part: chosen}


def _class_folders(file: str, folder: Path, part: Part, channels: int) -> dict[str, Images]:
    """``*/train/<class>/`` and ``*/val/<class>/``; classes by name."""
    where = {"train": "train", "test": "val"}[part]
    found = [(name, p) for name, p in _members(folder / file, "RGB") if name.split("/")[1] == where]
    classes = sorted({name.split("/")[2] for name, _ in found})
    labels = torch.tensor([classes.index(name.split("/")[2]) for name, _ in found])
    images = np.stack([pixels for _, pixels in found]).transpose(0, 3, 1, 2)
    return {part: TensorImages(torch.from_numpy(images.copy()), labels)}


def _pictures(
    train: str, tests: tuple[str, ...], folder: Path, part: Part, channels: int
) -> dict[str, Images]:
    mode = "L" if channels == 1 else "RGB"
    found: dict[str, Images] = {}
    for name in (train,) if part == "train" else tests:
        members = (torch.from_numpy(p) for _, p in _members(folder / f"{name}.tar.xz", mode))
        found[name] = Pictures(
            [p[None] if channels == 1 else p.permute(2, 0, 1).contiguous() for p in members],
            channels,
        )
    return found


def _members(path: Path, mode: str) -> list[tuple[str, np.ndarray]]:
    """Name and pixels, uint8 (H, W) or (H, W, 3), of the image files in an archive, by name."""
    with tarfile.open(path) as archive:
        found = []
        for member in archive:  # in the order of the file: no seeking in what is compressed
            if member.isfile() and member.name.lower().endswith(_SUFFIXES):
                file = archive.extractfile(member)
                assert file is not None
                found.append((member.name.removeprefix("./"), _pixels(file.read(), mode)))
    return sorted(found, key=lambda pair: pair[0])


def _pixels(data: bytes, mode: str) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.array(image.convert(mode))


#: name -> data set. Pictures are named by what they are trained on.
PACKS: dict[str, Pack] = {
    "cifar10": _sheets(10, ("cifar10_50MB.zip", "cifar10_rest.zip"), "cifar10"),
    "cifar10-20k": _sheets(10, ("cifar10_50MB.zip",)),
    "cifar100": _sheets(100, (), "cifar100"),
    "cifar100-5k": _sheets(100, ("cifar100_mini.zip",)),
    "fashion-mnist": Pack(_fashion, 10),
    "tiny-imagenet-15k": Pack(partial(_class_folders, "tiny_imagenet.tar.xz"), 200),
    "train400": Pack(partial(_pictures, "Train400", ("BSD68", "Set12"))),
    "t91": Pack(partial(_pictures, "T91", ("Set5", "Set14"))),
}
