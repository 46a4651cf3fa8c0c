"""SynFlow and Fisher: criteria that look at what flows through the network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx import Node
from torch.utils._pytree import tree_iter, tree_map_only

from lwdna.errors import ScoringError
from lwdna.scoring.context import ScoringContext
from lwdna.scoring.criteria import Saliency, criterion
from lwdna.scoring.gradients import Tensors, gradients, on_own_weights, opened_gains, per_unit

_CONVOLUTIONS = {
    getattr(nn.functional, f"conv{kind}{d}d") for kind in ("", "_transpose") for d in (1, 2, 3)
}


@criterion("synflow", data=False)
def synflow(context: ScoringContext) -> Saliency:
    """Σ ∂R/∂|w| · |w| over the filters that produce a unit, R the sum of outputs for inputs of one.

    Data-free: the network runs once in evaluation mode, in float64, on one sample of ones, with
    the absolute values of all its parameters and buffers. One round; SynFlow itself repeats it
    with an exponential schedule.

    Args:
        context: network and graph; batches and loss are not used.

    Returns:
        Saliency, shape (units,), float64; 0 for a unit that no layer produces.

    Raises:
        ScoringError: no output depends on a weight, or R overflows float64.

    Source: Tanaka et al., "Pruning neural networks without any data by iteratively conserving
    synaptic flow", NeurIPS 2020, equations 1 and 2 and algorithm 1.
    """
    _require_one_graph(context, "synflow")
    network = context.network.eval()

    def positive(t: Tensor) -> Tensor:
        return t.detach().double().abs() if t.is_floating_point() else t

    tensors = {name: positive(t) for name, t in network.named_buffers()}
    weights = {name: positive(p).requires_grad_() for name, p in network.named_parameters()}
    weights |= {n: t.double().requires_grad_() for n, t in opened_gains(network).items()}

    def ones(t: Tensor) -> Tensor:
        dtype = torch.float64 if t.is_floating_point() else t.dtype
        return torch.ones(t.shape, dtype=dtype, device=context.device)

    inputs = tree_map_only(Tensor, ones, context.graph.inputs)
    outputs = functional_call(network, tensors | weights, inputs)
    flow = sum(
        t.sum() for t in tree_iter(outputs) if isinstance(t, Tensor) and t.is_floating_point()
    )
    if not isinstance(flow, Tensor) or not flow.requires_grad or not flow.isfinite():
        raise ScoringError(
            f"criterion 'synflow': the sum of outputs for inputs of one is {flow}: score with "
            "'magnitude' or with data"
        )
    grads = torch.autograd.grad(
        flow, list(weights.values()), allow_unused=True, materialize_grads=True
    )
    return per_unit(
        context, ((n, (g * weights[n]).abs()) for n, g in zip(weights, grads, strict=True))
    )


@criterion("fisher")
def fisher(context: ScoringContext) -> Saliency:
    """½ mean_n (Σ a·∂L_n/∂a)²: a unit's squared effect on every sample's loss.

    a are the outputs of the convolutions and linear layers that produce the unit, summed over
    positions and, for a unit that several layers produce, over these layers inside the square;
    L_n is the loss of sample n, where the loss is a mean over samples.

    Args:
        context: a captured network (``torch.fx.GraphModule``), graph, batches, loss and options.

    Returns:
        Saliency, shape (units,), float64; 0 for a unit that no layer produces.

    Raises:
        ScoringError: no batch, or a loss or gradient that is not finite.

    Source: Theis et al., "Faster gaze prediction with dense networks and Fisher pruning", 2018;
    Liu et al., "Group Fisher Pruning", ICML 2021 (coupled channels share one mask).
    """
    _require_one_graph(context, "fisher")

    def score(k: int, w: Tensors) -> tuple[Saliency, Tensors]:
        effects = _Effects(context, k)
        g = gradients(context, k, w, note=effects.note)
        return effects.mean_square() / 2, g

    return on_own_weights(context, score, "fisher")


def _require_one_graph(context: ScoringContext, name: str) -> None:
    if context.graph.calls:
        raise ScoringError(
            f"criterion {name!r} follows what flows through one graph; "
            f"{type(context.network).__name__} was captured in parts: score with 'taylor', "
            "'latent-grad' or 'magnitude'"
        )


class _Effects:
    """Σ a·∂L/∂a of every sample and unit, gathered while the loss goes backward."""

    def __init__(self, context: ScoringContext, k: int) -> None:
        self._context, self._size = context, context.batches[k].size
        self._sums = np.zeros((self._size, context.graph.units))

    def note(self, node: Node, value: Any, rows: slice) -> Any:
        """Follow the outputs of a node that produces units."""
        dim = self._channel_dim(node)
        if dim is None or not value.requires_grad:
            return value
        channels = self._context.graph.values[node.name]
        units, samples = channels.vectors[dim], rows.stop - rows.start
        if value.shape[0] != channels.shape[0] * samples:
            raise ScoringError(
                f"criterion 'fisher' needs the samples in the first dimension; {node.name!r} has "
                f"shape {tuple(value.shape)} for {samples} of them: score with 'taylor'"
            )

        def add(a: Tensor, grad: Tensor) -> None:
            effects = (a * grad).movedim(dim, -1).reshape(samples, -1, len(units))
            sums = effects.sum(1, dtype=torch.float64).cpu().numpy()
            np.add.at(self._sums[rows].T, units, sums.T)

        return _Followed.apply(value, add)

    def mean_square(self) -> Saliency:
        """Mean over all samples of the squared effect on the sample's own loss, shape (units,)."""
        n = self._size / self._context.ranks.share(self._size)  # samples of all ranks
        sums = self._context.graph.gathered(self._sums)
        total: Saliency = np.square(n * sums).sum(0) / n
        self._context.ranks.sum_([torch.from_numpy(total)])
        return total

    def _channel_dim(self, node: Node) -> int | None:
        """The dimension of the output channels, if the node is a convolution or linear layer."""
        target: Any = node.target
        if node.op == "call_module":
            target = self._context.network.get_submodule(target)
        value = self._context.graph.values[node.name]
        if isinstance(target, nn.modules.conv._ConvNd) or target in _CONVOLUTIONS:
            dim = 1
        elif isinstance(target, nn.Linear) or target is nn.functional.linear:
            dim = len(value.shape) - 1
        else:
            return None
        return None if value.vectors[dim] is None else dim


class _Followed(torch.autograd.Function):
    """Identity that hands ``a`` and ∂L/∂a to ``add``.

    It saves ``a`` the way operators do, so that torch.utils.checkpoint can drop it meanwhile.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, add: Callable[[Tensor, Tensor], None]) -> Tensor:
        ctx.save_for_backward(a)
        ctx.add = add
        return a.clone()  # an operator in place may follow

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (a,) = ctx.saved_tensors
        ctx.add(a, grad)
        return grad, None
