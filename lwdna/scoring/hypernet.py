"""The paper's hypernetwork: latent vectors that generate every convolution and linear weight.

For a weight with C_i inputs (per group), C_o outputs and K kernel positions:

    W0 = z_in z_outᵀ + b0                                (C_i, C_o)
    W1[e] = W0 · w1[e] + b1[e]                           (C_i, C_o, E)
    W = Σ_e w2[e] · W1[e] + b2                           (C_i, C_o, K)

with z ~ N(0, 1), w1 ~ U(±√3), w2 ~ U(±√(3 / (E C_i K))) ("Hyperfan-in") and biases of zero. In W,
z enters only through W0, so that

    W = A · W0 + B,    A = Σ_e w2[e] · w1[e],    B = Σ_e w2[e] · b1[e] + b2,
    ∂L/∂z_out = z_in · Σ_K (G A),    ∂L/∂z_in = Σ_K (G A) · z_out,    with G = ∂L/∂W.

No hypernetwork has to be run, or differentiated through, layer by layer; and as long as it is not
trained, A is all of it that has to be kept. A latent vector is shared by looking up one z per
channel unit, so ∂L/∂z of a unit is the sum over its occurrences, be they residual, concatenated,
repeated or grouped.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lwdna.channels import Vector
from lwdna.scoring.context import ScoringContext
from lwdna.scoring.criteria import Saliency
from lwdna.scoring.embedding import Embedding, draws, gain
from lwdna.scoring.gradients import check_gradient
from lwdna.scoring.options import SGD

#: Embedding size E of the paper's code (the published ResNet50 command uses 2).
EMBEDDING = 8


@dataclass(frozen=True, eq=False)
class Latent:
    """The latent vector of one dimension of one weight.

    Attributes:
        dim: the weight's dimension.
        units: unit of each entry, shape (n,); ``None`` for a dimension without channels.
        z: where the values are: the hypernetwork's z of all units, or, for a dimension without
            channels, a latent vector of its own, shape (n,).
    """

    dim: int
    units: Vector
    z: Tensor

    def values(self) -> Tensor:
        """The latent vector, shape (n,)."""
        if self.units is None:
            return self.z
        return self.z[torch.as_tensor(self.units, device=self.z.device)]


@dataclass(frozen=True, eq=False)
class Layer:
    """The part of a hypernetwork that generates one weight.

    Attributes:
        name: the parameter it takes the place of.
        z_out: latent vector of the output channels.
        z_in: latent vector of the input channels (per group).
        made: A, in the weight's shape; or, to be trained, w1, w2 and the biases behind it.
        dtype: of the parameter.
    """

    name: str
    z_out: Latent
    z_in: Latent
    made: Tensor | Embedding
    dtype: torch.dtype

    def weight(self) -> Tensor:
        """W as a new leaf that requires a gradient, in the parameter's layout and dtype."""
        if isinstance(self.made, Embedding):
            w = self.made.weight(torch.outer(*self._latents()))
        else:
            first, second = self._latents()
            # As a matrix: entries one after the other go through the kernel positions.
            w = self.made.flatten(1) * _per_entry(second, self.made)
            w = w.mul_(first[:, None]).view_as(self.made)
        return w.to(self.dtype).requires_grad_()

    def latent_gradients(self, grad: Tensor) -> list[tuple[Latent, Tensor]]:
        """∂L/∂z of both latent vectors, from G = ∂L/∂W in the weight's layout."""
        a = self.made.gain() if isinstance(self.made, Embedding) else self.made
        ga = (grad.to(a.dtype) * a).flatten(1)
        first, second = self._latents()
        by_dim = (ga @ _per_entry(second, a), (first @ ga).view(len(second), -1).sum(1))
        return [(latent, by_dim[latent.dim]) for latent in (self.z_out, self.z_in)]

    def step(self, grad: Tensor) -> None:
        """Train w1, w2 and the biases on G = ∂L/∂W, at the present latent vectors."""
        if isinstance(self.made, Embedding):
            self.made.step(grad.to(self.z_out.z.dtype), torch.outer(*self._latents()))

    def _latents(self) -> tuple[Tensor, Tensor]:
        """The latent vectors of the weight's first and second dimension."""
        first, second = sorted((self.z_out, self.z_in), key=lambda latent: latent.dim)
        assert (first.dim, second.dim) == (0, 1), "the first two dimensions are the channels'"
        return first.values(), second.values()


