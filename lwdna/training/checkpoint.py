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

FORMAT = 1
NAME = "checkpoint.pt"
_FIELDS = {"format", "epoch", "run", "network", "optimizer", "scaler", "ema", "rows"}


def identity(protocol: Protocol, seed: int, data: str) -> dict[str, Any]:
    """What has to be the same for a run to go on."""
    return {**asdict(protocol), "seed": seed, "data": data}


def write(folder: Path, state: Mapping[str, Any]) -> None:
    """Replace a run's checkpoint; a crash leaves the old one or the new one.

    Args:
        folder: of the run.
        state: ``epoch`` (how many are done), ``run`` (see :func:`identity`), and the state of
            ``network``, ``optimizer``, ``scaler``, ``ema``, and the ``rows`` of the log.
    """
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / NAME, lambda path: torch.save({"format": FORMAT, **state}, path))


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
    differ = sorted(key for key in run if run[key] != state["run"].get(key))
    if differ:
        raise TrainingError(
            f"{path} is of another run, with another {', '.join(differ)}: resume with the same, or "
            "write to another directory"
        )
    return dict(state)
