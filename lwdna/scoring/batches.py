"""Batches for scoring: whatever holds them -> a checked list of (inputs, targets)."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from lwdna.errors import ScoringError
from lwdna.scoring.context import Batch


def as_batches(data: Any, n: int = 2, *, network: nn.Module | None = None) -> list[Batch]:
    """Take up to ``n`` batches from ``data`` and check them.

    Args:
        data: one batch, i.e. a tuple or list ``(inputs, targets)`` whose first element is a
            tensor and whose length is 2; or any iterable of such batches (a DataLoader, an
            iterator, a list). No more than ``n`` are taken from it.
        n: number of batches; the released code uses 2.
        network: batches are moved to its device, and floating-point tensors to its dtype.

    Returns:
        List of (inputs, targets) pairs, at most ``n`` and at least one.

    Raises:
        TypeError: ``data`` is neither a batch nor an iterable.
        ValueError: ``n`` is below 1.
        ScoringError: no batch; one that is no pair, or empty, or holds NaN or infinities. The
            message names the batch.

    Source: METHOD §2 (two minibatches).
    """
    if isinstance(n, bool) or not isinstance(n, int):
        raise TypeError(f"batches={n!r}: an int, not {type(n).__name__}")
    if n < 1:
        raise ValueError(f"n={n}: score on at least one batch")
    if isinstance(data, Tensor) or not isinstance(data, Iterable):
        raise TypeError(
            f"data is a {type(data).__name__}: pass one batch (inputs, targets), or an iterable "
            "of batches such as a DataLoader"
        )
    batches = [data] if _is_batch(data) else list(islice(data, n))
    if not batches:
        raise ScoringError("the data holds no batch: an exhausted iterator or an empty loader?")
    return [_checked(batch, k, network) for k, batch in enumerate(batches)]


def synthetic(
    shape: Sequence[int], classes: int, device: torch.device | str = "cpu", seed: int = 0
) -> Batch:
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


def _is_batch(data: Any) -> bool:
    return isinstance(data, (tuple, list)) and len(data) == 2 and isinstance(data[0], Tensor)


def _checked(batch: Any, k: int, network: nn.Module | None) -> Batch:
    if not _is_batch(batch):
        raise ScoringError(
            f"batch {k} is a {type(batch).__name__}"
            f"{f' of length {len(batch)}' if isinstance(batch, (tuple, list)) else ''}, not "
            "a pair (inputs, targets) with a tensor first: wrap the loader in a generator that "
            "yields such pairs"
        )
    inputs, targets = batch
    for what, tensor in (("inputs", inputs), ("targets", targets)):
        if not isinstance(tensor, Tensor):
            continue
        if not tensor.numel():
            raise ScoringError(f"{what} of batch {k} are empty: shape {tuple(tensor.shape)}")
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ScoringError(f"{what} of batch {k} hold NaN or infinite values: check the data")
    like = None if network is None else next(network.parameters(), None)
    if like is not None:
        dtype = like.dtype

        def move(t: Tensor) -> Tensor:
            t = t.clone() if t.is_inference() else t  # autograd takes no inference tensors
            return t.to(like.device, dtype if t.is_floating_point() else None)

        inputs, targets = move(inputs), tree_map_only(Tensor, move, targets)
    return inputs, targets
