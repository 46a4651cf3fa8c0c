"""Data sets by name."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import lwdna
from lwdna.training import PRESETS, Pictures, TensorImages, open_data
from lwdna.training.loading import evaluation_batches, training_set
from lwdna.training.randomness import Draw
from tests.training.runs import protocol, restoration


def save_images(folder: Path, count: int = 2, side: int = 12) -> None:
    folder.mkdir(parents=True)
    for n in range(count):
        values = np.random.default_rng(n).integers(256, size=(side, side, 3), dtype=np.uint8)
        Image.fromarray(values).save(folder / f"{n}.png")


def image_folder(root: Path, splits: dict[str, tuple[str, ...]]) -> Path:
    for split, classes in splits.items():
        for name in classes:
            save_images(root / split / name)
    return root


def test_a_folder_per_class(tmp_path: Path) -> None:
    both = ("cat", "dog")
    root = image_folder(tmp_path, {"train": both, "val": both, "more": both, "bad": ("cat", "cow")})
    settings = protocol("images.size=12", "batch=4")
    data = open_data(str(root), settings, tests={"more": str(root / "more")})
    assert data.classes == 2 and list(data.tests) == ["val", "more"] and len(data.train) == 4  # type: ignore[arg-type]
    x, y = training_set(data.train, settings)[Draw(0, 0, 3)]  # type: ignore[arg-type]
    assert x.shape == (3, 12, 12) and y == 1
    ((batch, labels),) = evaluation_batches(data.tests["val"], settings, workers=1)
    assert batch.shape == (4, 3, 12, 12) and labels.tolist() == [0, 0, 1, 1]
    with pytest.raises(lwdna.TrainingError, match="other classes than the training set: cow, dog"):
        open_data(str(root), settings, tests={"bad": str(root / "bad")})
    with pytest.raises(lwdna.TrainingError, match=r"no train/ and val/"):
        open_data(str(root / "val"), settings)
    with pytest.raises(lwdna.TrainingError, match="is no folder"):
        open_data(str(root), settings, tests={"more": "nowhere"})


def test_cifar_is_read_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import CIFAR10

    g = np.random.default_rng(0)
    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()
    rows = {name: g.integers(256, size=(3, 3072), dtype=np.uint8)
            for name, _ in (*CIFAR10.train_list, *CIFAR10.test_list)}  # fmt: skip
    for name, values in rows.items():
        entry = {"data": values, "labels": [1, 2, 3]}
        (folder / name).write_bytes(pickle.dumps(entry))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    settings = PRESETS["cifar-resnet56"]
    with pytest.raises(lwdna.TrainingError, match="cifar10 is not in"):
        open_data(f"cifar10:{tmp_path}", settings)  # sums of torchvision's own files
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    data = open_data(f"cifar10:{tmp_path}", settings)
    assert isinstance(data.train, TensorImages) and data.classes == 10 and len(data.train) == 15
    test = data.tests["test"]
    assert isinstance(test, TensorImages)
    expected = torch.from_numpy(rows["test_batch"]).view(3, 3, 32, 32)
    assert torch.equal(test.images, expected) and test.labels.tolist() == [1, 2, 3]


def test_folders_of_pictures(tmp_path: Path) -> None:
    save_images(tmp_path / "train", 3, 20)
    save_images(tmp_path / "val", 1, 20)
    settings = restoration("super-resolution", scale=2)
    data = open_data(str(tmp_path), settings, tests={"Set0": str(tmp_path / "val")})
    assert isinstance(data.train, Pictures) and len(data.train) == 3
    assert list(data.tests) == ["val", "Set0"] and data.classes is None
    assert len(open_data(str(tmp_path / "val"), settings).train) == 1  # type: ignore[arg-type]
    with pytest.raises(lwdna.TrainingError, match="holds no pictures"):
        (tmp_path / "none").mkdir()
        open_data(str(tmp_path / "none"), settings)


def test_noise_to_try_a_command() -> None:
    data = open_data("fake:20", protocol())
    assert (len(data.train), len(data.tests["test"])) == (20, 5)  # type: ignore[arg-type]
    shown = open_data("fake", restoration("denoising", channels=1, sigma=9.0))
    assert isinstance(shown.train, Pictures) and shown.train.channels == 1
    for wrong in ("nowhere", "mnist:here", "cifar10"):
        with pytest.raises(lwdna.TrainingError, match="name a folder, cifar10:DIR"):
            open_data(wrong, protocol())


def test_hugging_face_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = image_folder(tmp_path / "set", {"train": ("a", "b"), "validation": ("a", "b")})
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "datasets", None)
        with pytest.raises(lwdna.TrainingError, match="pip install datasets"):
            open_data(f"hfds:{root}", protocol())
    pytest.importorskip("datasets", reason="Hugging Face's datasets is not installed")
    settings = protocol("images.size=12")
    with pytest.raises(lwdna.TrainingError, match="download=True"):
        open_data("hfds:some/name", settings)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    data = open_data(f"hfds:{root}", settings)
    assert data.classes == 2 and list(data.tests) == ["validation"]
    ((x, y),) = evaluation_batches(data.tests["validation"], settings)
    assert x.shape == (4, 3, 12, 12) and sorted(y.tolist()) == [0, 0, 1, 1]
