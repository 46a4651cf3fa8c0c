"""Synthetic batches for the recipes' networks, small enough for one CPU thread."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lwdna.recipes import Recipe


@dataclass(frozen=True)
class Case:
    """How one recipe is measured.

    Attributes:
        side: of the images, in pixels; the budget is counted at the recipe's own resolution.
        batch: images in a batch.
        seeds: medians of so many; of the baseline, which all rows share, of three times as many.
        high: largest value of the images; None: normalised, as for ImageNet.
    """

    side: int
    batch: int
    seeds: int
    high: float | None = None


#: The variance over a squeeze to 4 channels differs 2.5-fold from seed to seed (one standard
#: deviation), so MobileNetV3 has the most seeds.
CASES: dict[str, Case] = {
    "resnet50-imagenet": Case(64, 4, 9),
    "regnetx-4gf-imagenet": Case(64, 4, 9),
    "mobilenetv3-small-imagenet": Case(128, 8, 31),
    "mobilenetv1-tinyimagenet": Case(64, 8, 9),
    "mobilenetv2-tinyimagenet": Case(64, 8, 9),
    "srresnet-x4": Case(24, 2, 9, 1.0),
    "edsr-x4": Case(24, 2, 9, 255.0),
    "dimp-resnet50": Case(64, 4, 9),
    "dncnn-denoising": Case(32, 4, 15, 1.0),
    "unet-denoising": Case(64, 2, 15, 1.0),
}


def batch(recipe: Recipe, case: Case, seed: int) -> tuple[Tensor, Tensor]:
    """Synthetic images (smooth colours and some noise) and targets for the recipe's loss.

    Returns:
        Images (N, C, side, side), and class indices (N,) or images of the output's size.
    """
    rng = torch.Generator().manual_seed(seed)
    n, channels = case.batch, recipe.input_shape[0]
    colours = torch.rand(n, channels, 4, 4, generator=rng)
    clean = F.interpolate(colours, case.side, mode="bilinear")
    noise = torch.randn(clean.shape, generator=rng)
    if case.high is None:
        return (clean - 0.5 + 0.1 * noise) / 0.25, torch.randint(200, (n,), generator=rng)
    if recipe.task == "denoising":
        return case.high * (clean + 70 / 255 * noise), case.high * clean
    target = F.interpolate(colours, 4 * case.side, mode="bilinear")
    return case.high * (clean + 0.05 * noise).clamp(0, 1), case.high * target
