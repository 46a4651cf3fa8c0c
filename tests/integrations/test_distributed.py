"""DistributedDataParallel and FSDP2: steps of two processes are those of one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.integrations.distributed_steps import CASES, stepped
from tests.integrations.networks import close, shrunk

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Any]:
    """What two processes come to, in every case."""
    file = tmp_path_factory.mktemp("distributed") / "states.pt"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launcher, "tests/integrations/distributed_steps.py", str(file)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(torch.load(file, weights_only=True))


@pytest.mark.parametrize(("way", "name"), [case[:2] for case in CASES])
def test_steps_are_those_of_one_process(states: Any, way: str, name: str) -> None:
    alone = shrunk(name)
    stepped(alone, slice(None))
    assert list(states[way, name]) == list(alone.state_dict())
    close(states[way, name], dict(alone.state_dict()))


def test_batch_norms_are_exchanged_for_synchronised_ones() -> None:
    """They run on GPUs only; here, that the graph calls the new ones, with the same tensors."""
    net = shrunk("resnet")
    keys = list(net.state_dict())
    synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    assert synchronised is net and list(net.state_dict()) == keys
    called = [net.get_submodule(n.target) for n in net.graph.nodes if n.op == "call_module"]
    assert any(isinstance(m, nn.SyncBatchNorm) for m in called)
    assert not any(type(m) is nn.BatchNorm2d for m in called)
