"""The models of timm and torchvision: their names, and what lwdna finds of each without weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch

from lwdna.fx_passes.analyse import analyse
from lwdna.fx_passes.capture import capture
from lwdna.inputs import default_inputs
from lwdna.prunable import prunable_share
from lwdna.source import ModelSource, build, without_values


def all_models() -> tuple[str, ...]:
    """Every model of both libraries, as ``"timm:resnet18"``."""
    import timm  # takes as long to import as torch
    import torchvision

    return (
        *(f"timm:{name}" for name in timm.list_models()),
        *(f"torchvision:{name}" for name in torchvision.models.list_models()),
    )


def matching(patterns: Iterable[str]) -> tuple[str, ...]:
    """The models that a pattern matches; with or without the library.

    Raises:
        ValueError: a pattern matches no model.
    """
    found: dict[str, None] = {}
    everything = all_models()
    for pattern in patterns:
        full = pattern if ":" in pattern else f"*:{pattern}"
        names = [name for name in everything if fnmatchcase(name, full)]
        if not names:
            raise ValueError(f"{pattern!r} matches no model of timm or torchvision")
        found.update(dict.fromkeys(names))
    return tuple(found)


def facts(name: str, shapes: Sequence[tuple[int, ...]] = ()) -> dict[str, Any]:
    """What a model costs and how much of that can be pruned; nothing is drawn or downloaded.

    Args:
        name: ``"library:model"``.
        shapes: of its inputs, without the batch; by default an image that fits the model.

    Returns:
        ``input`` (shapes, without the batch), ``params``, ``macs``, ``activations``,
        ``prunable_params`` and ``prunable_macs`` (shares, see
        :func:`lwdna.prunable.prunable_share`), ``groups`` and ``prunable_groups``.

    Raises:
        LwdnaError: the model cannot be built, captured or analysed.
    """
    source = ModelSource.of(name)
    model = without_values(lambda: build(source))
    inputs = tuple(torch.empty(2, *shape, device="meta") for shape in shapes)
    inputs = inputs or (default_inputs(model),)
    graph = analyse(capture(model, inputs), inputs)
    cost = graph.cost()
    groups = [group for group in graph.groups if group.slots]
    return {
        "input": [list(t.shape[1:]) for t in inputs],
        "params": cost.params,
        "macs": cost.macs,
        "activations": cost.activations,
        "prunable_params": round(prunable_share(graph, "params"), 4),
        "prunable_macs": round(prunable_share(graph, "macs"), 4),
        "groups": len(groups),
        "prunable_groups": sum(group.prunable for group in groups),
    }
