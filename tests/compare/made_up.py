"""Images, tables and records that are made up: learned in a second, or never."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.compare.plan import cells
from benchmarks.compare.run import Run, as_text
from benchmarks.compare.table import Table, read_table

IMAGES, VALIDATION = 96, 32

#: Appended to for further methods.
TABLE = """
name = "made-up"
seeds = [0, 1, 2]
budgets = [0.8]

[[pairs]]
name = "small"
network = "benchmarks.compare.networks:small_cnn"
arguments = { width = 8 }
data = { name = "fashion-mnist", images = 96, validation = 32 }
preset = "cifar-resnet56"
changes = [
    "epochs=2", "schedule=cosine", "milestones=[]", "batch=16", "images.size=28",
    "images.padding=2", "images.mean=[0.5]", "images.std=[0.5]",
]

[[methods]]
name = "baseline"
kind = "baseline"

[[methods]]
name = "uniform"
criterion = "uniform"
widen = 1

[[methods]]
name = "random"
criterion = "random"
widen = 1
draws = 2

[[methods]]
name = "default"
weights = "default"
"""


def fashion(folder: Path, part: str, count: int) -> None:
    """Noise with a bright square, whose place is the class, in the files of Fashion-MNIST."""
    labels = np.arange(count, dtype=np.uint8) % 10
    images = np.random.default_rng(count).integers(0, 60, (count, 28, 28), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        row, column = 9 * (label // 3), 9 * (label % 3)
        image[row : row + 8, column : column + 8] += 150
    stem = {"train": "train", "test": "t10k"}[part]
    raw = folder / "FashionMNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    for kind, header, values in (("images-idx3", 16, images), ("labels-idx1", 8, labels)):
        (raw / f"{stem}-{kind}-ubyte.gz").write_bytes(
            gzip.compress(bytes(header) + values.tobytes())
        )


def table(folder: Path, text: str = TABLE) -> Table:
    """A table, by way of a file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "table.toml"
    path.write_text(text)
    return read_table(path)


def forge(tables: list[Table], folder: Path, right: Callable[[Run], float]) -> None:
    """Records of test runs that nobody trained, with the share of right answers (or PSNR)."""
    for found in tables:
        for pair in found.pairs:
            metric = "top1" if pair.protocol.task == "classification" else "psnr"
            for cell in cells(found, pair, "test"):
                run = cell.run
                left = 1.0 if run.budget is None else run.budget
                record = {
                    "key": run.key,
                    "cost": {
                        "before": dict.fromkeys(("macs", "params", "flops_paper"), 1000),
                        "after": dict.fromkeys(("macs", "params", "flops_paper"), 1000 * left),
                    },
                    "curves": {"train/top1": [0.9], f"test/{metric}": [right(run)]},
                    "batches": [f"of seed {run.seed}"],
                    "seconds": {"shrink": 0.0, "epochs": [1.0]},
                    "environment": {"commit": "made up", "device": "cpu"},
                }
                (folder / f"{run.name}.json").write_text(as_text(record))


def read(folder: Path) -> list[dict]:
    """All records in a folder, by name."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
