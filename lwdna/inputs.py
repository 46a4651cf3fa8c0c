"""Example inputs: what a model is traced and counted on, in the forms that callers write."""

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


def as_arguments(model: nn.Module | inspect.Signature, inputs: Any) -> tuple[Any, ...]:
    """Positional arguments of ``forward`` from example inputs.

    Args:
        model: the module, or the signature of its ``forward`` (without ``self``).
        inputs: a tuple or list of positional arguments; a mapping from argument names to values,
            in which arguments with a default may be left out; anything else (a tensor) is the
            only argument. A list or mapping that is itself an argument goes into a tuple:
            ``([a, b],)``.

    Returns:
        The positional arguments. Defaults are filled in up to the last argument that is given.

    Raises:
        TypeError: a name that ``forward`` does not have, a missing argument, or one that can be
            given by keyword only.

    >>> as_arguments(inspect.signature(lambda x, mask=None, scale=1.0: x), {"x": 3, "scale": 2.0})
    (3, None, 2.0)
    """
    if isinstance(inputs, (tuple, list)):
        return tuple(inputs)
    if not isinstance(inputs, Mapping):
        return (inputs,)
    own = model if isinstance(model, inspect.Signature) else inspect.signature(model.forward)
    positional = {
        name: p
        for name, p in own.parameters.items()
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    }
    _check_names(list(inputs), own, list(positional))
    given = max((k for k, name in enumerate(positional) if name in inputs), default=-1)
    needed = [
        name
        for k, (name, p) in enumerate(positional.items())
        if name in inputs or k < given or p.default is p.empty
    ]
    missing = [
        n for n in needed if n not in inputs and positional[n].default is positional[n].empty
    ]
    if missing:
        raise TypeError(f"the example inputs lack forward's argument {missing[0]!r}: give {needed}")
    return tuple(inputs[n] if n in inputs else positional[n].default for n in needed)


def _check_names(names: list[Any], own: inspect.Signature, positional: list[str]) -> None:
    known = ", ".join(map(repr, positional))
    for name in names:
        if name in positional:
            continue
        if name in own.parameters or any(p.kind is p.VAR_KEYWORD for p in own.parameters.values()):
            raise TypeError(
                f"forward's argument {name!r} cannot be given by position, as a graph's inputs "
                f"are: leave it out of the example inputs, or let forward take it so, as {known}"
            )
        raise TypeError(
            f"forward has no argument {name!r}: its arguments are {known}. A mapping that is "
            "itself an argument goes into a tuple: (mapping,)"
        )
