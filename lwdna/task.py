"""The task that channels are scored on: batches and a loss, from whatever the caller has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lwdna.errors import ScoringError
from lwdna.fx_passes.module import detached_copy, meta_twin, to_meta
from lwdna.graph import ChannelGraph
from lwdna.inputs import as_arguments, default_inputs
from lwdna.scoring import (
    Batch,
    LossFn,
    Scoring,
    ScoringContext,
    StepFn,
    as_batches,
    synthetic,
    take,
)

_SYNTHETIC_BATCH = 8


@dataclass(frozen=True, eq=False)
class Task:
    """Batches as the data gave them, and how their loss is computed.

    Attributes:
        raw: the batches; ``None`` where there is no data.
        loss_fn: ``loss_fn(outputs, targets)`` -> loss, or ``None`` for cross entropy.
        step_fn: ``step_fn(model, batch)`` -> loss, in place of ``loss_fn``.
        options: how the batches are gone through.
    """

    raw: Sequence[Any] | None
    loss_fn: LossFn | None
    step_fn: StepFn | None
    options: Scoring

    @classmethod
    def of(
        cls, data: Any, loss_fn: LossFn | None, step_fn: StepFn | None, options: Scoring | None
    ) -> Task:
        """Take the batches out of ``data``.

        Raises:
            TypeError: an argument of another kind.
            ValueError: both ``loss_fn`` and ``step_fn``, or ``step_fn`` without data.
            ScoringError: ``data`` holds no batch.
        """
        options = Scoring() if options is None else options
        if not isinstance(options, Scoring):
            raise TypeError(
                f"scoring is a {type(options).__name__}: pass lwdna.Scoring(batches=...)"
            )
        for name, function in (("loss_fn", loss_fn), ("step_fn", step_fn)):
            if function is not None and not callable(function):
                raise TypeError(f"{name} is a {type(function).__name__}: pass a function")
        if loss_fn is not None and step_fn is not None:
            raise ValueError("both loss_fn and step_fn: step_fn(model, batch) computes the loss")
        if step_fn is not None and data is None:
            raise ValueError("step_fn without data: pass the batches that it takes")
        return cls(None if data is None else take(data, options.batches), loss_fn, step_fn, options)

    def inputs(self, model: nn.Module, example_inputs: Any) -> tuple[Any, ...]:
        """The arguments of ``forward`` to trace and count costs on, checked against the model.

        Args:
            model: the caller's model.
            example_inputs: the caller's; otherwise the first batch's, or an image that fits.

        Raises:
            ScoringError: the batches are no batches, or the model does not take them.
        """
        if example_inputs is not None:
            inputs = as_arguments(model, example_inputs)
        elif self.raw is None:
            return as_arguments(model, default_inputs(model))
        else:
            inputs = self.batches(model)[0].inputs
        e = _refusal(meta_twin(model), to_meta(inputs))
        if e is not None and "meta" not in str(e).lower():
            e = _refusal(detached_copy(model), inputs)  # on values: detectors fail without
        if e is not None and "meta" not in str(e).lower():  # else the capture's to explain
            shapes = [tuple(t.shape) for t in tree_leaves(inputs) if isinstance(t, Tensor)]
            raise ScoringError(
                f"the model does not take a batch of shape {', '.join(map(str, shapes))}: "
                f"{type(e).__name__}: {e}. Inputs of another form go into example_inputs"
            ) from e
        return inputs

    def batches(self, network: nn.Module) -> list[Batch]:
        """The batches on the network's device and in its dtype."""
        assert self.raw is not None
        return as_batches(iter(self.raw), len(self.raw), network=network, step_fn=self.step_fn)

    def context(
        self,
        wide: nn.Module,
        graph: ChannelGraph,
        device: torch.device | str | None,
        seed: int,
    ) -> ScoringContext:
        """What a criterion is given: the network on the scoring device, and its batches there."""
        own = next(wide.parameters()).device
        if device is None:
            device = "cuda" if own.type == "cpu" and torch.cuda.is_available() else own
        network = wide if torch.device(device) == own else detached_copy(wide).to(device)
        batches: Sequence[Batch]
        if self.raw is None:
            batches = _Noise(lambda: as_batches(_noise(network, graph, seed), 1, network=network))
        else:
            batches = self.batches(network)
        return ScoringContext(
            network, graph, batches, self.loss_fn, seed, self.step_fn, self.options
        )


def _refusal(network: nn.Module, inputs: tuple[Any, ...]) -> Exception | None:
    """Why a network does not take the inputs in evaluation mode."""
    try:
        with torch.no_grad():
            network.eval()(*inputs)
    except (RuntimeError, ValueError, AssertionError, IndexError, TypeError) as e:
        return e
    return None


class _Noise(Sequence[Batch]):
    """One synthetic batch, made (with its warning) when a criterion first asks for data."""

    def __init__(self, make: Callable[[], list[Batch]]) -> None:
        self._make, self._made = make, list[Batch]()

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: Any) -> Any:
        if not self._made:
            self._made = self._make()
        return self._made[index]


def _noise(network: nn.Module, graph: ChannelGraph, seed: int) -> tuple[Any, Tensor]:
    """Noise in the shape of the inputs, and labels in the shape of the first output."""
    if graph.calls:
        raise ScoringError(
            f"{type(network).__name__} was captured in parts and cannot be scored on noise: pass "
            "data, and step_fn(model, batch) -> loss"
        )
    out = next(v for v in tree_leaves(graph.values["output"]) if hasattr(v, "vectors"))
    classes, *dense = out.shape[1:] or (2,)
    first = next(t for t in tree_leaves(graph.inputs) if isinstance(t, Tensor))
    images, labels = synthetic((_SYNTHETIC_BATCH, *first.shape[1:]), classes, seed=seed)
    if dense:  # one label per pixel
        labels = labels.view(-1, *[1] * len(dense)).expand(-1, *dense).contiguous()
    return images, labels
