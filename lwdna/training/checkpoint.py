"""Checkpoints: all that a run needs to go on as if it had never stopped.

No state of random generators is among it: every epoch is seeded by its number.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from lwdna.errors import TrainingError
from lwdna.files import replace_file
from lwdna.training.protocol import Protocol

FORMAT = 2
NAME = "checkpoint.pt"
_FIELDS = {"format", "epoch", "run", "network", "optimizer", "scaler", "ema", "rows"}


def identity(protocol: Protocol, seed: int, data: str, processes: int) -> dict[str, Any]:
    """What has to be the same for a run to go on and come to the same.

    The number of processes is: each has dropout and, in batch norms, statistics of its own.
    """
    return {**asdict(protocol), "seed": seed, "data": data, "processes": processes}


def write(folder: Path, state: Mapping[str, Any]) -> None:
    """Replace a run's checkpoint; a crash leaves the old one or the new one.

    Args:
        folder: of the run.
        state: ``epoch`` (how many are done), ``run`` (see :func:`identity`), and the state of
            ``network``, ``optimizer``, ``scaler``, ``ema``, and the ``rows`` of the log.
    """
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / NAME, lambda path: torch.save({"format": FORMAT, **state}, path))


def check_free(folder: Path) -> None:
    """Refuse a directory that holds a run.

    Raises:
        TrainingError: there is a checkpoint.
    """
    if (folder / NAME).exists():
        raise TrainingError(f"{folder} holds a run: resume it, or name another directory")


def read(folder: Path, run: Mapping[str, Any]) -> dict[str, Any] | None:
    """A run's checkpoint, on the CPU; None if there is none yet. No code comes from the file.

    Args:
        folder: of the run.
        run: see :func:`identity`.

    Raises:
        TrainingError: it is damaged, or of another run: names the settings that differ.
    """
    path = folder / NAME
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as e:
        raise TrainingError(f"{path} is damaged: {type(e).__name__}: {e}") from e
    if not isinstance(state, dict) or set(state) != _FIELDS or state["format"] != FORMAT:
        raise TrainingError(f"{path} is no checkpoint of this version of lwdna")
    then, now = _flat(state["run"]), _flat(run)
    differ = [key for key in sorted(now.keys() | then.keys()) if now.get(key) != then.get(key)]
    if differ:
        said = "; ".join(f"{key} was {then.get(key)!r}, is {now.get(key)!r}" for key in differ)
        raise TrainingError(
            f"{path} is of another run: {said}. Resume with the same, or write to another directory"
        )
    return dict(state)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by the names that :meth:`Protocol.but` has for them: ``images.size``."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        inner = isinstance(value, Mapping)
        found |= _flat(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return found
