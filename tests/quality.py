"""Expected channel groups, written out: what the tests of group quality compare."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lwdna.channels import Policy
from lwdna.fx_passes import verify
from lwdna.fx_passes.analyse import analyse
from lwdna.fx_passes.capture import capture
from lwdna.fx_passes.resize import resize
from lwdna.graph import ChannelGraph

#: Name of a group -> its width and the parameter dimensions that have it, as ``described`` writes.
Expected = Mapping[str, tuple[int, str]]


def param(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape))


def image(channels: int = 3, size: int = 8) -> Tensor:
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(7))


def sequence(length: int = 6, channels: int = 5) -> Tensor:
    return torch.randn(2, length, channels, generator=torch.Generator().manual_seed(7))


def described(graph: ChannelGraph) -> dict[str, tuple[int, str]]:
    """Prunable groups: name -> (width, slots).

    A slot is ``layer[dim]`` (of ``layer.weight``, or of a parameter so named), with ``*n`` where
    every unit occurs n times. Biases and buffers are left out: they follow dimension 0.
    """
    result = {}
    for group in graph.groups:
        if group.prunable:
            slots = [
                f"{slot.name.removesuffix('.weight')}[{slot.dim}]" + (f"*{n}" if n > 1 else "")
                for slot, n in group.slots
                if slot.kind == "parameter" and not slot.name.endswith("bias")
            ]
            result[group.name] = (group.width, " ".join(slots))
    return result


def check(model: nn.Module, x: Any, expected: Expected, policy: Policy = "auto") -> ChannelGraph:
    """The groups are the expected ones, and every invariant holds for this network."""
    graph = analyse(capture(model, x), x, policy=policy)
    found = described(graph)
    assert found == dict(expected), found
    verify.verify(model, x, policy=policy)
    return graph


def resized(gm: nn.Module, x: Any, keep: float = 0.6) -> tuple[ChannelGraph, nn.Module]:
    """The channel graph, and the network at random widths, after what the two must agree on."""
    graph = analyse(gm, x)
    copies = verify.random_copies(graph, keep, np.random.default_rng(0))
    small = resize(gm, graph, copies)
    verify.masked_equivalence(gm, graph, copies, small, x)
    verify.cost(graph, copies, small)
    verify.restriction(graph, copies, small)
    return graph, small
