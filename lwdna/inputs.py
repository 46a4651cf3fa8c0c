"""Example inputs: what a model is traced and counted on when the caller gives none."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

_DEFAULT_SIZE = 224


def default_inputs(model: nn.Module) -> Tensor:
    """An image batch on the meta device that fits the model: (2, C, H, W), float.

    C is the first convolution's number of input channels; H and W come from the model's own
    configuration (timm's ``pretrained_cfg``) and are 224 otherwise.

    Source: https://huggingface.co/docs/timm (``pretrained_cfg["input_size"]``).
    """
    configuration: Any = getattr(model, "pretrained_cfg", None) or {}
    size = tuple(configuration.get("input_size", (3, _DEFAULT_SIZE, _DEFAULT_SIZE)))
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    channels = size[0] if first is None else first.in_channels
    parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
    dtype = torch.float32 if parameter is None else parameter.dtype
    return torch.empty((2, channels, *size[1:]), dtype=dtype, device="meta")


def as_arguments(model: nn.Module, inputs: Any) -> tuple[Any, ...]:
    """Stub until merge."""
    if isinstance(inputs, Mapping):
        return inspect.signature(model.forward).bind(**inputs).args
    return tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)
