"""Gradients of batch losses, and how the scores of several batches become one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from lwdna.errors import ScoringError
from lwdna.scoring.context import ScoringContext
from lwdna.scoring.criteria import Saliency
from lwdna.scoring.loss import batch_loss
from lwdna.scoring.options import Scoring
from lwdna.scoring.running import Note

Tensors = Mapping[str, Tensor]
#: (number of the batch, weights) -> (saliency, shape (units,); ∂L/∂weights)
WeightScore = Callable[[int, Tensors], tuple[Saliency, Tensors]]


def own_tensors(context: ScoringContext) -> dict[str, Tensor]:
    """The network's parameters as leaves of their own, which a criterion may train.

    Gains that are zero everywhere (``zero_init_residual``, ReZero) count as one: they would keep
    every gradient out of their branch.

    Returns:
        Parameter name -> leaf that requires a gradient; it shares the parameter's memory unless
        the options ask for SGD steps.
    """
    train = context.options.sgd is not None
    result = {
        name: p.detach().clone() if train else p.detach()
        for name, p in context.network.named_parameters()
        if p.is_floating_point()
    }
    result |= opened_gains(context.network)
    return {name: tensor.requires_grad_() for name, tensor in result.items()}


def opened_gains(network: nn.Module) -> dict[str, Tensor]:
    """Ones for the scalar or per-channel parameters, other than biases, that are all zero."""
    return {
        name: torch.ones_like(p)
        for name, p in network.named_parameters()
        if p.dim() <= 1 and p.is_floating_point() and not _is_bias(name) and not p.detach().any()
    }


def _is_bias(name: str) -> bool:
    last = name.rpartition(".")[2]
    return "bias" in last or "beta" in last


def gradients(
    context: ScoringContext,
    k: int,
    tensors: Tensors,
    *,
    create_graph: bool = False,
    note: Note | None = None,
) -> dict[str, Tensor]:
    """∂L/∂tensor of batch ``k``, over all processes.

    Args:
        context: what is scored.
        k: number of the batch.
        tensors: parameter name -> leaf that takes its place.
        create_graph: the gradients can be differentiated again.
        note: see :func:`lwdna.scoring.batch_loss`.

    Returns:
        Parameter name -> gradient; zero where the loss does not depend on the tensor.

    Raises:
        ScoringError: see :func:`lwdna.scoring.batch_loss`; or a gradient is NaN or infinite.
    """
    loss = batch_loss(context, k, tensors, note)
    found = torch.autograd.grad(
        loss,
        list(tensors.values()),
        create_graph=create_graph,
        allow_unused=True,
        materialize_grads=True,
    )
    if create_graph:
        found = tuple(context.ranks.sum(grad) for grad in found)
    else:
        context.ranks.sum_(found)
    for name, grad in zip(tensors, found, strict=True):
        check_gradient(name, grad, k)
    return dict(zip(tensors, found, strict=True))


def check_gradient(name: str, grad: Tensor, k: int) -> None:
    """Refuse a gradient that is not finite."""
    if not grad.isfinite().all():
        raise ScoringError(
            f"the gradient of {name!r} is NaN or infinite on batch {k}: check the scale of the "
            "inputs and the loss, or score in float32"
        )


def over_batches(context: ScoringContext, score: Callable[[int], Saliency], needs: str) -> Saliency:
    """The average of ``score(k)`` over the batches, as the options say.

    Args:
        context: its batches and options.
        score: number of the batch -> saliency, shape (units,); called in order.
        needs: name of the criterion, for the error where there is no batch.

    Raises:
        ScoringError: there is no batch.
    """
    if not context.batches:
        raise ScoringError(
            f"criterion {needs!r} needs at least one batch: pass data, or score with 'magnitude', "
            "'synflow', 'random' or 'uniform'"
        )
    numbers = range(len(context.batches))
    bar = tqdm(numbers, desc="scoring batches", delay=1, disable=None, leave=False)
    return average([score(k) for k in bar], context.options)


def on_own_weights(context: ScoringContext, score: WeightScore, needs: str) -> Saliency:
    """The average over the batches of scores of the network's own weights, in training mode.

    Where the options ask for SGD, the weights take a step after each batch.

    Args:
        context: its network, batches and options.
        score: gives a batch's saliency, shape (units,), and ∂L/∂weights.
        needs: name of the criterion, for the error where there is no batch.

    Raises:
        ScoringError: there is no batch.
    """
    sgd = context.options.sgd
    context.network.train()
    tensors = own_tensors(context)
    optimizer = None if sgd is None else sgd.optimizer(list(tensors.values()))

    def batch(k: int) -> Saliency:
        result, grads = score(k, tensors)
        if optimizer is not None:
            for name, tensor in tensors.items():
                tensor.grad = grads[name]
            optimizer.step()
            optimizer.zero_grad()
        return result

    return over_batches(context, batch, needs)


def average(scores: Sequence[Saliency], options: Scoring) -> Saliency:
    """One score from those of several batches: their mean, the last, or a moving average.

    Args:
        scores: at least one, each of shape (units,).
        options: ``average`` and ``decay``.

    Source: Kingma and Ba, "Adam", ICLR 2015, section 3 (bias correction of moving averages).
    """
    if options.average == "last":
        return scores[-1]
    if options.average == "mean":
        weights = np.full(len(scores), 1 / len(scores))
    else:
        weights = (1 - options.decay) * options.decay ** np.arange(len(scores))[::-1]
        weights /= weights.sum()
    result: Saliency = np.tensordot(weights, np.stack(scores), axes=1)
    return result


def per_unit(
    context: ScoringContext, values: Iterable[tuple[str, Tensor]], *, vectors: bool = False
) -> Saliency:
    """Sum of ``values`` over the filters that produce each unit.

    Args:
        context: its graph says which filter produces which unit.
        values: (parameter name, one value per entry in the parameter's shape). A filter is one
            index of a weight's output dimension (convolution, linear); other parameters are left
            out.
        vectors: take in the unit's entries of parameters with one dimension, too: biases, and
            gains and shifts of norms.

    Returns:
        Shape (units,), float64.
    """
    result = np.zeros(context.graph.units)
    for name, value in values:
        role = context.graph.roles.get(name)
        if role is None and not (vectors and value.dim() == 1):
            continue
        dim = 0 if role is None else role.out_dim
        # Not in the graph: a parameter that the graph does not use, or a PReLU's only entry.
        vectors_of = context.graph.tensors.get(name)
        units = None if vectors_of is None else vectors_of[dim]
        if units is None:
            continue
        entries = value.detach().movedim(dim, 0).reshape(value.shape[dim], -1)
        sums = entries.sum(1, dtype=torch.float64)
        np.add.at(result, units, sums.cpu().numpy())
    return context.graph.gathered(result)
