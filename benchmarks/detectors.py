"""torchvision's detectors, set up for small images and few proposals, and pictures for them.

With random weights every anchor scores alike: the settings keep what is proposed and found few.
"""

from __future__ import annotations

from typing import Any

import torch
import torchvision
from torch import nn

_IMAGE = {"min_size": 64, "max_size": 96}  # pixels, of the images that the network itself resizes
_PROPOSALS = {
    "rpn_pre_nms_top_n_test": 50,
    "rpn_post_nms_top_n_test": 20,
    "rpn_pre_nms_top_n_train": 50,
    "rpn_post_nms_top_n_train": 20,
    "box_batch_size_per_image": 16,
    "box_score_thresh": 0.0,
    "box_detections_per_img": 6,
}
_DENSE = {"score_thresh": 0.0, "topk_candidates": 20, "detections_per_img": 10}
_BOXES = [[4.0, 4.0, 40.0, 40.0], [10.0, 10.0, 48.0, 44.0]]
_KEYPOINTS = 17
SIDE = 64  # pixels

DETECTORS: tuple[str, ...] = tuple(
    torchvision.models.list_models(module=torchvision.models.detection)
)


def detector(model: str) -> nn.Module:
    """A detector with random weights: images of 64 to 96 pixels, at most 20 proposals, 5 classes.

    SSD resizes to its own 300 or 320 pixels.

    Args:
        model: one of ``DETECTORS``.
    """
    options = dict(_PROPOSALS if "rcnn" in model else _DENSE)
    options |= {} if "ssd" in model else _IMAGE
    network: nn.Module = torchvision.models.get_model(
        model,
        weights=None,
        weights_backbone=None,
        num_classes=2 if "keypoint" in model else 5,
        **options,
    )
    return network


def pictures(model: str, batch: int, *, seed: int = 0) -> tuple[list[torch.Tensor], list[Any]]:
    """Images of different widths, and a target of two boxes for each.

    Args:
        model: one of ``DETECTORS``; some need masks or keypoints, too.
        batch: number of images.
        seed: of the values.

    Returns:
        The arguments of a detector's forward: images (3, 64, 64 or less), values in [0, 1), and
        dictionaries with ``boxes`` (2, 4) as x1, y1, x2, y2 in pixels and ``labels`` (2,).
    """
    generator = torch.Generator().manual_seed(seed)
    images = [torch.rand(3, SIDE, SIDE - 8 * (k % 2), generator=generator) for k in range(batch)]
    target: dict[str, torch.Tensor] = {
        "boxes": torch.tensor(_BOXES),
        "labels": torch.tensor([1, 1]),
    }
    if "mask" in model:
        target["masks"] = torch.ones(2, SIDE, SIDE, dtype=torch.uint8)
    if "keypoint" in model:
        target["keypoints"] = torch.rand(2, _KEYPOINTS, 3, generator=generator) * 30 + 5
    return images, [dict(target) for _ in images]
