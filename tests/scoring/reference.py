"""The published hypernetwork by autograd and torch.optim.SGD: what ``Hypernet`` must equal."""

from __future__ import annotations

from math import prod, sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from lwdna.scoring import Batch, ScoringContext

LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


class Reference:
    """Latents, w1, w2 and biases in full; every weight but the classifier's is generated.

    Draws are made in the order that ``Hypernet`` documents. Gains that are zero are ones.
    """

    def __init__(self, context: ScoringContext, E: int, **sgd: float) -> None:
        self.network, self.graph = context.network.train(), context.graph
        self.g = context.generator()
        self.z = self.normal(self.graph.units)
        self.layers: dict[str, tuple[Tensor | None, Tensor | None, list[Tensor]]] = {}
        self.ordinary: dict[str, Tensor] = {}
        self.ones: dict[str, Tensor] = {}
        for name, p in self.network.named_parameters():
            module = self.network.get_submodule(name.rpartition(".")[0])
            if isinstance(module, LAYERS) and p.dim() > 1 and name != "fc.weight":
                self.layers[name] = self.layer(name, E)
            elif name.endswith("weight") and not p.any():
                self.ones[name] = torch.ones_like(p)
            else:
                self.ordinary[name] = p.detach().clone().requires_grad_()
        own = [z for a, b, _ in self.layers.values() for z in (a, b) if z is not None]
        hyper = [t for *_, trained in self.layers.values() for t in trained]
        settings = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4} | sgd
        self.optimizer = torch.optim.SGD(
            [self.z, *own, *hyper, *self.ordinary.values()], **settings
        )

    def normal(self, n: int) -> Tensor:
        return torch.randn(n, generator=self.g, dtype=torch.float64).requires_grad_()

    def uniform(self, *shape: int, bound: float) -> Tensor:
        # The numbers that lwdna draws: 16 bits each, four to a 64-bit draw.
        n = prod(shape)
        bits = torch.empty(-(-n // 4), dtype=torch.int64).random_(-(2**63), None, generator=self.g)
        steps = bits.view(torch.int16)[:n].double().reshape(shape)
        return (steps + 0.5) / 2**15 * bound

    def dims(self, name: str) -> tuple[int, int]:
        """Dimensions of the output and of the input channels."""
        module = self.network.get_submodule(name.rpartition(".")[0])
        return (1, 0) if isinstance(module, nn.ConvTranspose2d) else (0, 1)

    def layer(self, name: str, E: int) -> tuple[Tensor | None, Tensor | None, list[Tensor]]:
        """Latent vectors of the dimensions without channels, and w1, w2, b0, b1, b2."""
        p, units, (out, inp) = (
            self.network.get_parameter(name),
            self.graph.tensors[name],
            self.dims(name),
        )
        own = [self.normal(p.shape[d]) if units[d] is None else None for d in (out, inp)]
        c_i, c_o, K = p.shape[inp], p.shape[out], p[0, 0].numel()
        module = self.network.get_submodule(name.rpartition(".")[0])
        fan = c_i // module.groups if out else c_i  # a transposed weight has all groups' inputs
        w1, w2 = [], []
        for _ in range(E):
            # Drawn in the weight's order, written in the published one.
            drawn = self.uniform(*p.shape[:2], bound=sqrt(3))
            w1.append(drawn if out else drawn.T)
            drawn = self.uniform(*p.shape[:2], K, bound=sqrt(3 / (E * fan * K)))
            w2.append(drawn if out else drawn.transpose(0, 1))
        shapes = (c_i, c_o), (c_i, c_o, E), (c_i, c_o, K)
        biases = [torch.zeros(shape, dtype=torch.float64) for shape in shapes]
        trained = [torch.stack(w1, -1), torch.stack(w2, -1), *biases]
        return own[0], own[1], [t.requires_grad_() for t in trained]

    def weights(self) -> dict[str, Tensor]:
        result = {}
        for name, (own_out, own_in, (w1, w2, b0, b1, b2)) in self.layers.items():
            shape = self.network.get_parameter(name).shape
            out, inp = self.dims(name)
            units = self.graph.tensors[name]
            z_out = self.z[units[out]] if own_out is None else own_out
            z_in = self.z[units[inp]] if own_in is None else own_in
            W0 = z_in[:, None] @ z_out[None] + b0
            W1 = W0[..., None] * w1 + b1
            W = (w2 @ W1[..., None]).squeeze(-1) + b2  # (C_i, C_o, K)
            W = W.reshape(*W.shape[:2], *shape[2:])
            result[name] = W if out else W.transpose(0, 1)
        return result

    def step(self, batch: Batch) -> Tensor:
        """∂L/∂z of the batch; one step of SGD on everything follows."""
        self.optimizer.zero_grad()
        tensors = self.weights() | self.ordinary | self.ones
        tensors |= {name: b.clone() for name, b in self.network.named_buffers()}
        outputs = functional_call(self.network, tensors, batch.inputs)
        F.cross_entropy(outputs, batch.targets).backward()
        grad = self.z.grad.clone()
        self.optimizer.step()
        return grad
