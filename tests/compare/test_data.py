"""What runs see: images come back from every kind of pack, and parts never overlap."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import lwdna
from benchmarks.compare.data import Choice, open_choice
from benchmarks.compare.packs import read
from lwdna.training import Pictures, TensorImages
from tests.compare.made_up import IMAGES, VALIDATION, fashion

RNG = np.random.default_rng(0)


def encoded(pixels: np.ndarray, kind: str, **options: bool) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def archive(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:xz") as file:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))


def test_tiles_are_read_row_by_row_and_empty_ones_left_out(tmp_path: Path) -> None:
    tiles = RNG.integers(256, size=(13, 32, 32, 3), dtype=np.uint8)
    sheet = np.zeros((64, 320, 3), np.uint8)
    for n, tile in enumerate(tiles):
        row, column = 32 * (n // 10), 32 * (n % 10)
        sheet[row : row + 32, column : column + 32] = tile
    meta = {
        "classes": ["a", "b"],
        "sheets": [
            {"file": "train/b/00.webp", "split": "train", "label": 1, "n": 13, "cols": 10},
            {"file": "test/a/00.webp", "split": "test", "label": 0, "n": 3, "cols": 10},
        ],
    }
    with zipfile.ZipFile(tmp_path / "cifar10_50MB.zip", "w") as file:
        file.writestr("meta.json", json.dumps(meta))
        file.writestr("train/b/00.webp", encoded(sheet, "webp", lossless=True))
        file.writestr("test/a/00.webp", encoded(sheet[:32], "webp", lossless=True))
    train = read("cifar10-20k", tmp_path, "train")["train"]
    assert isinstance(train, TensorImages)
    assert torch.equal(train.images, torch.from_numpy(tiles).permute(0, 3, 1, 2))
    assert train.labels.tolist() == [1] * 13
    assert len(read("cifar10-20k", tmp_path, "test")["test"]) == 3


def test_pictures_are_read_by_name_in_the_channels_that_are_asked_for(tmp_path: Path) -> None:
    grey, colour = RNG.integers(256, size=(20, 30), dtype=np.uint8), np.zeros((4, 5, 3), np.uint8)
    colour[..., 0] = 255
    members = {"T91/b.png": encoded(grey, "png"), "T91/a.bmp": encoded(colour, "bmp")}
    archive(tmp_path / "T91.tar.xz", members | {"T91/notes.txt": b"none"})
    in_colour, in_grey = (read("t91", tmp_path, "train", n)["T91"] for n in (3, 1))
    assert isinstance(in_colour, Pictures) and isinstance(in_grey, Pictures)
    assert torch.equal(in_colour[1], torch.from_numpy(grey).expand(3, 20, 30))
    assert torch.equal(in_grey[1], torch.from_numpy(grey)[None])
    assert [tuple(in_colour[n].shape) for n in range(2)] == [(3, 4, 5), (3, 20, 30)]
    for name in ("Set5", "Set14"):
        archive(tmp_path / f"{name}.tar.xz", {f"{name}/1.png": encoded(grey, "png")})
    assert list(read("t91", tmp_path, "test", 3)) == ["Set5", "Set14"]


def test_class_folders_are_numbered_by_name(tmp_path: Path) -> None:
    shades = {"train/n2/x.JPEG": 20, "train/n1/y.JPEG": 10, "val/n2/z.JPEG": 30}
    archive(
        tmp_path / "tiny_imagenet.tar.xz",
        {
            f"tiny-imagenet/{name}": encoded(np.full((64, 64), shade, np.uint8), "jpeg")
            for name, shade in shades.items()
        },
    )
    train = read("tiny-imagenet-15k", tmp_path, "train")["train"]
    assert isinstance(train, TensorImages)
    assert train.labels.tolist() == [0, 1]
    assert train.images.shape == (2, 3, 64, 64)
    assert train.images.float().mean((1, 2, 3)).tolist() == pytest.approx([10, 20], abs=1)


def rows(images: TensorImages) -> set[bytes]:
    return {image.numpy().tobytes() for image in images.images}


def test_parts_never_overlap_and_are_balanced(tmp_path: Path) -> None:
    fashion(tmp_path, "train", 200)
    choice = Choice("fashion-mnist", VALIDATION, IMAGES)
    chosen = open_choice(choice, tmp_path, "validation", channels=3)  # there are no test files
    train, held_out = chosen.train, chosen.tests["validation"]
    assert isinstance(train, TensorImages) and isinstance(held_out, TensorImages)
    assert (len(train), len(held_out)) == (IMAGES - VALIDATION, VALIDATION)
    assert not rows(train) & rows(held_out)
    for part, most in ((train, 1), (held_out, 2)):
        counts = part.labels.bincount(minlength=10)
        assert counts.max() - counts.min() <= most
    other = open_choice(
        Choice("fashion-mnist", VALIDATION, IMAGES, 1), tmp_path, "validation", channels=3
    )
    assert rows(other.train) != rows(train)  # type: ignore[arg-type]


def test_a_test_run_trains_on_all_that_a_validation_run_has(tmp_path: Path) -> None:
    fashion(tmp_path, "train", 200)
    fashion(tmp_path, "test", 50)
    choice = Choice("fashion-mnist", VALIDATION, IMAGES)
    validation, test = (
        open_choice(choice, tmp_path, split, channels=3) for split in ("validation", "test")
    )
    both = rows(validation.train) | rows(validation.tests["validation"])  # type: ignore[arg-type]
    assert rows(test.train) == both  # type: ignore[arg-type]
    assert list(test.tests) == ["test"] and len(test.tests["test"]) == 50
    assert validation.name != test.name


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (Choice("fashion-mnist", 10, 300), "has 200 images to train on: images=300"),
        (Choice("fashion-mnist", 96, 96), "validation=96, does not work"),
        (Choice("mnist", 10), "data 'mnist': one of cifar10"),
        (Choice("cifar10-20k", 10), r"cifar10_50MB.zip is missing"),
        (Choice("cifar100", 10), "cifar100 is not in"),
    ],
)
def test_images_that_are_not_there_are_refused(
    tmp_path: Path, choice: Choice, message: str
) -> None:
    fashion(tmp_path, "train", 200)
    with pytest.raises(lwdna.TrainingError, match=message):
        open_choice(choice, tmp_path, "validation", channels=3)
