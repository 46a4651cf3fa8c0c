"""Criteria from the gradient of the network's own weights."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from lwdna.errors import ScoringError
from lwdna.scoring.context import ScoringContext
from lwdna.scoring.criteria import Saliency, criterion
from lwdna.scoring.gradients import (
    Tensors,
    check_gradient,
    gradients,
    on_own_weights,
    per_unit,
)


@criterion("taylor")
def taylor(context: ScoringContext) -> Saliency:
    """(Σ g·w)² over the parameters of a unit: the squared change of the loss, first order.

    These are the filters that produce it, their biases, and the gains and shifts of its norms. A
    batch norm undoes the scale of the filter before it, so that this filter's own Σ g·w is zero
    up to rounding; without the gain and the shift nothing would be left but noise.

    Args:
        context: network, graph, batches, loss and options. The network runs in training mode;
            gains that are zero everywhere count as one.

    Returns:
        Saliency, shape (units,), float64.

    Raises:
        ScoringError: no batch, or a loss or gradient that is not finite.

    Source: Molchanov et al., "Importance Estimation for Neural Network Pruning", CVPR 2019: the
    joint importance of a set of parameters, here all those of the unit.
    """

    def score(k: int, w: Tensors) -> tuple[Saliency, Tensors]:
        g = gradients(context, k, w)
        values = ((name, g[name] * w[name]) for name in g)
        return np.square(per_unit(context, values, vectors=True)), g

    return on_own_weights(context, score, "taylor")


@criterion("snip")
def snip(context: ScoringContext) -> Saliency:
    """Σ |g·w| over the filters that produce a unit: the sensitivities of its connections.

    Args:
        context: as for ``taylor``.

    Returns:
        Saliency, shape (units,), float64. SNIP's division by the sum over all connections is left
        out: it changes no order, and no share of the budget.

    Raises:
        ScoringError: as for ``taylor``.

    Source: Lee et al., "SNIP: Single-shot Network Pruning based on Connection Sensitivity",
    ICLR 2019, equations 5 and 6, summed over a unit.
    """

    def score(k: int, w: Tensors) -> tuple[Saliency, Tensors]:
        g = gradients(context, k, w)
        return per_unit(context, ((name, (g[name] * w[name]).abs()) for name in g)), g

    return on_own_weights(context, score, "snip")


@criterion("grasp")
def grasp(context: ScoringContext) -> Saliency:
    """Σ w·(H g) over the filters that produce a unit: what its removal takes from the gradient.

    H is the Hessian of the loss and g its gradient, both over the parameters. Where the sum is
    negative, the gradient's norm grows when the unit goes. GraSP's own score is the negative of
    this, and the weights with its highest values go.

    Args:
        context: as for ``taylor``. Two backward passes, the second through the first.

    Returns:
        Saliency, shape (units,), float64, of either sign.

    Raises:
        ScoringError: as for ``taylor``; or an operator has no second derivative.

    Source: Wang et al., "Picking Winning Tickets Before Training by Preserving Gradient Flow",
    ICLR 2020, equations 6 to 8.
    """

    def score(k: int, w: Tensors) -> tuple[Saliency, Tensors]:
        g = _twice_differentiable(context, k, w)
        half = sum((grad * grad.detach()).sum() for grad in g.values())
        assert isinstance(half, Tensor)
        # The sum over ranks stands in every rank's g; each differentiates its share of it.
        try:
            found = torch.autograd.grad(
                half / context.ranks.size,
                list(w.values()),
                allow_unused=True,
                materialize_grads=True,
            )
        except RuntimeError as e:
            if "is not implemented" not in str(e):
                raise
            raise ScoringError(
                f"criterion 'grasp' needs second derivatives, and an operator has none: {e}. "
                "Score with 'snip' or 'taylor'"
            ) from e
        context.ranks.sum_(found)
        hg = dict(zip(w, found, strict=True))
        for name, value in hg.items():
            check_gradient(name, value, k)
        result = per_unit(context, ((name, hg[name] * w[name]) for name in hg))
        return result, {name: grad.detach() for name, grad in g.items()}

    return on_own_weights(context, score, "grasp")


def _twice_differentiable(context: ScoringContext, k: int, w: Tensors) -> dict[str, Tensor]:
    """Gradients that can be differentiated again; fused attention cannot."""
    with sdpa_kernel(SDPBackend.MATH):
        return gradients(context, k, w, create_graph=True)
