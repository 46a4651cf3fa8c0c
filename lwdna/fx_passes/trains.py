"""The invariant that a network trains, as a function for any model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils._pytree import tree_leaves, tree_map_only

from lwdna.fx_passes.invariants import outputs_of
from lwdna.fx_passes.module import detached_copy
from lwdna.fx_passes.regions import of_samples
from lwdna.fx_passes.state import require
from lwdna.inputs import as_arguments


def trains(
    network: nn.Module,
    inputs: Any,
    *,
    loss_fn: Callable[[Any], Tensor] | None = None,
    batches: Sequence[int] = (1, 3),
) -> str:
    """Invariant 7: modes act, batch sizes work, gradients are finite, state round-trips.

    Args:
        network: any captured or resized network; a copy is worked on.
        inputs: real inputs of ``forward``, batch first.
        loss_fn: loss from the output; the mean square of all outputs by default.
        batches: batch sizes to evaluate; the last one is trained on.
    """
    work: nn.Module = detached_copy(network)
    work.eval()
    require(not any(m.training for m in work.modules()), "trains: eval() does not reach a module")
    for n in batches:
        batch = _batch(network, as_arguments(network, inputs), n)
        again = [outputs_of(work, batch) for _ in range(2)]
        for x, y in zip(*again, strict=True):
            require(torch.equal(x, y), "trains: evaluation is not deterministic")
            require(bool(x.isfinite().all()), f"trains: batch {n} gives values that are not finite")
    require(
        all(
            torch.equal(x, y)
            for x, y in zip(outputs_of(copy.deepcopy(work), batch), again[0], strict=True)
        ),
        "trains: a deepcopy computes something else",
    )
    state = {key: value.clone() for key, value in work.state_dict().items()}
    other = copy.deepcopy(work)
    other.load_state_dict(state, strict=True)
    work.train()
    require(all(m.training for m in work.modules()), "trains: train() does not reach a module")
    out = [t for t in tree_leaves(work(*batch)) if isinstance(t, Tensor) and t.is_floating_point()]
    loss = (
        loss_fn(out)
        if loss_fn is not None
        else sum((t.square().mean() for t in out), torch.zeros(()))
    )
    loss.backward()
    used = 0
    for name, p in work.named_parameters():
        if p.grad is not None:
            used += 1
            require(bool(p.grad.isfinite().all()), f"trains: gradient of {name} is not finite")
    require(used > 0, "trains: no parameter gets a gradient")
    return (
        f"{used} parameters with finite gradients, batches {' and '.join(map(str, batches))}, "
        "state and deepcopy round-trip"
    )


def _batch(network: nn.Module, inputs: tuple[Any, ...], n: int) -> tuple[Any, ...]:
    """The inputs at batch size ``n`` (samples of batches repeated with small noise).

    A list that is an argument of one graph is part of its structure; that of a detector has one
    entry per sample.
    """
    if not isinstance(network, GraphModule):
        return of_samples(inputs, n)

    def sized(t: Tensor) -> Tensor:
        if not t.dim():
            return t
        rows = t[torch.arange(n, device=t.device) % len(t)]
        if not t.is_floating_point():
            return rows
        noise = 1e-3 * torch.arange(n, device=t.device, dtype=t.dtype)
        return rows + noise.view(-1, *[1] * (t.dim() - 1))

    return tuple(tree_map_only(Tensor, sized, inputs))
