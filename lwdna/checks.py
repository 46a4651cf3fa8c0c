"""What ``shrink`` refuses before anything is done: models that cannot be worked on."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from lwdna.constraints import Constraints
from lwdna.errors import UnsupportedModelError
from lwdna.fx_passes.refusals import check_initialised, check_values
from lwdna.latency import LatencyTable


def check_model(model: nn.Module) -> None:
    """Refuse models that cannot be worked on.

    Raises:
        TypeError: not a module.
        UnsupportedModelError: a wrapper (compiled, parallel, scripted); no parameters; parameters
            on several devices or on the meta device, uninitialised (lazy), or in half precision.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}: pass an nn.Module")
    for kinds, inner in _WRAPPERS:
        if isinstance(model, kinds):
            raise UnsupportedModelError(f"model is a {type(model).__name__}: {inner}")
    parameters = dict(model.named_parameters())
    if not parameters:
        raise UnsupportedModelError(f"{type(model).__name__} has no parameters to shrink")
    for name, p in parameters.items():
        check_initialised(name, p)
        if p.dtype in (torch.float16, torch.bfloat16):
            raise UnsupportedModelError(
                f"parameter {name!r} is {p.dtype}: gradients in half precision do not score "
                "channels; call model.float(), shrink, then cast the result back"
            )
    check_values(model, "shrinking")  # before devices: meta is none that a model can be moved from
    devices = {p.device: name for name, p in reversed(parameters.items())}
    if len(devices) > 1:
        where = ", ".join(f"{name!r} on {device}" for device, name in devices.items())
        raise UnsupportedModelError(f"the model lies on several devices ({where}): move it to one")


_WRAPPERS = (
    (
        (nn.DataParallel, nn.parallel.DistributedDataParallel),
        "pass model.module and wrap the result again",
    ),
    ((torch._dynamo.OptimizedModule,), "pass the model as it was before torch.compile"),
    (
        (torch.jit.ScriptModule,),
        "TorchScript cannot be traced; pass the nn.Module it was made from",
    ),
)


def checked_seed(seed: int) -> int:
    """``seed`` as an int.

    Raises:
        TypeError: it is none.
    """
    if isinstance(seed, bool) or not hasattr(seed, "__index__"):
        raise TypeError(f"seed={seed!r}: an int, not {type(seed).__name__}")
    return operator.index(seed)


def checked_constraints(
    constraints: Constraints | None, latency: LatencyTable | None = None
) -> Constraints:
    """The constraints; by default, no demand beyond the floors, and a latency table's divisor.

    Raises:
        TypeError: something else.
    """
    if constraints is None:
        return Constraints(divisor=1 if latency is None else latency.setting.divisor)
    if not isinstance(constraints, Constraints):
        raise TypeError(
            f"constraints is a {type(constraints).__name__}: pass lwdna.Constraints(divisor=8, ...)"
        )
    return constraints


def check_choice(name: str, value: Any, choices: Sequence[Any]) -> None:
    """Refuse a value that is none of the choices.

    Raises:
        ValueError: names the argument and the choices.
    """
    if value not in choices:
        raise ValueError(f"{name}={value!r}: one of {', '.join(map(repr, choices))}")
