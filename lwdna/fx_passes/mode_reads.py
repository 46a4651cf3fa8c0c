"""Whether a trace asks for ``module.training``: what never asks is the same in both modes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from lwdna.fx_passes.members import modules_of

_FLAG = "training"


@contextmanager
def watched_mode(asked: Callable[[nn.Module], None]) -> Iterator[None]:
    """Call ``asked`` with each module that is asked for its ``training``, or told it.

    The flag is an attribute of each module; a property of their class comes before it.
    """

    def read(module: nn.Module) -> Any:
        asked(module)
        try:
            return vars(module)[_FLAG]
        except KeyError:  # scripted modules keep it elsewhere
            return module.__getattr__(_FLAG)

    def write(module: nn.Module, value: Any) -> None:
        asked(module)
        vars(module)[_FLAG] = value

    setattr(nn.Module, _FLAG, property(read, write))
    try:
        yield
    finally:
        delattr(nn.Module, _FLAG)


def set_mode(root: nn.Module, training: bool) -> None:
    """``root.train(training)``, without what :class:`torch.nn.Module` looks up for each flag.

    A ``train()`` of a module's own is called, for both modes in turn: it may clear what is cached.
    """
    if not follows_flag(root):
        root.train().train(training)
        return
    for module in modules_of(root):
        kind = type(module)
        if kind.__setattr__ is nn.Module.__setattr__ and not hasattr(kind, _FLAG):
            vars(module)[_FLAG] = training
        else:
            setattr(module, _FLAG, training)


def is_own_layer(module: nn.Module) -> bool:
    """Whether a leaf's mode changes values and statistics, but not the structure of its result."""
    return type(module).__module__.startswith("torch.nn.") or isinstance(
        module, nn.modules.batchnorm._NormBase
    )


def follows_flag(model: nn.Module) -> bool:
    """Whether the modes of a model differ in ``training`` alone, and Python sees who reads it.

    ``train()`` may be overridden to change more; scripted modules read the flag unseen.
    """
    return all(
        getattr(module.train, "__func__", None) is nn.Module.train
        and not isinstance(module, torch.jit.ScriptModule)
        for module in modules_of(model)
    )
