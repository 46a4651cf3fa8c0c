"""Data sets by name: what the command line calls ``cifar10:DIR``, or the path of a folder."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from lwdna.errors import TrainingError
from lwdna.training.data import Data, LabelledImages, Pictures, Source, TensorImages
from lwdna.training.machine import Machine, one_first
from lwdna.training.protocol import Protocol

_TEST_FOLDERS = ("val", "validation", "test")
#: torchvision's sets of small images; they are kept in memory.
_SMALL = {"cifar10": "CIFAR10", "cifar100": "CIFAR100", "fashion-mnist": "FashionMNIST"}
_FORMS = (
    "a folder, cifar10:DIR, cifar100:DIR, fashion-mnist:DIR, hfds:DIR_OR_NAME, or fake[:IMAGES]"
)
_FAKE_IMAGES, _FAKE_CLASSES, _FAKE_PICTURES = 256, 10, 8


def open_data(
    spec: str,
    protocol: Protocol,
    *,
    tests: Mapping[str, str] | None = None,
    download: bool = False,
    machine: Machine | None = None,
) -> Data:
    """The data of a run, by name.

    Args:
        spec: of classifiers a folder with ``train/`` and ``val/`` (or ``validation/``, ``test/``),
            in them a folder per class; ``"cifar10:DIR"``, ``"cifar100:DIR"``,
            ``"fashion-mnist:DIR"``, torchvision's data sets; ``"hfds:DIR_OR_NAME"``, a folder or
            name that Hugging Face's ``datasets`` knows. For super-resolution and denoising a folder
            of pictures, or one with ``train/`` and ``val/``. ``"fake"``, or ``"fake:1000"``, is
            noise, to try a command.
        protocol: tells the task.
        tests: name -> folder with further test sets: pictures, or a folder per class.
        download: let torchvision and ``datasets`` fetch what is not there. Under torchrun the first
            process of each machine does it, and the others wait.
        machine: what the run computes on, for ``download`` under torchrun.

    Raises:
        TrainingError: there is no such data, it does not fit the task, or a package is missing.
    """
    pictures = protocol.patches is not None
    with one_first(machine or Machine(), protocol) if download else nullcontext():
        opened = _named(spec, protocol, download)
    further = dict(tests or {})
    for name, folder in further.items():
        if not Path(folder).is_dir():
            raise TrainingError(f"test set {name!r}: {folder} is no folder")
    found: dict[str, Source] = {
        name: _opened_pictures(Path(folder), protocol) if pictures else _classes(Path(folder))
        for name, folder in further.items()
    }
    for name, source in found.items():
        _check_classes(opened.train, source, name)
    return Data(opened.name, opened.train, {**opened.tests, **found}, opened.classes)


def _named(spec: str, protocol: Protocol, download: bool) -> Data:
    kind, colon, where = spec.partition(":")
    pictures = protocol.patches is not None
    if kind == "fake" and not Path(spec).exists():
        return _fake(protocol, int(where) if where.isdecimal() else None)
    if colon and kind in _SMALL and not pictures:
        return _small(kind, where, download)
    if colon and kind == "hfds" and not pictures:
        return _hugging_face(where, download)
    if Path(spec).is_dir():
        return _pictures(Path(spec), protocol) if pictures else _folder(Path(spec))
    raise TrainingError(f"data {spec!r} for {protocol.task}: name {_FORMS}")


def _small(kind: str, root: str, download: bool) -> Data:
    from torchvision import datasets

    make = getattr(datasets, _SMALL[kind])
    try:
        train, test = (make(root, train=part, download=download) for part in (True, False))
    except RuntimeError as e:  # torchvision: not found, or damaged
        raise TrainingError(f"{kind} is not in {root!r}: {e} (or download=True)") from e
    sets = []
    for part in (train, test):
        images = torch.as_tensor(part.data)
        images = images[:, None] if images.dim() == 3 else images.permute(0, 3, 1, 2)
        sets.append(TensorImages(images.contiguous(), torch.as_tensor(part.targets)))
    return Data(kind, sets[0], {"test": sets[1]}, len(train.classes))


def _folder(root: Path) -> Data:
    found = [name for name in _TEST_FOLDERS if (root / name).is_dir()]
    if not (root / "train").is_dir() or not found:
        raise TrainingError(
            f"{root} has no train/ and {'/, '.join(_TEST_FOLDERS)}/: each with a folder per class"
        )
    train, test = _classes(root / "train"), _classes(root / found[0])
    _check_classes(train, test, found[0])
    name = f"{root.resolve().name} ({len(train)} images)"
    return Data(name, train, {found[0]: test}, len(train.classes))  # type: ignore[attr-defined]


def _classes(folder: Path) -> LabelledImages:
    from torchvision.datasets import ImageFolder

    try:
        opened: LabelledImages = ImageFolder(str(folder))
    except FileNotFoundError as e:
        raise TrainingError(f"{folder}: {e}") from e
    return opened


def _check_classes(train: Any, test: Any, name: str) -> None:
    ours, theirs = (getattr(part, "classes", None) for part in (train, test))
    if ours is not None and theirs is not None and list(ours) != list(theirs):
        differ = sorted(set(ours) ^ set(theirs))[:3]
        raise TrainingError(
            f"test set {name!r} has other classes than the training set: {', '.join(differ)}; the "
            "number of a class is its place among the names"
        )


def _hugging_face(where: str, download: bool) -> Data:
    from timm.data import create_dataset

    try:
        import datasets
    except ImportError as e:
        raise TrainingError("hfds needs Hugging Face's datasets: pip install datasets") from e
    if not download and not Path(where).exists():
        raise TrainingError(f"hfds:{where} is no folder: pass download=True to fetch it")
    present = datasets.get_dataset_split_names(where)
    split = next((name for name in _TEST_FOLDERS if name in present), None)
    if "train" not in present or split is None:
        raise TrainingError(f"hfds:{where} has the splits {present}: train and validation needed")
    train, test = (create_dataset(f"hfds/{where}", root=None, split=s) for s in ("train", split))
    classes = len(train.reader.class_to_idx)
    return Data(f"{Path(where).name} ({len(train)} images)", train, {split: test}, classes)


def _pictures(root: Path, protocol: Protocol) -> Data:
    train = root / "train" if (root / "train").is_dir() else root
    found = [name for name in _TEST_FOLDERS if (root / name).is_dir()]
    if found and train == root:
        raise TrainingError(f"{root} has {found[0]}/ and no train/: name the folders one by one")
    opened = _opened_pictures(train, protocol)
    name = f"{root.resolve().name} ({len(opened)} pictures)"
    return Data(name, opened, {name: _opened_pictures(root / name, protocol) for name in found[:1]})


def _opened_pictures(folder: Path, protocol: Protocol) -> Pictures:
    assert protocol.patches is not None
    return Pictures.folder(folder, protocol.patches.channels)


def _fake(protocol: Protocol, images: int | None) -> Data:
    if protocol.images is not None:
        from torchvision.datasets import FakeData

        # Its images have three channels whatever is asked for; a protocol for grey converts them.
        shape, count = (3, protocol.images.size, protocol.images.size), images or _FAKE_IMAGES
        train: Source = FakeData(count, shape, _FAKE_CLASSES)
        test: Source = FakeData(max(count // 4, 1), shape, _FAKE_CLASSES, random_offset=count)
        return Data(f"fake ({count} images)", train, {"test": test}, _FAKE_CLASSES)
    assert protocol.patches is not None
    side, channels = 2 * protocol.patches.size, protocol.patches.channels
    count = images or _FAKE_PICTURES
    g = torch.Generator().manual_seed(0)
    noise = torch.randint(256, (count + 1, channels, side, side), generator=g, dtype=torch.uint8)
    train, test = (Pictures(list(part), channels) for part in (noise[:-1], noise[-1:]))
    return Data(f"fake ({count} pictures)", train, {"test": test})
