"""A run that was killed goes on as if nothing had been; damage and other runs are refused."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import lwdna
from lwdna.training import open_network, read_result
from lwdna.training.images import TensorSet
from lwdna.training.randomness import Draw
from tests.training.killed_run import run

ROOT = Path(__file__).parents[2]


def test_kill_9_changes_nothing(tmp_path: Path) -> None:
    straight, expected = run(tmp_path / "straight")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.training.killed_run", str(tmp_path / "killed")]
    killed = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500, check=False
    )
    assert killed.returncode == -9, killed.stderr[-3000:]
    left = torch.load(tmp_path / "killed/checkpoint.pt", weights_only=True)
    assert left["epoch"] == 2 and not (tmp_path / "killed/result.json").exists()
    resumed, result = run(tmp_path / "killed", resume=True)
    for name, tensor in straight.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    assert replace(result, seconds=()) == replace(expected, seconds=())
    logs = [
        (tmp_path / run / "logs/csv/metrics.csv").read_bytes() for run in ("straight", "killed")
    ]
    assert logs[0] == logs[1] and len(logs[0].splitlines()) == 5
    kept = open_network(str(tmp_path / "killed"), trust=["tests"])
    assert all(torch.equal(t, kept.state_dict()[n]) for n, t in straight.state_dict().items())


def test_ctrl_c_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, expected = run(tmp_path / "straight")
    whole = TensorSet.__getitems__

    def interrupted(self: TensorSet, draws: Sequence[Draw]) -> Any:
        if draws[0].epoch == 2 and self.training:
            raise KeyboardInterrupt
        return whole(self, draws)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(TensorSet, "__getitems__", interrupted)
        run(tmp_path / "stopped")
    assert not (tmp_path / "stopped/result.json").exists()
    _, result = run(tmp_path / "stopped", resume=True)
    assert len(list((tmp_path / "stopped/logs/tensorboard").iterdir())) == 1
    assert replace(result, seconds=()) == replace(expected, seconds=())


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    net, result = run(tmp_path)
    again, found = run(tmp_path, resume=True)
    assert found == result == read_result(tmp_path)
    assert all(torch.equal(t, again.state_dict()[n]) for n, t in net.state_dict().items())
    with pytest.raises(lwdna.TrainingError, match="holds a run: resume it"):
        run(tmp_path)
    with pytest.raises(lwdna.TrainingError, match="seed was 0, is 1"):
        run(tmp_path, seed=1, resume=True)


def test_a_damaged_checkpoint_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    run(tmp_path)
    path = tmp_path / "checkpoint.pt"
    whole = path.read_bytes()

    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "trapped"),))

    for damage in ("cut", "empty", "other", "code"):
        if damage in ("cut", "empty"):
            path.write_bytes(whole[: len(whole) // 2] if damage == "cut" else b"")
        else:
            torch.save({"epoch": 1} if damage == "other" else Trap(), path)
        with pytest.raises(lwdna.TrainingError, match=r"checkpoint\.pt is"):
            run(tmp_path, resume=True)
    assert not (tmp_path / "trapped").exists()
