"""What a criterion is given, and the promise that scoring leaves the network as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lwdna.errors import ScoringError
from lwdna.graph import ChannelGraph
from lwdna.scoring.batches import Batch, StepFn
from lwdna.scoring.options import Scoring
from lwdna.scoring.ranks import Ranks

LossFn = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class ScoringContext:
    """All that a criterion may look at.

    Attributes:
        network: the (widened) network whose channels are scored. A criterion may run it, but must
            leave it as it was.
        graph: the channel graph of this very network.
        batches: on the network's device; see :func:`lwdna.scoring.as_batches`. May be empty for
            criteria that need no data.
        loss_fn: ``loss_fn(outputs, targets)`` -> scalar tensor. ``None``: cross entropy on logits.
        seed: of everything random; the same seed gives the same scores on the same device.
        step_fn: ``step_fn(model, batch)`` -> scalar tensor, in place of ``loss_fn``.
        options: how a criterion goes through the batches.
        ranks: the processes that score together, each on its own batches.
        finished: what a criterion leaves for those who want more of its work than the scores,
            by a key of its own; the same whenever it is worked out again.
    """

    network: nn.Module
    graph: ChannelGraph
    batches: Sequence[Batch] = ()
    loss_fn: LossFn | None = None
    seed: int = 0
    step_fn: StepFn | None = None
    options: Scoring = field(default_factory=Scoring)
    ranks: Ranks = field(default_factory=Ranks.current)
    #: Not an argument, so that dataclasses.replace gives another context a dict of its own.
    finished: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def device(self) -> torch.device:
        """Device of the network's parameters; the CPU if it has none."""
        p = next(self.network.parameters(), None)
        return torch.device("cpu") if p is None else p.device

    def generator(self, device: torch.device | str = "cpu") -> torch.Generator:
        """A new generator on ``device``, seeded with ``seed``."""
        return torch.Generator(device).manual_seed(self.seed)


@contextmanager
def preserved(network: nn.Module, seed: int) -> Iterator[None]:
    """Leave the network and torch's random state as they were, whatever happens inside.

    Modes, ``requires_grad`` flags, gradients and buffers are put back. Parameters are too many to
    keep a copy of: a change of one is an error.

    Args:
        network: any module.
        seed: torch's random state inside starts from it, so that dropout is reproducible.

    Raises:
        ScoringError: a parameter was changed; names it.
    """
    modes = [(module, module.training) for module in network.modules()]
    parameters = dict(network.named_parameters())
    states = [(p, p.requires_grad, p.grad) for p in parameters.values()]
    for p in parameters.values():
        p.grad = None  # a backward pass would add to it in place
    prints = {name: _fingerprint(p) for name, p in parameters.items()}
    buffers = [
        (module, name, buffer, buffer.detach().clone())
        for module in network.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    cuda = sorted({p.device.index for p in parameters.values() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=cuda):
        # torch.manual_seed would also seed the devices that are not restored.
        for generator in (
            torch.default_generator,
            *(torch.cuda.default_generators[i] for i in cuda),
        ):
            generator.manual_seed(seed)
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training
            for p, requires_grad, grad in states:
                p.requires_grad_(requires_grad)
                p.grad = grad
            with torch.no_grad():
                for module, name, buffer, value in buffers:
                    setattr(module, name, buffer.copy_(value))
    after = dict(network.named_parameters())
    for name, p in parameters.items():
        if after.get(name) is not p or _fingerprint(p) != prints[name]:
            raise ScoringError(
                f"the criterion changed parameter {name!r}: let it work on a copy "
                "(torch.func.functional_call, copy.deepcopy)"
            )


def _fingerprint(p: Tensor) -> tuple[int, int]:
    """Address and sum of the bit patterns: changes made behind autograd's back show, too."""
    bits = p.detach().view(_SAME_SIZE[p.element_size()])
    return p.data_ptr(), int(bits.sum(dtype=torch.int64))


_SAME_SIZE = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
