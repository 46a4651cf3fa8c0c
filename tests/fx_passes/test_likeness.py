"""What two captured networks are compared by."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lwdna
from lwdna.fx_passes.likeness import differences


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] % 2:
            x = F.pad(x, (0, 1))
        return F.relu(self.conv(x))


def captured() -> Any:
    return lwdna.capture(Branching(), torch.empty(2, 3, 8, 8))


def test_an_assertion_counts_by_what_it_asserts_and_not_by_its_message() -> None:
    one, other = captured(), captured()
    assert not list(differences(one, other))  # values are no matter
    (node,) = [n for n in other.graph.nodes if n.target is torch._assert]
    node.args = (node.args[0], "captured elsewhere, in (another) 'place'")
    other.recompile()
    assert one.code != other.code and not list(differences(one, other))
    other.graph.erase_node(node)
    other.recompile()
    (said,) = differences(one, other)
    assert said.startswith("the code of 'the network' differs: ")


def test_another_function_is_named() -> None:
    one, other = captured(), captured()
    (node,) = [n for n in other.graph.nodes if n.target is F.relu]
    node.target = F.gelu
    node.kwargs = {}
    other.recompile()
    (said,) = differences(one, other)
    assert "relu" in said and "gelu" in said