def _per_entry(second: Tensor, weight: Tensor) -> Tensor:
    """``second``, of the second dimension, for every entry of a row of the weight."""
    return second.repeat_interleave(weight[0, 0].numel())


class Hypernet:
    """Latent vectors, and the layers that generate weights from them.

    It is drawn on the network's device from the context's seed: z of all units first, then layer
    by layer in the order of the parameters. The classifier, biases and norms are not generated.

    Args:
        context: network and graph.
        embedding: embedding size E, at least 1.
        sgd: settings to train it with; ``None`` keeps no more than is needed without.

    Attributes:
        z: latent values of the units, shape (units,).
        layers: one per generated weight.

    Raises:
        ValueError: ``embedding`` is below 1.

    Source: Li et al., "DHP", ECCV 2020; released code
    (https://github.com/ofsoundof/dhp, conv_dhp of classification/model_dhp/dhp_base.py).
    """

    def __init__(
        self, context: ScoringContext, *, embedding: int = EMBEDDING, sgd: SGD | None = None
    ) -> None:
        if embedding < 1:
            raise ValueError(f"embedding={embedding}: the embedding size must be at least 1")
        graph = context.graph
        generator = context.generator(context.device)
        dtype = torch.promote_types(torch.float32, _dtype(context))

        def normal(n: int) -> Tensor:
            return torch.randn(n, generator=generator, device=generator.device, dtype=dtype)

        self.z = normal(graph.units)
        self.layers: list[Layer] = []
        for name, p in context.network.named_parameters():
            role = graph.roles.get(name)
            if role is None or role.classifier:
                continue
            z_out, z_in = (
                Latent(d, graph.tensors[name][d], self.z)
                if graph.tensors[name][d] is not None
                else Latent(d, None, normal(p.shape[d]))
                for d in (role.out_dim, role.in_dim)
            )
            inputs = graph.inputs_per_group(role, p.shape)
            pairs = draws(p.shape, role, inputs, embedding, generator, dtype)
            made = gain(pairs) if sgd is None else Embedding(pairs, sgd)
            self.layers.append(Layer(name, z_out, z_in, made, p.dtype))
        own = [z.z for layer in self.layers for z in (layer.z_out, layer.z_in) if z.units is None]
        self._optimizer = None if sgd is None else sgd.optimizer([self.z, *own])
        self._pending: dict[str, list[tuple[Latent, Tensor]]] = {}

    def weights(self) -> dict[str, Tensor]:
        """Parameter name -> generated weight, a leaf with a gradient; Var W = 1 / (C_i K)."""
        return {layer.name: layer.weight() for layer in self.layers}

    def absorb(self, layer: Layer, grad: Tensor, k: int) -> None:
        """Take in G = ∂L/∂W of one weight in batch ``k``: keep its ∂L/∂z, train its embedding.

        Raises:
            ScoringError: a gradient is NaN or infinite.
        """
        found = layer.latent_gradients(grad)
        for _, dz in found:
            check_gradient(layer.name, dz, k)
        self._pending[layer.name] = found
        layer.step(grad)

    def finish(self) -> Saliency:
        """Train z on what was absorbed since the last call.

        Returns:
            ∂L/∂z, shape (units,), float64.
        """
        result = np.zeros(len(self.z))
        own: list[tuple[Tensor, Tensor]] = []
        for layer in self.layers:  # in a fixed order, so that every run sums alike
            for latent, dz in self._pending.pop(layer.name, ()):
                if latent.units is None:
                    own.append((latent.z, dz))
                else:
                    np.add.at(result, latent.units, dz.double().cpu().numpy())
        if self._optimizer is not None:
            for z, dz in (*own, (self.z, torch.from_numpy(result))):
                z.grad = dz.to(z)
            self._optimizer.step()
            self._optimizer.zero_grad()
        return result


def _dtype(context: ScoringContext) -> torch.dtype:
    floating = [p.dtype for p in context.network.parameters() if p.is_floating_point()]
    return max(floating, key=lambda d: torch.finfo(d).bits) if floating else torch.float32
