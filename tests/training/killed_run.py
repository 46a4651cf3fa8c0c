"""What test_resume starts and loses: killed_run.py FOLDER; kill -9 in the third of four epochs."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lwdna
from lwdna.training import Result, fit
from lwdna.training.images import TensorSet
from lwdna.training.randomness import Draw
from tests.training.runs import CPU, labelled, protocol


def run(folder: Path, *, seed: int = 0, resume: bool = False) -> tuple[Any, Result]:
    """Four epochs with all that has a state: momentum, batch norm, dropout, a moving average."""
    net = lwdna.create("tests.training.runs:normed")
    settings = protocol("ema=0.8", "images.mixup=0.4")
    return net, fit(
        net,
        settings,
        labelled(),
        seed=seed,
        output=folder,
        resume=resume,
        machine=CPU,
        loggers=("csv", "tensorboard"),
    )


def main() -> None:
    whole = TensorSet.__getitems__

    def last(self: TensorSet, draws: Sequence[Draw]) -> Any:
        if draws[0].epoch == 2 and self.training:
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(self, draws)

    TensorSet.__getitems__ = last  # type: ignore[method-assign]
    run(Path(sys.argv[1]))


if __name__ == "__main__":
    main()
