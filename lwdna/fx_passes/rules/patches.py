"""Patches and shuffles: channels that become positions, positions that become channels."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lwdna.fx_passes.rules.registry import OpCall, rule

aten = torch.ops.aten


@rule(aten.pixel_shuffle)
def pixel_shuffle(op: OpCall, x: Tensor, upscale_factor: int) -> None:
    """r² consecutive channels become one channel's pixels."""
    *lead, channels, height, width = op.vec(x)
    r = upscale_factor
    out, *pixels = op.space.split(channels, (x.shape[-3] // r**2, r, r), op.node)
    for v in (*pixels, height, width):
        op.freeze(v, "positions of a pixel shuffle")
    op.give((*lead, out, None, None))


@rule(aten.pixel_unshuffle)
def pixel_unshuffle(op: OpCall, x: Tensor, downscale_factor: int) -> None:
    """One channel's pixels become r² consecutive channels."""
    *lead, channels, height, width = op.vec(x)
    for v in (height, width):
        op.freeze(v, "positions of a pixel unshuffle")
    repeated = None if channels is None else np.repeat(channels, downscale_factor**2)
    op.give((*lead, repeated, None, None))


@rule(aten.channel_shuffle, aten.native_channel_shuffle)
def channel_shuffle(op: OpCall, x: Tensor, groups: int) -> None:
    """The groups' channels in turn: (groups, width) is transposed."""
    batch, channels, *positions = op.vec(x)
    sizes = (groups, x.shape[1] // groups)
    group, width = op.space.split(channels, sizes, op.node)
    op.recorder.add_fact("groups", group)
    op.give((batch, op.space.merge(sizes[::-1], (width, group), op.node), *positions))


@rule(aten.im2col)
def im2col(op: OpCall, x: Tensor, *_: Any) -> None:
    """Every channel becomes its patch: (N, C, H, W) -> (N, C·k², L)."""
    *lead, channels, height, width = op.vec(x)
    for v in (height, width):
        op.freeze(v, "positions of an unfold")
    times = op.out.shape[-2] // x.shape[-3]
    op.give((*lead, None if channels is None else np.repeat(channels, times), None))


@rule(aten.col2im)
def col2im(op: OpCall, x: Tensor, *_: Any) -> None:
    """The inverse of im2col."""
    *lead, patches, positions = op.vec(x)
    channels = op.out.shape[-3]
    out, taps = op.space.split(patches, (channels, x.shape[-2] // channels), op.node)
    for v in (taps, positions):
        op.freeze(v, "positions of a fold")
    op.give((*lead, out, None, None))
