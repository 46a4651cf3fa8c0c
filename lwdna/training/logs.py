"""Logs of a run, by the library's loggers."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from lwdna.training.run import Run

Logger = Literal["csv", "tensorboard"]
LOGS = "logs"


def open_logs(folder: Path, names: Sequence[Logger], run: Run) -> list[Any]:
    """The loggers, with the rows of the epochs that are done.

    They are written anew, so that the log of a run that was killed holds each epoch once.

    Args:
        folder: of the run.
        names: of the loggers.
        run: the run; only its first process logs.
    """
    from lightning_fabric.loggers import CSVLogger, TensorBoardLogger

    if not run.fabric.is_global_zero:
        return []
    kinds: dict[str, Any] = {
        "csv": lambda: CSVLogger(folder, name=LOGS, version="csv", flush_logs_every_n_steps=1),
        "tensorboard": lambda: TensorBoardLogger(folder, name=LOGS, version="tensorboard"),
    }
    found = []
    for name in names:
        shutil.rmtree(folder / LOGS / name, ignore_errors=True)
        logger = kinds[name]()
        for epoch, row in enumerate(run.rows):
            logger.log_metrics(row["metrics"], epoch)
        logger.save()
        found.append(logger)
    return found
