"""Samples of the operators that detectors use between their layers."""

from __future__ import annotations

import torch
import torchvision.ops
from torch import Tensor

from tests.rules.samples import CHANNELS_FROZEN, between, sample

BOXES = [[0.0, 0.0, 0.0, 4.0, 4.0], [0.0, 1.0, 1.0, 5.0, 3.0]]


def written(x: Tensor, *, channels: bool) -> Tensor:
    """Some positions, or some channels, replaced by others of the same tensor."""
    result = torch.zeros_like(x)
    index = torch.tensor([0, 2])
    if channels:
        result[:, index] = x[:, :2]
    else:
        result[:, :, index] = x[:, :, :2]
    return result


def added(x: Tensor) -> Tensor:
    """Rows added to rows of the batch, channels along."""
    index = torch.tensor([0, 0])
    return x.index_put((index,), x[:1].expand(2, -1, -1, -1), accumulate=True)


def roi_align(x: Tensor) -> Tensor:
    return torchvision.ops.roi_align(x, torch.tensor(BOXES).to(x.dtype), 3)


def roi_pool(x: Tensor) -> Tensor:
    return torchvision.ops.roi_pool(x, torch.tensor(BOXES).to(x.dtype), 3)


sample("index_put_", between(lambda x: written(x, channels=False)), note="positions")
sample(
    "index_put_",
    between(lambda x: written(x, channels=True)),
    **CHANNELS_FROZEN,
    frozen={"a": "addressed by an index"},
    note="channels",
)
sample("index_put", between(added), note="batch")
sample("torchvision::roi_align", between(roi_align))
sample("torchvision::roi_pool", between(roi_pool))
