"""The loss of one batch, checked: what goes wrong here is said in the user's words."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lwdna.errors import ScoringError
from lwdna.scoring.batches import fresh
from lwdna.scoring.context import ScoringContext
from lwdna.scoring.running import Model, Note

_BAD_INPUT = (RuntimeError, ValueError, IndexError, TypeError, AssertionError)


def batch_loss(
    context: ScoringContext,
    k: int,
    tensors: Mapping[str, Tensor] | None = None,
    note: Note | None = None,
) -> Tensor:
    """Loss of batch ``k``, in the network's present mode.

    Buffers are replaced by copies, so batch-norm statistics do not move.

    Args:
        context: what is scored.
        k: number of the batch.
        tensors: parameter name -> tensor that takes its place.
        note: called with the value of every node of the network's graph, and the samples of the
            batch it is for; what it returns goes on in the value's place.

    Returns:
        A finite scalar with a gradient. Of several processes each gets its share: the sum over
        them is the loss of the batches put together, if the loss is a mean over samples.

    Raises:
        ScoringError: network or loss refuse the batch (names its shape and the shape the network
            was captured with), or the loss is no scalar, not finite, or has no gradient.
    """
    batch = context.batches[k]
    replaced = {name: buffer.clone() for name, buffer in context.network.named_buffers()}
    replaced.update(tensors or {})
    share = context.ranks.share(batch.size)
    micro = context.options.micro_batch
    # Of the mean batch: the same number on every rank.
    stretches = 1 if micro is None else ceil(batch.size / (share * context.ranks.size * micro))
    model = _Guarded(context, k, replaced, stretches, note)
    with torch.autocast(
        context.device.type, torch.bfloat16, enabled=context.options.bfloat16, cache_enabled=False
    ):
        if context.step_fn is None:
            loss = _loss(context, k, model(*batch.inputs), batch.targets)
        else:
            loss = _step(context, k, model)
    _check_loss(loss, k)
    return loss.float() * share if loss.dtype is torch.bfloat16 else loss * share


class _Guarded(Model):
    """The model of batch ``k``; what it refuses is said in the user's words."""

    def __init__(
        self,
        context: ScoringContext,
        k: int,
        tensors: Mapping[str, Tensor],
        stretches: int,
        note: Note | None,
    ) -> None:
        micro = context.options.micro_batch
        super().__init__(context.network, tensors, micro, stretches, context.ranks, note)
        self._context, self._k = context, k

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().forward(*args, **kwargs)
        except _BAD_INPUT as e:
            inputs = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
            raise ScoringError(
                f"the network refuses batch {self._k} of shape {', '.join(map(_shape, inputs))} "
                f"and dtype {', '.join(str(t.dtype) for t in inputs)}: {type(e).__name__}: {e}. "
                f"It was captured with {_captured_shape(self._context)}"
            ) from e


def _loss(context: ScoringContext, k: int, outputs: Any, targets: Any) -> Tensor:
    loss_fn = context.loss_fn or F.cross_entropy
    if context.loss_fn is None:
        outputs = _logits(outputs)
        _check_labels(outputs, targets, k)
    try:
        return loss_fn(outputs, targets)
    except _BAD_INPUT as e:
        raise ScoringError(
            f"the loss refuses batch {k}, outputs of shape {_shape(outputs)} and targets of shape "
            f"{_shape(targets)}: {type(e).__name__}: {e}. Pass the task's own loss as "
            "loss_fn(outputs, targets), or step_fn(model, batch)"
        ) from e


def _check_labels(outputs: Tensor, targets: Any, k: int) -> None:
    """Cross entropy takes images for class probabilities; nobody means that."""
    dense = isinstance(targets, Tensor) and targets.is_floating_point() and targets.dim() > 2
    if dense and not torch.allclose(targets.sum(1), torch.ones(()).to(targets), atol=1e-2):
        raise ScoringError(
            f"targets of batch {k} are {targets.dtype} of shape {_shape(targets)} and no class "
            "probabilities, which the default loss (cross entropy) needs: pass the task's own "
            "loss_fn, e.g. torch.nn.functional.l1_loss"
        )


def _step(context: ScoringContext, k: int, model: Model) -> Tensor:
    assert context.step_fn is not None
    try:
        return context.step_fn(model, fresh(context.batches[k].whole))
    except _BAD_INPUT as e:
        raise ScoringError(f"step_fn fails on batch {k}: {type(e).__name__}: {e}") from e


def _logits(outputs: Any) -> Tensor:
    """The tensor for the default loss: the output, or a dict's ``"out"`` or first value."""
    if isinstance(outputs, Mapping) and outputs:
        outputs = outputs["out"] if "out" in outputs else next(iter(outputs.values()))
    if not isinstance(outputs, Tensor):
        raise ScoringError(
            f"the network returns a {type(outputs).__name__}, for which there is no default loss: "
            "pass loss_fn(outputs, targets)"
        )
    return outputs


def _check_loss(loss: Any, k: int) -> None:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise ScoringError(
            f"the loss of batch {k} is {_shape(loss)}, not a scalar: reduce it, e.g. by .mean()"
        )
    if not loss.isfinite():
        raise ScoringError(
            f"the loss of batch {k} is {loss.item()}: check the scale of inputs and targets"
        )
    if not loss.requires_grad:
        raise ScoringError(
            f"the loss of batch {k} depends on no parameter: compute it from the outputs without "
            ".detach(), .item() or torch.no_grad()"
        )


def _shape(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _captured_shape(context: ScoringContext) -> str:
    """Shapes of the inputs; a batch size of N stands for any."""
    shapes = [t.shape for t in tree_leaves(context.graph.inputs) if isinstance(t, Tensor)]
    named = (f"({', '.join(['N', *map(str, shape[1:])])})" for shape in shapes)
    return f"inputs of shape {', '.join(named)}"
