"""The loss of a protocol, and mixing of images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lwdna.errors import TrainingError
from lwdna.recipes import Distillation
from lwdna.training.protocol import Protocol
from lwdna.training.randomness import seeded

#: Sets the random numbers of mixing apart from those of single images.
_OF_MIXING = 3


def task_loss(protocol: Protocol, outputs: Tensor, targets: Tensor) -> Tensor:
    """The loss without a teacher.

    Args:
        protocol: names it.
        outputs: logits (N, classes), or pictures (N, C, H, W).
        targets: classes (N,), class probabilities (N, classes), or pictures.

    Returns:
        The mean, in float32 or better.
    """
    outputs = full(outputs)
    if protocol.loss == "l1":
        return F.l1_loss(outputs, targets)
    if protocol.loss == "l2":
        return F.mse_loss(outputs, targets)
    # Soft targets of mixing are smoothed already.
    smoothing = protocol.smoothing if targets.dim() == 1 else 0.0
    return F.cross_entropy(outputs, targets, label_smoothing=smoothing)


def full(values: Tensor) -> Tensor:
    """What autocast gave in half precision, in float32."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def distilled(outputs: Tensor, teacher: Tensor, settings: Distillation) -> Tensor:
    """``T² · KL(teacher || network)`` of the softened outputs, a mean over images.

    Args:
        outputs: logits of the network, (N, classes).
        teacher: logits of the teacher.
        settings: the temperature T.

    Source: Hinton et al., Distilling the Knowledge in a Neural Network, 2015, section 2.
    """
    t = settings.temperature
    ours = F.log_softmax(full(outputs) / t, dim=1)
    theirs = F.log_softmax(full(teacher) / t, dim=1)
    return t * t * F.kl_div(ours, theirs, reduction="batchmean", log_target=True)


def loss_of(
    protocol: Protocol,
    outputs: Any,
    targets: Tensor,
    teacher: Tensor | None,
    classes: int | None = None,
) -> Tensor:
    """The loss of one batch; with a teacher, ``weight · T² · KL + (1 - weight) · cross entropy``.

    Args:
        protocol: the settings.
        outputs: of the network.
        targets: see :func:`task_loss`.
        teacher: the teacher's logits.
        classes: see :func:`check_outputs`.

    Raises:
        TrainingError: the network does not return one tensor, or it does not fit the targets.
    """
    check_outputs(protocol, outputs, targets, classes)
    loss = task_loss(protocol, outputs, targets)
    if teacher is None or protocol.distillation is None:
        return loss
    if teacher.shape != outputs.shape:
        raise TrainingError(
            f"the teacher's outputs are {tuple(teacher.shape)}, and the network's "
            f"{tuple(outputs.shape)}: take a teacher of the same classes"
        )
    weight = protocol.distillation.weight
    return weight * distilled(outputs, teacher, protocol.distillation) + (1 - weight) * loss


def check_outputs(
    protocol: Protocol, outputs: Any, targets: Tensor, classes: int | None = None
) -> None:
    """Refuse what there is no loss for.

    Args:
        protocol: tells the task.
        outputs: of the network.
        targets: see :func:`task_loss`.
        classes: number of classes of the data, if it is known.

    Raises:
        TrainingError: says what would fit.
    """
    if not isinstance(outputs, Tensor):
        raise TrainingError(
            f"the network returns a {type(outputs).__name__}, and no tensor: build it without "
            "auxiliary outputs, e.g. aux_logits=False"
        )
    if protocol.task == "classification":
        if outputs.dim() != 2:
            raise TrainingError(f"outputs of shape {tuple(outputs.shape)} are no (N, classes)")
        if classes is not None and outputs.shape[1] != classes:
            raise TrainingError(
                f"the network has {outputs.shape[1]} outputs, and the data {classes} classes: "
                f"build it for them, as with num_classes={classes}"
            )
    elif outputs.shape != targets.shape:
        raise TrainingError(
            f"outputs of shape {tuple(outputs.shape)} for targets of {tuple(targets.shape)}: the "
            "network's scale or channels are not the protocol's patches"
        )


Mixing = Callable[[Tensor, Tensor, tuple[int, ...]], tuple[Tensor, Tensor]]


def mixing(protocol: Protocol, classes: int | None) -> Mixing | None:
    """Mixup and CutMix of timm, if the protocol has them: ``(images, classes, key)`` -> the same.

    The key seeds what is drawn for a batch.

    Raises:
        TrainingError: the number of classes is unknown, or timm cannot mix such batches.
    """
    images = protocol.images
    if images is None or not (images.mixup or images.cutmix):
        return None
    if classes is None:
        raise TrainingError("mixup needs the number of classes: pass Data(classes=...)")
    if protocol.batch % 2:
        raise TrainingError(f"batch={protocol.batch}: mixup takes pairs, an even number of images")
    from timm.data import Mixup

    mix = Mixup(
        mixup_alpha=images.mixup,
        cutmix_alpha=images.cutmix,
        label_smoothing=protocol.smoothing,
        num_classes=classes,
    )

    def mixed(x: Tensor, y: Tensor, key: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        with seeded(*key, _OF_MIXING):
            inputs, targets = mix(x, y)
        return inputs, targets

    return mixed
