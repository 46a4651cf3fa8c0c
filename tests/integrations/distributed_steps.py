"""What every process of test_distributed runs: torchrun ... distributed_steps.py FILE"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.tensor import DTensor

from tests.integrations.networks import images, shrunk, targets
from tests.integrations.page import run, sections

#: (function of the page, network, whether each process has the whole batch: batch norms then see
#: what they see in one process).
CASES = (
    ("replicated", "resnet", True),
    ("replicated", "vit", False),
    ("sharded", "resnet", True),
    ("sharded", "vit", False),
)
PREFIXES = {
    "resnet": ["layer1.", "layer2.", "layer3.", "layer4."],
    "vit": ["blocks.0.", "blocks.1."],
}


def stepped(network: Any, part: slice) -> None:
    """Two steps on a part of the batch."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(network(images()[part]), targets()[part]).backward()
        optimizer.step()


def whole(network: Any) -> dict[str, Tensor]:
    """The state_dict, with the parts of every process put together."""
    state = getattr(network, "module", network).state_dict()
    return {k: t.full_tensor() if isinstance(t, DTensor) else t for k, t in state.items()}


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    page: dict[str, Any] = {}
    run(sections()["Several processes"], page)
    found = {}
    for way, name, same in CASES:
        net = shrunk(name)
        network = (
            page["replicated"](net) if way == "replicated" else page["sharded"](net, PREFIXES[name])
        )
        stepped(network, slice(None) if same else slice(rank, None, dist.get_world_size()))
        found[way, name] = whole(network)
    if rank == 0:
        torch.save(found, Path(sys.argv[1]))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
