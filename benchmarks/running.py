"""A network in one way to run it: precision, memory format, compiled or not."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lwdna.fx_passes.timing import time_nodes

DTYPES = ("fp32", "bf16")


@dataclass(frozen=True)
class Mode:
    """A way to run a network.

    Attributes:
        dtype: ``"fp32"``, or ``"bf16"`` for autocast.
        channels_last: memory format of images and weights.
        compiled: whether ``torch.compile`` takes the network first.
    """

    dtype: str
    channels_last: bool
    compiled: bool

    def __str__(self) -> str:
        layout = "channels_last" if self.channels_last else "contiguous"
        return f"{self.dtype}, {layout}, {'compiled' if self.compiled else 'eager'}"


class Runner:
    """One network in one mode: a forward pass of some images, and a training step.

    Args:
        network: is copied.
        mode: how to run it.
        images: shape (batch, C, H, W).
    """

    def __init__(self, network: nn.Module, mode: Mode, images: Tensor) -> None:
        layout = torch.channels_last if mode.channels_last else torch.contiguous_format
        self.network = copy.deepcopy(network).to(images.device, memory_format=layout)
        self.images = images.to(memory_format=layout)
        self._run = torch.compile(self.network) if mode.compiled else self.network
        self._cast = partial(
            torch.autocast, images.device.type, torch.bfloat16, enabled=mode.dtype == "bf16"
        )
        self._optimizer = torch.optim.SGD(self.network.parameters(), lr=1e-3, momentum=0.9)
        self._targets = torch.zeros(len(images), dtype=torch.int64, device=images.device)

    def forward(self, number: int) -> Callable[[], None]:
        """A forward pass of the first images without gradients, in evaluation mode."""
        images = self.images[:number]

        def run() -> None:
            with self.evaluating():
                self._run(images)

        return run

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Evaluation mode, no gradients, and the mode's precision."""
        self.network.eval()
        with torch.inference_mode(), self._cast():
            yield

    def train(self) -> None:
        """Forward, backward and a step of SGD with momentum."""
        self.network.train()
        self._optimizer.zero_grad()
        with self._cast():
            loss = F.cross_entropy(self._run(self.images).float(), self._targets)
        loss.backward()
        self._optimizer.step()


_PRODUCTS = (nn.modules.conv._ConvNd, nn.Linear)
_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)


def kinds(runner: Runner) -> dict[str, float]:
    """Seconds of a batch by kind of operator, one after the other as the graph names them."""
    network = runner.network
    assert isinstance(network, torch.fx.GraphModule)
    found = dict.fromkeys(("products", "norms", "other"), 0.0)
    with runner.evaluating():
        seconds = time_nodes(network, (runner.images,), 3)
    for node in network.graph.nodes:
        module = network.get_submodule(node.target) if node.op == "call_module" else None
        product = isinstance(module, _PRODUCTS) or node.target in (F.conv2d, F.linear)
        kind = "products" if product else "norms" if isinstance(module, _NORMS) else "other"
        found[kind] += seconds[node.name]
    return {kind: round(s, 6) for kind, s in found.items()}
