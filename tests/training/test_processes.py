"""fit under torchrun: two processes come to what one comes to with the whole batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lwdna.training import open_network, read_result
from tests.training.distributed_fit import results

ROOT = Path(__file__).parents[2]


def test_two_processes_are_one(tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    script = ["--nproc-per-node=2", "tests/training/distributed_fit.py", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launcher, *script], cwd=ROOT, env=environment,
        capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "fetched").read_text() == "0 True\n0 False\n", "the first process fetches"
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    (tmp_path / "alone").mkdir()
    alone = results(tmp_path / "alone")
    assert [found["processes"] for found in (*ranks, alone)] == [2, 2, 1]
    for network in ("plain", "other"):  # running statistics, too
        for name, tensor in ranks[0][network].items():
            assert torch.equal(tensor, ranks[1][network][name]), (network, name)
    for name, tensor in alone["plain"].items():
        torch.testing.assert_close(ranks[0]["plain"][name], tensor, rtol=1e-9, atol=1e-11)
    for ours, theirs in zip(ranks[0]["epochs"], alone["epochs"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-6)
    assert ranks[0]["epochs"] == ranks[1]["epochs"] and ranks[0]["kept"] == ranks[1]["kept"]
    assert ranks[0]["pictures"]["set"] == pytest.approx(alone["pictures"]["set"])
    kept = read_result(tmp_path / "run")
    assert kept.processes == 2 and dict(kept.metrics) == ranks[0]["kept"]
    saved = open_network(str(tmp_path / "run"), trust=["tests"]).state_dict()
    for name, tensor in ranks[0]["other"].items():
        assert torch.equal(saved[name], tensor), name
