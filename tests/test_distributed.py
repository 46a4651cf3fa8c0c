"""shrink under torchrun: scores of the concatenated batch, one network, no hang."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.distributed_shrink import CASES, results

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("size", [2, 3])
def test_scores_and_network_are_those_of_one_process(size: int, tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*launcher, f"--nproc-per-node={size}", "tests/distributed_shrink.py", str(tmp_path)]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "PYTHONFAULTHANDLER": "1",
    }
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    alone = results(list(range(size)), seed=0)  # rank 0's weights
    ranks: list[dict[str, Any]] = [
        torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(size)
    ]
    for rank, found in enumerate(ranks):
        for case in CASES:
            np.testing.assert_array_equal(found[case], ranks[0][case], err_msg=case)
            most = np.abs(alone[case]).max()
            np.testing.assert_allclose(
                found[case], alone[case], rtol=1e-9, atol=1e-11 * most, err_msg=case
            )
        assert found["dna"] == alone["dna"]
        for name, tensor in alone["state"].items():
            assert torch.equal(found["state"][name], ranks[0]["state"][name]), (rank, name)
            torch.testing.assert_close(found["state"][name], tensor)
            assert torch.equal(
                found["after"][name], found["state"][name]
            )  # a failure leaves no trace
        for key, message in found["disagreements"].items():
            assert message.startswith(f"the ranks differ in {key}"), (key, message)
        culprit = "" if rank == size - 1 else f"rank {size - 1} failed: ScoringError: "
        assert (
            found["failure"]
            == f"{culprit}inputs of batch 1 hold NaN or infinite values: check the data"
        )
