"""Damaged and forged files: an error of lwdna's, or the identical network."""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import lwdna
from lwdna import weights
from tests.saved import TRUST, assert_same, shrunk

FILES = ("dna.json", "model.safetensors")


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return shrunk("tests.factories:plain")


@pytest.fixture(scope="module")
def saved(net: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    lwdna.save(net, folder)
    return folder


# --- damage ---


def flip(data: bytearray, rng: random.Random) -> None:
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def overwrite(data: bytearray, rng: random.Random) -> None:
    start, n = rng.randrange(len(data)), rng.randint(1, 64)
    data[start : start + n] = rng.randbytes(len(data[start : start + n]))


def truncate(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data)) :]


def extend(data: bytearray, rng: random.Random) -> None:
    data += rng.randbytes(rng.randint(1, 100))


def cut(data: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(data))
    del data[start : start + rng.randint(1, 64)]


def repeat(data: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(data))
    data[start:start] = data[start : start + rng.randint(1, 64)]


def exchange(data: bytearray, rng: random.Random) -> None:
    n = rng.randint(1, 32)
    a, b = (rng.randrange(max(1, len(data) - n)) for _ in range(2))
    data[a : a + n], data[b : b + n] = data[b : b + n], data[a : a + n]


def length_of_header(data: bytearray, rng: random.Random) -> None:
    length = rng.choice([0, 1, 2**31, 2**63, 2**64 - 1, rng.randrange(2**20), len(data)])
    data[:8] = struct.pack("<Q", length)


def number_in_header(data: bytearray, rng: random.Random) -> None:
    """Offsets, shapes, and whatever else is written in digits at the front of a file."""
    digits = [k for k, b in enumerate(data[8:4096], 8) if chr(b).isdigit()]
    if digits:
        data[rng.choice(digits)] = ord(rng.choice("0123456789-e."))


DAMAGE: tuple[Callable[[bytearray, random.Random], None], ...] = (
    flip,
    overwrite,
    truncate,
    extend,
    cut,
    repeat,
    exchange,
    length_of_header,
    number_in_header,
)


def refused_or_identical(net: nn.Module, folder: Path) -> bool:
    """Whether the files are refused; any other error than lwdna's fails the test."""
    try:
        again = lwdna.load(folder, trust=TRUST)
    except lwdna.LwdnaError:
        return True
    assert_same(net, again)
    return False


@pytest.mark.parametrize(
    ("first", "number"), [(0, 100), pytest.param(100, 2000, marks=pytest.mark.slow)]
)
def test_damaged_files(
    net: nn.Module, saved: Path, tmp_path: Path, first: int, number: int
) -> None:
    refused = 0
    for seed in range(first, first + number):
        rng = random.Random(seed)
        for name in FILES:
            shutil.copy(saved / name, tmp_path / name)
        path = tmp_path / FILES[seed % 2]
        data = bytearray(path.read_bytes())
        for _ in range(rng.choice([1, 1, 3])):
            if data:
                rng.choice(DAMAGE)(data, rng)
        path.write_bytes(data)
        refused += refused_or_identical(net, tmp_path)
    assert refused > 0.9 * number  # nearly all damage changes something


