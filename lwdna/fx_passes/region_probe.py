"""Trust, but probe: does the code between regions take other numbers of channels?

It may have a size written into it (``torch.zeros(n, 256, 7, 7)``) that no operator shows. So after
the analysis the channels that cross it are made fewer, and the network runs again. Where a region
is then called with other shapes than predicted, the channels must not change.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from lwdna.channels import Policy
from lwdna.fx_passes.module import detached_copy
from lwdna.fx_passes.outputs import Outputs
from lwdna.fx_passes.region_follow import Entrance, follow
from lwdna.fx_passes.region_watch import run_in_both_modes
from lwdna.fx_passes.regions import intercepted, tensors_in
from lwdna.fx_passes.resize import resize
from lwdna.graph import ChannelGraph, Copies
from lwdna.tensor_channels import TensorChannels, channels_in


def analyse_parts(
    host: nn.Module, arguments: tuple[Any, ...], *, policy: Policy, outputs: Outputs
) -> ChannelGraph:
    """The channel graph of a network that was captured in parts, probed.

    Args:
        host: the network; not changed.
        arguments: real positional arguments of ``forward``.
        policy: see :func:`lwdna.analyse`.
        outputs: see :func:`lwdna.analyse`.
    """
    distrusted: dict[Entrance, str] = {}
    while True:
        graph = follow(host, arguments, distrusted, policy=policy, outputs=outputs)
        found = _probe(host, graph, arguments)
        if not found:
            return graph
        assert found.keys() - distrusted.keys(), "a frozen channel cannot fail the probe again"
        distrusted |= found


def _probe(host: nn.Module, graph: ChannelGraph, arguments: tuple[Any, ...]) -> dict[Entrance, str]:
    """Inputs of regions that the code between them does not hand over as predicted."""
    entrances = {
        (path, k): t
        for path, calls in graph.calls.items()
        for k, t in enumerate(channels_in(calls[0]))
    }
    copies = _fewer(graph, list(entrances.values()))
    if (copies == 1).all():
        return {}
    wanted = {
        (path, k): t
        for path, calls in graph.restrict(copies).calls.items()
        for k, t in enumerate(channels_in(calls[0]))
    }
    changes = {e for e, t in entrances.items() if t.shape != wanted[e].shape}
    found: dict[Entrance, str] = {}

    def check(path: str, forward: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        for k, t in enumerate(tensors_in(args)):
            for size, vector in zip(t.shape, wanted[path, k].vectors, strict=True):
                if vector is not None and size != len(vector):
                    found[path, k] = (
                        f"the code in front gives {size} channels where {len(vector)} are expected"
                    )
        if found:
            raise RuntimeError("a region is not called as predicted")
        return forward(*args)

    small = detached_copy(resize(host, graph, copies))
    with torch.inference_mode(), intercepted(small, check):
        failed = run_in_both_modes(small, arguments)
    if failed and not found:
        before = run_in_both_modes(detached_copy(host), arguments)
        for mode in failed.keys() - before.keys():
            reason = f"the code between the parts fails on other widths: {failed[mode]}"
            found.update(dict.fromkeys(changes, reason))
    return found


def _fewer(graph: ChannelGraph, crossing: list[TensorChannels]) -> Copies:
    """Copies that make every group that enters a region smaller, each by another number."""
    vectors = [v for t in crossing for v in t.vectors if v is not None]
    groups = {int(g) for v in vectors for g in np.unique(graph.group_of[v])}
    copies = graph.keep_all()
    for k, index in enumerate(sorted(groups)):
        group = graph.groups[index]
        if group.prunable and group.width > 1:
            copies[group.units[: 1 + k % (group.width - 1)]] = 0
    return copies
