"""The state of a module: whether it was left as it is, and values that hide nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lwdna.errors import VerificationError


def require(holds: bool, message: str) -> None:
    """Raise :class:`VerificationError` with ``message`` unless ``holds``."""
    if not holds:
        raise VerificationError(message)


def stir(network: nn.Module, *, seed: int = 0) -> None:
    """Give constant parameters and statistics non-trivial values, in place.

    Fresh networks hide errors: a last batch norm of zeros silences a branch, a classifier of zeros
    the whole network. Run this on a copy before :func:`masked_equivalence`.
    """
    generator = torch.Generator().manual_seed(seed)
    for t in (*network.parameters(), *network.buffers()):
        if t.is_floating_point() and t.dim() and bool((t == t.flatten()[0]).all()):
            noise = torch.rand(t.shape, generator=generator).to(t)
            t.data.add_(0.2 * noise + 0.05)


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Invariant 6: the block leaves values, modes, gradients, flags, device and RNG alone."""
    before = _snapshot(model)
    yield
    for key, value in _snapshot(model).items():
        same = (
            torch.equal(value, before[key]) if isinstance(value, Tensor) else value == before[key]
        )
        require(bool(same), f"untouched: {key} of the input model changed")


def _snapshot(model: nn.Module) -> dict[str, Any]:
    state: dict[str, Any] = {"random state": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["CUDA random state"] = torch.cuda.get_rng_state()
    for name, t in (*model.named_parameters(), *model.named_buffers()):
        state[f"{name}"] = t.detach().clone()
        state[f"{name} (object, flag, device)"] = (id(t), t.requires_grad, t.device)
        if t.grad is not None:
            state[f"{name}.grad"] = t.grad.clone()
    for name, module in model.named_modules():
        state[f"{name or 'model'} (type, mode)"] = (type(module), module.training)
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
        state[f"{name or 'model'} (attributes, hooks)"] = (sorted(vars(module)), *map(len, hooks))
    return state