def test_every_byte_of_the_weights_counts(net: nn.Module, saved: Path, tmp_path: Path) -> None:
    shutil.copy(saved / "dna.json", tmp_path)
    data = bytearray((saved / "model.safetensors").read_bytes())
    for position in (-1, len(data) // 2, 8 + struct.unpack("<Q", data[:8])[0]):
        data[position] ^= 1
        (tmp_path / "model.safetensors").write_bytes(data)
        with pytest.raises(lwdna.DnaError, match="its sum is not that of what it holds"):
            lwdna.load(tmp_path, trust=TRUST)
        data[position] ^= 1


# --- forgery: sums that are right ---


def forge(saved: Path, folder: Path, dna: Any, state: dict[str, Any] | None = None) -> None:
    """Write a DNA of any content with a record of weights whose sums are right."""
    text = json.dumps(dna)
    (folder / "dna.json").write_text(text)
    record = weights.read_state(saved / "model.safetensors")
    record = replace(record, **(state or {}))
    with suppress(lwdna.DnaError):
        record = replace(record, dna=lwdna.Dna.from_json(text).digest)
    tensors = load_file(saved / "model.safetensors")
    record = replace(record, sum=weights._sum(record, tensors))
    metadata = {"format": "pt", "lwdna": json.dumps(asdict(record))}
    save_file(tensors, folder / "model.safetensors", metadata)


def leaves(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if isinstance(tree, (dict, list)) and tree:
        items = tree.items() if isinstance(tree, dict) else enumerate(tree)
        return [path, *(p for key, value in items for p in leaves(value, (*path, key)))]
    return [path]


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


OTHERS: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    1,
    2,
    10**6,
    10**12,
    10**30,
    0.5,
    1e300,
    "",
    "0-3",
    "0-999999999",
    "os",
    "x" * 5000,
    [],
    [0, 0],
    {},
    {"tensor": [1, 3, 10**6, 10**6], "dtype": "float32"},
    {"tensor": [10**9, 10**9, 10**9], "dtype": "float32", "range": [0, 1]},
    nested(200),
)


@pytest.mark.parametrize(
    "number", [60, pytest.param(1000, marks=pytest.mark.slow)], ids=["quick", "all"]
)
def test_forged_dna(net: nn.Module, saved: Path, tmp_path: Path, number: int) -> None:
    """Whatever a DNA says: nothing but an error of lwdna, or a network of these weights."""
    original = json.loads((saved / "dna.json").read_text())
    paths = leaves(original)[1:]
    for seed in range(number):
        rng = random.Random(seed)
        dna = json.loads(json.dumps(original))
        *above, last = rng.choice(paths)
        place = dna
        for key in above:
            place = place[key]
        place[last] = rng.choice(OTHERS)
        forge(saved, tmp_path, dna)
        try:
            again = lwdna.load(tmp_path, trust=TRUST)
        except lwdna.LwdnaError:
            continue
        for key, value in net.state_dict().items():
            assert torch.equal(value, again.state_dict()[key]), (seed, last)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": {"library": "os", "name": "system", "arguments": {}}}, "pass trust="),
        (
            {
                "source": {
                    "library": "timm",
                    "name": "test_resnet",
                    "arguments": {"checkpoint_path": "x.pth"},
                }
            },
            "says where values come from",
        ),
        (
            {"source": {"library": "timm", "name": "hf-hub:a/b", "arguments": {}}},
            "names no constructor",
        ),
        ({"source": {"library": "timm", "name": "none", "arguments": {}}}, "has no model 'none'"),
        (
            {"source": {"library": "tests.factories", "name": "number", "arguments": {}}},
            "gives a int",
        ),
        ({"source": None}, "does not tell how"),
        ({"model": "\x1b[2J"}, r"no name: '\\x1b\[2J'"),
        ({"model": "M" * 10**6}, "no name: 'MMM"),
        (
            {"source": {"library": "torchvision", "name": "resnet18", "arguments": {"x" * 999: 1}}},
            "is no name of an argument",
        ),
        ({"seed": 1.5}, "seed is 1.5, and no int"),
        ({"extra": 1}, "unknown field 'extra'"),
        ({"settings": {}}, "outputs None"),
        ({"settings": {"outputs": "fixed", "policy": "auto"}}, "constraints"),
        ({"widen": 0.5}, "a finite factor >= 1"),
        ({"inputs": [{"other": "Image"}]}, "pass example_inputs"),
    ],
)
def test_forged_fields(saved: Path, tmp_path: Path, change: Any, message: str) -> None:
    forge(saved, tmp_path, {**json.loads((saved / "dna.json").read_text()), **change})
    with pytest.raises(lwdna.LwdnaError, match=message):
        lwdna.load(tmp_path, trust=TRUST)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
@pytest.mark.parametrize("name", FILES)
def test_pipes_are_no_files(name: str, saved: Path, tmp_path: Path) -> None:
    """An archive may hold one, and whoever opens it waits."""
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    with pytest.raises(lwdna.DnaError, match=r"cannot be read|holds no dna\.json"):
        lwdna.load(tmp_path, trust=TRUST)


@pytest.mark.parametrize("kept", ["0-2 2-5", "5 3", "0-3 900", "0-99999999", "1 two", "-3"])
def test_forged_indices(saved: Path, tmp_path: Path, kept: str) -> None:
    dna = json.loads((saved / "dna.json").read_text())
    dna["groups"][1]["kept"] = kept
    forge(saved, tmp_path, dna)
    with pytest.raises(lwdna.DnaError, match=r"kept ind"):
        lwdna.load(tmp_path, trust=TRUST)


@pytest.mark.parametrize(
    "state",
    [{"modes": ("nowhere",)}, {"fixed": ("nobody",)}, {"orders": {"fc.bias": (0, 1)}}],
)
def test_forged_records(saved: Path, tmp_path: Path, state: dict[str, Any]) -> None:
    forge(saved, tmp_path, json.loads((saved / "dna.json").read_text()), state)
    with pytest.raises(lwdna.DnaError, match="speaks of what is not there"):
        lwdna.load(tmp_path, trust=TRUST)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"a": ' * 100_000,
        '{"format": NaN}',
        '{"format": 1, "format": 2}',
        "3",
        "9e999",
    ],
)
def test_texts_that_are_no_dna(text: str) -> None:
    with pytest.raises(lwdna.DnaError):
        lwdna.Dna.from_json(text)
