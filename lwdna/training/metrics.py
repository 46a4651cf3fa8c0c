"""What is measured on a test set: torchmetrics, by the conventions of each field."""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric
from torchmetrics.functional.classification import multiclass_accuracy
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

from lwdna.errors import TrainingError
from lwdna.training.objective import check_outputs, full, task_loss
from lwdna.training.preparation import Patches
from lwdna.training.protocol import Protocol

#: Weights of red, green and blue in [0, 255] for luma in [16, 235].
#: Source: ITU-R BT.601, as MATLAB's rgb2ycbcr has it, by which super-resolution is measured.
_LUMA = (65.481 / 255, 128.553 / 255, 24.966 / 255)
#: In dB, of a picture that is met exactly; any mean over pictures stays finite.
_BEST_PSNR = 100.0
#: Side of structural similarity's window.
_WINDOW = 11


def luma(rgb: Tensor) -> Tensor:
    """Y of YCbCr.

    Args:
        rgb: (N, 3, H, W), in [0, 255].

    Returns:
        (N, 1, H, W), in [16, 235].
    """
    weights = torch.tensor(_LUMA, dtype=rgb.dtype, device=rgb.device).view(1, 3, 1, 1)
    return (rgb * weights).sum(1, keepdim=True) + 16


def picture_metrics(outputs: Tensor, targets: Tensor, settings: Patches) -> dict[str, Tensor]:
    """PSNR in dB and SSIM of one picture, for white = 255, of outputs rounded to 8 bits.

    Super-resolution: of luma, without a border as wide as the scale. Denoising: of all channels.

    Args:
        outputs: (1, C, H, W).
        targets: the same.
        settings: scale, and the value of white.

    Raises:
        TrainingError: the picture is too small for SSIM.

    Source: Lim et al., Enhanced Deep Residual Networks for Single Image Super-Resolution, CVPR
    workshops 2017, section 4.
    """
    x, y = ((full(t) * (255 / settings.white)).round().clamp(0, 255) for t in (outputs, targets))
    if settings.scale > 1:
        border = settings.scale
        x, y = (t[..., border:-border, border:-border] for t in (x, y))
        if settings.channels == 3:
            x, y = luma(x), luma(y)
    if min(x.shape[2:]) < _WINDOW:
        raise TrainingError(
            f"a test picture of {tuple(targets.shape[2:])} pixels: SSIM needs {_WINDOW} in each "
            "direction, without the border"
        )
    ssim = structural_similarity_index_measure(x, y, data_range=255.0)
    assert isinstance(ssim, Tensor)
    psnr = peak_signal_noise_ratio(x, y, data_range=255.0).clamp(max=_BEST_PSNR)
    return {"psnr": psnr, "ssim": ssim}


def class_metrics(outputs: Tensor, targets: Tensor, protocol: Protocol) -> dict[str, Tensor]:
    """Loss, and shares of images whose class is the first, or among the first five.

    Args:
        outputs: logits, (N, classes).
        targets: (N,).
        protocol: names the loss.
    """
    found = {"loss": task_loss(protocol, outputs, targets)}
    classes = outputs.shape[1]
    for name, k in (("top1", 1), ("top5", 5)):
        if k < classes:
            found[name] = multiclass_accuracy(
                full(outputs), targets, classes, "micro", top_k=k, validate_args=False
            )
    return found


def measured(
    network: nn.Module,
    batches: DataLoader[Any],
    protocol: Protocol,
    place: Callable[[Tensor], Tensor],
    classes: int | None = None,
) -> dict[str, float]:
    """Metrics of a network in evaluation mode on a test set, over all processes.

    Args:
        network: as it is; modes are put back.
        batches: the test set, or this process's share of it.
        protocol: tells task and precision.
        place: brings inputs to the device.
        classes: number of classes of the data, if it is known.

    Returns:
        name -> mean over images.

    Raises:
        TrainingError: outputs do not fit, or a metric is not finite.
    """
    means: dict[str, MeanMetric] = {}
    # MeanMetric leaves out what is not a number, unless it is told what that counts as: itself.
    nan = float("nan")
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        with torch.no_grad():
            for inputs, targets in batches:
                x, y = place(inputs), place(targets)
                found = _of_batch(network, x, y, protocol, classes)
                for name, value in found.items():
                    means.setdefault(name, MeanMetric(nan).to(value.device)).update(value, len(x))
    finally:
        for module, training in modes:
            module.training = training
    metrics = {name: float(mean.compute()) for name, mean in means.items()}
    for name, figure in metrics.items():
        if not isfinite(figure):
            raise TrainingError(f"{name} of a test set is {figure}: the network has diverged")
    return metrics


def _of_batch(
    network: nn.Module, x: Tensor, y: Tensor, protocol: Protocol, classes: int | None
) -> dict[str, Tensor]:
    patches = protocol.patches
    if patches is None:
        outputs = network(x)
        check_outputs(protocol, outputs, y, classes)
        return class_metrics(outputs, y, protocol)
    below, beside = (-side % patches.multiple for side in x.shape[-2:])
    filled = F.pad(x, (0, beside, 0, below), mode="reflect") if below or beside else x
    outputs = network(filled)
    scale = patches.scale
    room = F.pad(y, (0, beside * scale, 0, below * scale))  # a target of the filled-up picture
    check_outputs(protocol, outputs, room)
    return picture_metrics(outputs[..., : y.shape[-2], : y.shape[-1]], y, patches)
