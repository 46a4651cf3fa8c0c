"""The paper's criterion: gradients of the latent vectors of a hypernetwork.

One latent number z per channel unit. The weight of a layer with ``C_i`` inputs (per group),
``C_o`` outputs and ``K`` kernel positions is generated as

    W0 = z_in z_outᵀ + b0                       (C_i, C_o)
    W1 = W0[..., None] * w1 + b1                (C_i, C_o, E)
    W  = w2 @ W1[..., None] + b2                (C_i, C_o, K)

At initialisation the biases are zero, so, entry by entry,

    W[i, o, k] = z_in[i] · z_out[o] · A[i, o, k],    A[i, o, k] = Σ_e w2[i, o, k, e] · w1[i, o, e]

and by the chain rule, with G = ∂L/∂W,

    ∂L/∂z_out[o] = Σ_ik G·A·z_in[i]            ∂L/∂z_in[i] = Σ_ok G·A·z_out[o].

Therefore one ordinary backward pass with respect to W is enough; w1 and w2 (E times the size of
the network) are never held, and nothing is divided by a z that may be close to zero. Sharing
needs no plumbing: ``z_out`` is ``z[units of the output dimension]``, ``z_in`` likewise, and ∂L/∂z
of a unit is the sum over its occurrences, be they residual, concatenated, repeated or grouped.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lwdna.channels import Vector
from lwdna.errors import ScoringError
from lwdna.graph import ChannelGraph, WeightRole
from lwdna.scoring.context import ScoringContext, preserved
from lwdna.scoring.criteria import Saliency, criterion
from lwdna.scoring.loss import batch_loss

#: Embedding size E of the paper's code (the published ResNet50 command uses 2).
EMBEDDING = 8


@dataclass(frozen=True, eq=False)
class Latent:
    """The latent vector of one dimension of one weight.

    Attributes:
        dim: the weight's dimension.
        units: unit of each entry, shape (n,); ``None`` for a dimension without channels, whose
            latent vector is its own and belongs to no unit.
        z: values, shape (n,).
    """

    dim: int
    units: Vector
    z: Tensor


@dataclass(frozen=True, eq=False)
class Generated:
    """One generated weight ``W = z_in · z_out · A``.

    Attributes:
        name: the parameter it takes the place of.
        gain: A, in the weight's own layout.
        z_out: latent vector of the output channels.
        z_in: latent vector of the input channels (per group).
        dtype: of the parameter.
    """

    name: str
    gain: Tensor
    z_out: Latent
    z_in: Latent
    dtype: torch.dtype

    def weight(self) -> Tensor:
        """W as a new leaf that requires a gradient, in the parameter's layout and dtype."""
        w = self.gain * _along(self.z_out, self.gain.dim()) * _along(self.z_in, self.gain.dim())
        return w.to(self.dtype).requires_grad_()

    def latent_grads(self, grad: Tensor) -> list[tuple[Latent, Tensor]]:
        """∂L/∂z of both latent vectors, from G = ∂L/∂W in the weight's layout."""
        ga = (grad.to(self.gain.dtype) * self.gain).movedim((self.z_in.dim, self.z_out.dim), (0, 1))
        ga_IO = ga.reshape(*ga.shape[:2], -1).sum(-1)
        return [(self.z_out, self.z_in.z @ ga_IO), (self.z_in, ga_IO @ self.z_out.z)]


