"""lwdna and its peer, Torch-Pruning, doing the same job on the same network."""

from __future__ import annotations

import copy
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.measure import Clock, Seconds, Timer, described
from lwdna.fx_passes.analyse import analyse
from lwdna.fx_passes.capture import capture
from lwdna.fx_passes.resize import resize
from lwdna.graph import ChannelGraph, Copies

SHARE = 0.3  # of every group is removed


def removal(graph: ChannelGraph, share: float, seed: int) -> Copies:
    """Remove ``share`` of every prunable group, at random, and at least leave one channel."""
    random = np.random.default_rng(seed)
    copies = graph.keep_all()
    for group in graph.groups:
        if group.prunable:
            removed = min(int(share * group.width), group.width - 1)
            copies[random.choice(group.units, removed, replace=False)] = 0
    return copies


def prune(
    network: nn.Module, batch: Any, seed: int, timer: Timer = time.perf_counter
) -> tuple[Seconds, ChannelGraph, nn.Module]:
    """Our three stages: (seconds of each and in total, the channel graph, the result)."""
    clock = Clock(timer)
    with clock.stage("capture"):
        gm = capture(network, batch)
    with clock.stage("analyse"):
        graph = analyse(gm, batch)
    copies = removal(graph, SHARE, seed)
    with clock.stage("resize"):
        small = resize(gm, graph, copies, seed=seed)
    clock.seconds["total"] = sum(clock.seconds.values())
    return clock.seconds, graph, small


def classifiers(graph: ChannelGraph) -> set[str]:
    """Names of the layers that give the network's outputs, which the peer must leave alone."""
    return {name.rpartition(".")[0] for name, role in graph.roles.items() if role.classifier}


def _attention_heads(model: nn.Module) -> dict[Any, Any]:
    """Attention modules with the layer that gives their heads, which the peer must be told."""
    return {
        m: layer
        for m in model.modules()
        for layer in (getattr(m, "qkv", None), getattr(m, "qkv_proj", None))
        if hasattr(m, "num_heads") and isinstance(layer, nn.Linear)
    }


def peer_graph_seconds(network: nn.Module, image: Tensor) -> float:
    """Seconds of the peer's dependency graph alone, on a copy, which is not timed."""
    import torch_pruning as tp  # only the benchmark's extra installs it

    clock = Clock()
    model = copy.deepcopy(network)
    with clock.stage("build"):
        tp.DependencyGraph().build_dependency(model, example_inputs=image)
    return clock.seconds["build"]


def prune_as_peer(
    network: nn.Module,
    image: Any,
    seed: int,
    last: set[str],
    timer: Timer = time.perf_counter,
) -> tuple[float, nn.Module]:
    """What a user of Torch-Pruning runs, on a copy, which is not timed.

    The pruner's constructor builds the dependency graph itself; its step removes the channels.

    Args:
        network: in the mode to prune it in.
        image: inputs at batch size 1.
        seed: of the removed channels.
        last: names of the layers to leave alone (:func:`classifiers`).
        timer: see :class:`benchmarks.measure.Clock`.

    Returns:
        (seconds, the pruned network).
    """
    import torch_pruning as tp  # only the benchmark's extra installs it

    torch.manual_seed(seed)
    clock = Clock(timer)
    model = copy.deepcopy(network)
    heads = _attention_heads(model)
    ignored: list[Any] = [model.get_submodule(path) for path in sorted(last)]
    ignored += [p for name, p in model.named_parameters() if "relative_position_bias_table" in name]
    with clock.stage("total"):
        pruner = tp.pruner.BasePruner(
            model,
            image,
            importance=tp.importance.RandomImportance(),
            pruning_ratio=SHARE,
            ignored_layers=ignored,
            num_heads={layer: attention.num_heads for attention, layer in heads.items()},
            in_channel_groups={},  # the defaults are shared by all pruners of a process
            out_channel_groups={},
        )
        pruner.step()
    for attention, layer in heads.items():  # as the peer's example for timm does by hand
        attention.num_heads = pruner.num_heads[layer]
        attention.head_dim = layer.out_features // (3 * attention.num_heads)
    return clock.seconds["total"], model


def run_error(network: nn.Module, image: Any) -> str | None:
    """Why a network does not run on a tensor or a tuple of arguments, or None if it does."""
    try:
        with torch.no_grad():
            network(*image) if isinstance(image, tuple) else network(image)
    except Exception as error:
        return described("forward of the result", error)
    return None


def warm_up(seed: int, *, peer: bool) -> None:
    """First-use imports of torch, lwdna and, if ``peer``, Torch-Pruning."""
    tiny = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
    images = torch.randn(2, 3, 16, 16)
    prune(tiny.eval(), images, seed)
    if peer:
        prune_as_peer(tiny, images[:1], seed, {"3"})
    run_error(tiny, images[:1])
