"""What every process of test_processes runs: torchrun ... distributed_fit.py FOLDER"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

import lwdna
from lwdna.training import Data, evaluate, fit
from lwdna.training.machine import leave
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


def main() -> None:
    folder = Path(sys.argv[1])
    found = results(folder)
    torch.save(found, folder / f"{torch.distributed.get_rank()}.pt")
    leave()


if __name__ == "__main__":
    main()