def generate(context: ScoringContext, *, embedding: int = EMBEDDING) -> list[Generated]:
    """Draw a hypernetwork and generate every convolution's and linear layer's weight.

    The classifier, biases and norms stay ordinary parameters.

    Args:
        context: network and graph; drawn on the network's device from the context's seed.
        embedding: embedding size E.

    Returns:
        The generated weights, in the order of the parameters. Var W = 1 / (C_i K).

    Raises:
        ValueError: ``embedding`` is below 1.

    Source: METHOD §1; Li et al., "DHP", ECCV 2020, and Chang et al., "Principled Weight
        Initialization for Hypernetworks", ICLR 2020 (Hyperfan-in).
    """
    if embedding < 1:
        raise ValueError(f"embedding={embedding}: the embedding size must be at least 1")
    graph = context.graph
    generator = context.generator(context.device)
    dtype = torch.promote_types(torch.float32, _dtype(context))
    z = torch.randn(graph.units, generator=generator, device=context.device, dtype=dtype)

    def latent(units: Vector, dim: int, n: int) -> Latent:
        if units is None:
            own = torch.randn(n, generator=generator, device=z.device, dtype=z.dtype)
            return Latent(dim, None, own)
        return Latent(dim, units, z[torch.as_tensor(units, device=z.device)])

    result = []
    for name, p in context.network.named_parameters():
        role = graph.roles.get(name)
        if role is None or role.classifier:
            continue
        vectors = graph.tensors[name]
        z_out = latent(vectors[role.out_dim], role.out_dim, p.shape[role.out_dim])
        z_in = latent(vectors[role.in_dim], role.in_dim, p.shape[role.in_dim])
        gain = _gain(p.shape, role, embedding, generator, dtype)
        result.append(Generated(name, gain, z_out, z_in, p.dtype))
    return result


