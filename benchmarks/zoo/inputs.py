"""What each model of the zoos is called with: images, clips, pairs of images, lists of images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torchvision
from torch import Tensor

from benchmarks.detectors import DETECTORS, pictures
from benchmarks.networks import default_size, small_size

Shape = tuple[int, ...]

_CLIP = (3, 16, 112, 112)  # the resolution of torchvision's video ResNets
_FIXED_CLIP = (3, 16, 224, 224)
#: Position tables or pooling kernels of a fixed size.
_FIXED_CLIPS = ("mvit_v1_b", "mvit_v2_s", "s3d", "swin3d_t", "swin3d_s", "swin3d_b")
_SMALL_CLIP = (3, 8, 56, 56)
_FLOW = (3, 128, 128)  # RAFT needs 16 positions at an eighth of the resolution
_INCEPTION = (3, 299, 299)  # the auxiliary head has a 5 x 5 kernel on a 17 x 17 map


def shapes(name: str, *, small: bool = False) -> tuple[Shape, ...]:
    """Shapes of the tensors that a model takes, without the batch.

    Args:
        name: ``"library:model"``.
        small: the smallest that are worth testing, in place of the model's own.
    """
    library, _, model = name.partition(":")
    models = torchvision.models
    if library == "torchvision":
        if model in models.list_models(module=models.video):
            if model in _FIXED_CLIPS:
                return (_FIXED_CLIP,)
            return (_SMALL_CLIP if small else _CLIP,)
        if model in models.list_models(module=models.optical_flow):
            return (_FLOW, _FLOW)
        if "inception" in model:
            return (_INCEPTION,)
    return (small_size(name) if small else default_size(name),)


def reduced(name: str) -> Iterator[tuple[dict[str, Any], tuple[Shape, ...]]]:
    """Ways to build a model of a fixed resolution for smaller inputs, largest first.

    Args:
        name: ``"library:model"``.

    Yields:
        Arguments of its constructor, and the shapes that the model takes then.
    """
    library, _, model = name.partition(":")
    if library == "timm":
        channels, side, _ = default_size(name)
        while (side := side // 2) >= 64:
            yield {"img_size": side}, ((channels, side, side),)
    elif model.startswith("swin3d"):  # its tables belong to the windows, not to the clip
        yield {}, (_CLIP,)


def example(
    name: str,
    batch: int,
    sizes: Sequence[Shape] | None = None,
    *,
    device: str = "cpu",
    seed: int = 0,
) -> tuple[Any, ...]:
    """Arguments of a model's forward.

    Args:
        name: ``"library:model"``.
        batch: number of samples.
        sizes: of the tensors, without the batch; the model's own if None.
        device: ``"cpu"`` for standard normal values, ``"meta"`` for none. A detector always gets
            values, with targets: what it computes depends on them.
        seed: of the values.
    """
    if is_detector(name):
        return pictures(name.partition(":")[2], batch, seed=seed)
    generator = torch.Generator().manual_seed(seed)

    def tensor(shape: Shape) -> Tensor:
        if device == "meta":
            return torch.empty(batch, *shape, device=device)
        return torch.randn(batch, *shape, generator=generator)

    return tuple(tensor(shape) for shape in sizes or shapes(name))


def is_detector(name: str) -> bool:
    """Whether a model takes lists of images and targets: torchvision's detectors."""
    library, _, model = name.partition(":")
    return library == "torchvision" and model in DETECTORS
