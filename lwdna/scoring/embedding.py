"""w1, w2 and the biases of a hypernetwork's layer: how they are drawn, and how they are trained."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod, sqrt

import torch
from torch import Tensor

from lwdna.scoring.options import SGD
from lwdna.tensor_channels import WeightRole


def draws(
    shape: torch.Size,
    role: WeightRole,
    inputs: int,
    size: int,
    generator: torch.Generator,
    dtype: torch.dtype = torch.float32,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Draw w1 and w2 of one weight, one component e of the embedding at a time.

    Args:
        shape: shape of the weight.
        role: which of its dimensions are those of outputs and inputs.
        inputs: C_i, of one group.
        size: number of components E.
        generator: source of the draws; they are made on its device.
        dtype: of the draws.

    Yields:
        w1[..., e] from U(±√3), of the shape of the weight's first two dimensions (those of inputs
        and outputs, in the weight's order), and w2[..., e] from U(±√(3 / (E C_i K))), of the
        weight's shape.

    Source: Li et al., "DHP", ECCV 2020; Chang et al., "Principled Weight Initialization
    for Hypernetworks", ICLR 2020 (Hyperfan-in).
    """
    bound = sqrt(3 / (size * inputs * role.kernel))
    for _ in range(size):
        w1 = _uniform(shape[:2], sqrt(3), generator, dtype)
        yield w1, _uniform(shape, bound, generator, dtype)


def _uniform(
    shape: tuple[int, ...], bound: float, generator: torch.Generator, dtype: torch.dtype
) -> Tensor:
    """U(±bound), in 2¹⁶ steps: four numbers out of one draw, which is what takes the time."""
    n = prod(shape)
    bits = torch.empty(-(-n // 4), dtype=torch.int64, device=generator.device)
    bits.random_(-(2**63), None, generator=generator)
    drawn = torch.empty(shape, dtype=dtype, device=generator.device)
    drawn.view(-1).copy_(bits.view(torch.int16)[:n])
    return drawn.add_(0.5).mul_(bound / 2**15)


def gain(pairs: Iterator[tuple[Tensor, Tensor]]) -> Tensor:
    """A = Σ_e w2 · w1, in the weight's shape; the pairs are used up on the way."""
    w1, w2 = next(pairs)
    total = w2 * along_kernel(w1, w2)
    for w1, w2 in pairs:
        total.addcmul_(w2, along_kernel(w1, w2))
    return total


def along_kernel(w: Tensor, like: Tensor) -> Tensor:
    """``w``, of the first two dimensions, with kernel dimensions of size 1 to go with ``like``."""
    return w.reshape(*w.shape, *[1] * (like.dim() - 2))


class Embedding:
    """The trainable part of one layer: E components of w1, w2 and b1, and b0 and b2.

    Args:
        pairs: w1 and w2 of every component (:func:`draws`).
        sgd: the optimiser's settings.
    """

    def __init__(self, pairs: Iterator[tuple[Tensor, Tensor]], sgd: SGD) -> None:
        w1, w2 = zip(*pairs, strict=True)
        self.w1, self.w2 = list(w1), list(w2)
        self.b1 = [torch.zeros_like(w) for w in w1]
        self.b0, self.b2 = torch.zeros_like(w1[0]), torch.zeros_like(w2[0])
        self._optimizer = sgd.optimizer([*self.w1, *self.w2, *self.b1, self.b0, self.b2])

    def gain(self) -> Tensor:
        """A = Σ_e w2 · w1, in the weight's shape."""
        return gain(zip(self.w1, self.w2, strict=True))

    def weight(self, outer: Tensor) -> Tensor:
        """W, for the outer product of the latent vectors (in the weight's order)."""
        w0 = outer + self.b0
        w = self.b2.clone()
        for w1, w2, b1 in zip(self.w1, self.w2, self.b1, strict=True):
            w.addcmul_(w2, along_kernel(torch.addcmul(b1, w0, w1), w2))
        return w

    def step(self, g: Tensor, outer: Tensor) -> None:
        """One SGD step, for G = ∂L/∂W."""
        w0 = outer + self.b0
        self.b0.grad = torch.zeros_like(w0)
        self.b2.grad = g
        for w1, w2, b1 in zip(self.w1, self.w2, self.b1, strict=True):
            d_w1 = (g * w2).flatten(2).sum(2) if g.dim() > 2 else g * w2  # ∂L/∂W1[e]
            self.b0.grad.addcmul_(d_w1, w1)
            w2.grad = g * along_kernel(torch.addcmul(b1, w0, w1), g)
            w1.grad, b1.grad = d_w1 * w0, d_w1
        self._optimizer.step()
        self._optimizer.zero_grad()