def embeddings(
    shape: torch.Size,
    role: WeightRole,
    embedding: int,
    generator: torch.Generator,
    dtype: torch.dtype = torch.float32,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Draw w1 and w2 of one weight, one component e of the embedding at a time.

    Args:
        shape: shape of the weight.
        role: which of its dimensions are C_o and C_i.
        embedding: number of components E.
        generator: source of the draws; they are made on its device.
        dtype: of the draws.

    Yields:
        w1[..., e] of shape (C_i, C_o) from U(±√3), and w2[..., e] of shape (C_i, C_o) +
        kernel dimensions from U(±√(3 / (E C_i K))).
    """
    c_i, c_o = shape[role.in_dim], shape[role.out_dim]
    rest = [n for d, n in enumerate(shape) if d not in (role.in_dim, role.out_dim)]
    bound = sqrt(3 / (embedding * c_i * role.kernel))
    for _ in range(embedding):
        w1 = torch.empty(c_i, c_o, device=generator.device, dtype=dtype)
        w2 = torch.empty(c_i, c_o, *rest, device=generator.device, dtype=dtype)
        w1.uniform_(-sqrt(3), sqrt(3), generator=generator)
        yield w1, w2.uniform_(-bound, bound, generator=generator)


def _gain(
    shape: torch.Size,
    role: WeightRole,
    embedding: int,
    generator: torch.Generator,
    dtype: torch.dtype,
) -> Tensor:
    """A = Σ_e w2 · w1, in the layout of the weight."""
    total: Tensor | None = None
    for w1, w2 in embeddings(shape, role, embedding, generator, dtype):
        w2 *= w1.reshape(*w1.shape, *[1] * (w2.dim() - 2))
        total = w2 if total is None else total.add_(w2)
    assert total is not None
    return total.movedim((0, 1), (role.in_dim, role.out_dim)).contiguous()


def _along(latent: Latent, dims: int) -> Tensor:
    shape = [1] * dims
    shape[latent.dim] = -1
    return latent.z.reshape(shape)


def _dtype(context: ScoringContext) -> torch.dtype:
    floating = [p.dtype for p in context.network.parameters() if p.is_floating_point()]
    return max(floating, key=lambda d: torch.finfo(d).bits) if floating else torch.float32


@criterion("latent-grad")
def latent_grad(
    context: ScoringContext, *, normalize: bool = True, embedding: int = EMBEDDING
) -> Saliency:
    """|∂L/∂z| of the hypernetwork's latent vectors, averaged over the batches before the modulus.

    The network runs in training mode (batch norms use the batch) with generated weights in place
    of its own; its parameters, buffers, gradients and mode are untouched. Gains that are zero
    everywhere (``zero_init_residual``, ReZero) count as one: they would keep every gradient out
    of their branch.

    Args:
        context: network, graph, batches and loss.
        normalize: divide each group's saliencies by the group's largest (the paper's
            grad_normalize): without it early layers win all channels.
        embedding: embedding size E of the hypernetwork.

    Returns:
        Saliency, shape (units,), float64. A unit that occurs in no generated weight (a position
        table's or a norm's alone, say) scores 0.

    Raises:
        ScoringError: no batch, no weight to generate, a loss that is not finite or does not
            depend on the weights, or a gradient that is not finite.

    Warns:
        UserWarning: no gradient reaches some prunable groups; they will shrink to their floors.

    Source: METHOD §2; Li et al., CVPR 2021.
    """
    if not context.batches:
        raise ScoringError(
            "criterion 'latent-grad' needs at least one batch: pass data, or score with "
            "'magnitude', 'random' or 'uniform'"
        )
    with preserved(context.network, context.seed):
        context.network.train()
        weights = generate(context, embedding=embedding)
        if not weights:
            raise ScoringError(
                "the network has no convolution or linear weight besides the classifier, so there "
                "is nothing to generate: score with 'magnitude', 'random' or 'uniform'"
            )
        gains = _opened_gains(context)
        grads = np.zeros(context.graph.units)
        numbers = range(len(context.batches))
        for k in tqdm(numbers, desc="scoring batches", delay=1, disable=None, leave=False):
            grads += _batch_grads(context, weights, gains, k)
    result: Saliency = np.abs(grads / len(context.batches))
    _warn_unreached(context.graph, result)
    return _per_group(context.graph, result) if normalize else result


def _opened_gains(context: ScoringContext) -> dict[str, Tensor]:
    """Ones for the scalar or per-channel parameters, other than biases, that are all zero."""
    return {
        name: torch.ones_like(p)
        for name, p in context.network.named_parameters()
        if p.dim() <= 1 and not _is_bias(name) and not p.detach().any()
    }


def _is_bias(name: str) -> bool:
    last = name.rpartition(".")[2]
    return "bias" in last or "beta" in last


def _batch_grads(
    context: ScoringContext, weights: list[Generated], gains: dict[str, Tensor], k: int
) -> Saliency:
    """∂L/∂z of one batch, shape (units,)."""
    tensors = {generated.name: generated.weight() for generated in weights}
    loss = batch_loss(context, k, tensors | gains)
    grads = torch.autograd.grad(loss, list(tensors.values()), allow_unused=True)
    if all(grad is None for grad in grads):
        raise ScoringError(
            f"the loss of batch {k} depends on no convolution or linear weight: compute it from "
            "the network's outputs"
        )
    result = np.zeros(context.graph.units)
    for generated, grad in zip(weights, grads, strict=True):
        if grad is None:
            continue
        for latent, dz in generated.latent_grads(grad):
            if not dz.isfinite().all():
                raise ScoringError(
                    f"the gradient of {generated.name!r} is NaN or infinite on batch {k}: check "
                    "the scale of the inputs, or score in float32"
                )
            if latent.units is not None:
                # On the CPU: a sum in a fixed order is the same in every run.
                np.add.at(result, latent.units, dz.double().cpu().numpy())
    return result


def _warn_unreached(graph: ChannelGraph, saliency: Saliency) -> None:
    names = [g.name for g in graph.groups if g.prunable and not saliency[g.units].any()]
    if names:
        more = ", ..." if len(names) > 5 else ""
        warnings.warn(
            f"no gradient reaches {len(names)} of the channel groups ({', '.join(names[:5])}"
            f"{more}); a budget will shrink them to their floors. Score with 'magnitude', "
            "'random' or 'uniform' if that is not meant",
            stacklevel=3,
        )


def _per_group(graph: ChannelGraph, saliency: Saliency) -> Saliency:
    """Each group divided by its largest saliency; a group of zeros stays."""
    most = np.zeros(len(graph.groups))
    np.maximum.at(most, graph.group_of, saliency)
    result: Saliency = saliency / np.where(most > 0, most, 1.0)[graph.group_of]
    return result
