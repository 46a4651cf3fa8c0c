"""Batches for scoring: whatever holds them -> a checked list of :class:`Batch`."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils._pytree import tree_iter, tree_map, tree_map_only

from lwdna.errors import ScoringError
from lwdna.inputs import as_arguments

#: ``step_fn(model, batch)`` -> scalar loss.
StepFn = Callable[[Any, Any], Tensor]

#: Names under which data sets keep images and targets, where ``forward`` does not name them.
INPUT_KEYS = ("image", "images", "img", "input", "inputs", "pixel_values", "lq", "x")
TARGET_KEYS = ("label", "labels", "target", "targets", "class", "gt", "y")


@dataclass(frozen=True, eq=False)
class Batch:
    """One batch, on the network's device and in its dtype.

    Attributes:
        inputs: positional arguments of the network's ``forward``.
        targets: what ``loss_fn`` compares with; ``None`` where a step function takes the batch.
        whole: the batch as the data gave it, for a step function.
        size: number of samples.
    """

    inputs: tuple[Any, ...]
    targets: Any
    whole: Any
    size: int


def take(data: Any, n: int) -> list[Any]:
    """Take up to ``n`` batches from ``data``, as they are.

    Args:
        data: one batch, i.e. a dict, a tensor, a pair (inputs, targets), or a tuple or list of
            several entries that begins with a tensor; or any iterable of batches (a DataLoader, an
            iterator, a list). No more than ``n`` are taken from it.
        n: number of batches.

    Returns:
        At least one batch, at most ``n``.

    Raises:
        TypeError: ``data`` is neither a batch nor an iterable, or may be one batch or two.
        ScoringError: ``data`` holds no batch.
    """
    if _is_one_batch(data):
        return [data]
    if not isinstance(data, Iterable):
        raise TypeError(
            f"data is a {type(data).__name__}: pass one batch (inputs, targets), or an iterable "
            "of batches such as a DataLoader"
        )
    batches = list(islice(data, n))
    if not batches:
        raise ScoringError("the data holds no batch: an exhausted iterator or an empty loader?")
    return batches


def as_batches(
    data: Any,
    n: int = 2,
    *,
    network: nn.Module | None = None,
    step_fn: StepFn | None = None,
) -> list[Batch]:
    """Take up to ``n`` batches from ``data`` and check them.

    A batch is a pair (inputs, targets), where inputs are a tensor, a tuple of positional or a
    dict of keyword arguments of ``forward``; or a dict, whose entries named like arguments of
    ``forward`` are the inputs and whose other entry (or dict of other entries) is the target.
    Where ``forward`` names none of them, "image", "input", "lq" ... and "label", "target", "gt"
    ... do (:data:`INPUT_KEYS`, :data:`TARGET_KEYS`). With a step function a batch may be anything.

    Args:
        data: see :func:`take`.
        n: number of batches; the released code uses 2.
        network: batches are moved to its device, and floating-point tensors to its dtype.
        step_fn: ``step_fn(model, batch)`` -> loss; it is called once per batch with a stand-in
            for the model to learn what the model is called with.

    Returns:
        The batches, at most ``n`` and at least one.

    Raises:
        TypeError: ``data`` is neither a batch nor an iterable.
        ValueError: ``n`` is below 1.
        ScoringError: no batch; one of another form, or empty, or with NaN or infinities; a step
            function that does not call the model. The message names the batch.

    Source: released code (https://github.com/ofsoundof/Heterogeneity_Hypothesis,
    util/trainer_hh_grad.py: scoring ends after two minibatches).
    """
    if n < 1:
        raise ValueError(f"n={n}: score on at least one batch")
    return [_checked(batch, k, network, step_fn) for k, batch in enumerate(take(data, n))]


def synthetic(
    shape: Sequence[int], classes: int, device: torch.device | str = "cpu", seed: int = 0
) -> tuple[Tensor, Tensor]:
    """One batch of Gaussian noise with random labels, for scoring without data.

    Args:
        shape: shape of the inputs, batch first, e.g. ``(64, 3, 224, 224)``.
        classes: number of classes the labels are drawn from.
        device: where the batch lies.
        seed: of the draw, which is made on the CPU: the same on every device.

    Returns:
        (inputs, labels): float32 of ``shape``, and int64 of shape ``(shape[0],)``.

    Raises:
        ValueError: ``classes`` below 1 or a dimension below 1.

    Warns:
        UserWarning: always, because such scores know nothing about the task.
    """
    if classes < 1 or not shape or min(shape) < 1:
        raise ValueError(f"shape={tuple(shape)}, classes={classes}: all must be positive")
    warnings.warn(
        "scoring on synthetic noise: the scores are data-free. Pass batches of the task to score "
        "channels by what they do for it",
        stacklevel=2,
    )
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(tuple(shape), generator=generator)
    labels = torch.randint(classes, (shape[0],), generator=generator)
    return inputs.to(device), labels.to(device)


def _is_one_batch(data: Any) -> bool:
    if isinstance(data, (Tensor, Mapping)):
        return True
    if not isinstance(data, (tuple, list)) or not data:
        return False
    if isinstance(data[0], Tensor):
        if len(data) > 1:
            return True
        kind = type(data).__name__  # a step function would get the list for the tensor
        raise TypeError(
            f"data is a {kind} of one tensor, which may be the batch or hold it: write the tensor "
            "alone if that is the batch, [[tensor]] if the list is"
        )
    if len(data) != 2 or not _holds_tensors(data[0]):
        return False
    # ((a, b), y) and ({"x": a}, y) are pairs; [(x, y), (x, y)] are two of them.
    if isinstance(data, tuple) and type(data[1]) is type(data[0]):
        kind = type(data[0]).__name__
        raise TypeError(
            f"data is a tuple of two {kind}s, which may be one batch or two: write [(inputs, "
            "targets)] for one, [batch, batch] for two"
        )
    return type(data[1]) is not type(data[0])


def _holds_tensors(value: Any) -> bool:
    values = value.values() if isinstance(value, Mapping) else value
    return (
        isinstance(value, (tuple, list, Mapping))
        and len(value) > 0
        and all(isinstance(v, Tensor) for v in values)
    )


def _checked(batch: Any, k: int, network: nn.Module | None, step_fn: StepFn | None) -> Batch:
    _check_values(batch, k)
    batch = _moved(batch, network)
    if step_fn is not None:
        inputs, targets = _called_with(step_fn, batch, k, network), None
    else:
        inputs, targets = _pair(batch, k, network)
        if isinstance(targets, Tensor) and not targets.numel():
            raise ScoringError(f"targets of batch {k} are empty: shape {tuple(targets.shape)}")
    first = next((t for t in tree_iter(inputs) if isinstance(t, Tensor) and t.dim()), None)
    if first is None or not first.numel():
        shape = "no tensor" if first is None else f"shape {tuple(first.shape)}"
        raise ScoringError(f"inputs of batch {k} are empty: {shape}")
    return Batch(inputs, targets, batch, _size(inputs, first, network))


def _size(inputs: tuple[Any, ...], first: Tensor, network: nn.Module | None) -> int:
    """Number of samples: a network that is no graph may take a list of them (a detector)."""
    listed = isinstance(inputs[0], (list, tuple)) and not isinstance(network, GraphModule)
    return len(inputs[0]) if listed else first.shape[0]


def _check_values(batch: Any, k: int) -> None:
    whats = ("inputs", "targets")
    parts = batch.items() if isinstance(batch, Mapping) else zip(whats, _two(batch), strict=False)
    for what, part in parts:
        for t in tree_iter(part):
            if isinstance(t, Tensor) and t.is_floating_point() and not t.isfinite().all():
                raise ScoringError(
                    f"{what} of batch {k} hold NaN or infinite values: check the data"
                )


def _two(batch: Any) -> tuple[Any, ...]:
    return tuple(batch) if isinstance(batch, (tuple, list)) and len(batch) == 2 else (batch,)


def _moved(batch: Any, network: nn.Module | None) -> Any:
    like = None if network is None else next(network.parameters(), None)
    if like is None:
        return batch
    device, dtype = like.device, like.dtype

    def move(t: Tensor) -> Tensor:
        t = t.clone() if t.is_inference() else t  # autograd takes no inference tensors
        return t.to(device, dtype if t.is_floating_point() else None)

    return tree_map_only(Tensor, move, batch)


def _pair(batch: Any, k: int, network: nn.Module | None) -> tuple[tuple[Any, ...], Any]:
    if isinstance(batch, Mapping):
        inputs, targets = _split_dict(batch, k, network)
    elif (
        isinstance(batch, (tuple, list))
        and len(batch) == 2
        and (isinstance(batch[0], Tensor) or _holds_tensors(batch[0]))
    ):
        inputs, targets = batch
    else:
        length = f" of length {len(batch)}" if isinstance(batch, (tuple, list)) else ""
        raise ScoringError(
            f"batch {k} is a {type(batch).__name__}{length}, not a pair (inputs, targets) and not "
            "a dict: pass step_fn(model, batch) -> loss, which takes batches of any form"
        )
    if network is not None:
        return as_arguments(network, inputs), targets
    return (tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)), targets


def _split_dict(batch: Mapping[str, Any], k: int, network: nn.Module | None) -> tuple[Any, Any]:
    """Inputs and targets of a dict batch, by the names of its entries."""
    arguments = () if network is None else tuple(inspect.signature(network.forward).parameters)
    named = {key: value for key, value in batch.items() if key in arguments}
    others = {key: value for key, value in batch.items() if key not in named}
    if named and others:
        return named, next(iter(others.values())) if len(others) == 1 else others
    found = [[key for key in keys if key in batch] for keys in (INPUT_KEYS, TARGET_KEYS)]
    if [len(keys) for keys in found] != [1, 1]:
        raise ScoringError(
            f"batch {k} is a dict with the entries {', '.join(map(repr, batch))}: which are the "
            f"inputs, which the target? Name the inputs like forward's arguments "
            f"({', '.join(arguments) or 'unknown'}), or pass step_fn(model, batch) -> loss"
        )
    return batch[found[0][0]], batch[found[1][0]]


class _Called(BaseException):
    """Carries the arguments out of the step, which may catch every Exception."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__()
        self.inputs = (args, kwargs)


class _StandIn(nn.Module):
    """Takes the model's place to learn what it is called with."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise _Called(args, kwargs)


def _called_with(step_fn: StepFn, batch: Any, k: int, network: nn.Module | None) -> tuple[Any, ...]:
    devices = {t.device.index for t in tree_iter(batch) if isinstance(t, Tensor) and t.is_cuda}
    try:
        with torch.random.fork_rng(devices=list(devices)):
            step_fn(_StandIn(), fresh(batch))
    except _Called as call:
        args, kwargs = call.inputs
    except Exception as e:
        raise ScoringError(f"step_fn fails on batch {k}: {type(e).__name__}: {e}") from e
    else:
        raise ScoringError(
            f"step_fn does not call the model on batch {k}: it must compute the loss"
        )
    if network is None or not kwargs:
        return (*args, *kwargs.values())
    try:
        call_of = inspect.signature(network.forward).bind_partial(*args, **kwargs)
    except TypeError as e:
        raise ScoringError(f"step_fn does not call the model on batch {k} as it can be: {e}") from e
    call_of.apply_defaults()  # without it, args end before the first argument left out
    return call_of.args


def fresh(batch: Any) -> Any:
    """A copy: a step function may take entries out of its batch, and change tensors in place."""
    return tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, batch)
