"""Torch-Pruning, the peer that the benchmarks compare with."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.measure import Clock, Seconds

SHARE = 0.3  # of every group is removed


def _attention_heads(model: nn.Module) -> dict[Any, Any]:
    """Attention modules with the layer that gives their heads, which the peer must be told."""
    return {
        m: layer
        for m in model.modules()
        for layer in (getattr(m, "qkv", None), getattr(m, "qkv_proj", None))
        if hasattr(m, "num_heads") and isinstance(layer, nn.Linear)
    }


def prune(
    network: nn.Module, image: Tensor, seed: int, last: set[str]
) -> tuple[Seconds, nn.Module]:
    """Torch-Pruning's two steps, each on a copy of its own, which is not timed.

    ``build`` is the dependency graph alone. ``total`` is what a user runs: the pruner, whose
    constructor builds the graph itself, and its step.
    """
    import torch_pruning as tp  # only the benchmark's extra installs it

    torch.manual_seed(seed)
    clock = Clock()
    model = copy.deepcopy(network)
    with clock.stage("build"):
        tp.DependencyGraph().build_dependency(model, example_inputs=image)
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
    return clock.seconds, model
