"""What every process of test_processes runs: torchrun ... distributed_fit.py FOLDER"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torch import nn

import lwdna
from lwdna.training import Data, evaluate, fit, open_data
from lwdna.training.machine import launch, leave
from tests.training.runs import CPU, Plain, labelled, pictures, protocol, restoration, seeded


def results(folder: Path) -> dict[str, Any]:
    """Weights and metrics of a network without batch norm, and of one with it."""
    settings = protocol("ema=0.5", "clip=1", "precision=64-true")
    plain, other = seeded(Plain), lwdna.create("tests.training.runs:normed")
    found = fit(plain, settings, labelled(), output=None, machine=CPU)
    kept = fit(other, protocol("epochs=1", "milestones=[]", "schedule=constant"), labelled(),
               output=folder / "run", machine=CPU)  # fmt: skip
    noisy = Data("p", None, {"set": pictures(3, 20, 24, 1)})
    measure = restoration("denoising", channels=1, sigma=20.0)
    return {
        "plain": plain.state_dict(),
        "other": other.state_dict(),
        "epochs": list(map(dict, found.epochs)),
        "kept": dict(kept.metrics),
        "pictures": evaluate(nn.Identity(), measure, noisy, machine=CPU),
        "processes": found.processes,
    }


class Fetched(torch.utils.data.Dataset[Any]):
    """Stands in for torchvision's: what is not there is fetched, which takes a while."""

    data = np.zeros((4, 32, 32, 3), dtype=np.uint8)
    targets = (0, 1, 0, 1)
    classes = ("a", "b")

    def __init__(self, root: str, *, train: bool, download: bool) -> None:
        there = Path(root) / f"{train}"
        if download and not there.exists():
            with (Path(root) / "fetched").open("a") as log:
                log.write(f"{os.environ['RANK']} {train}\n")
            time.sleep(1)
            there.touch()
        assert there.exists()


def main() -> None:
    folder = Path(sys.argv[1])
    torchvision.datasets.CIFAR10 = Fetched
    launch(CPU, protocol()).barrier()  # both are there when the first begins to fetch
    data = open_data(f"cifar10:{folder}", protocol(), download=True, machine=CPU)
    assert data.classes == 2
    found = results(folder)
    torch.save(found, folder / f"{torch.distributed.get_rank()}.pt")
    leave()


if __name__ == "__main__":
    main()
