"""The protocols of the paper's experiments, and of those of its predecessor.

Rates, epochs, steps and batches are those of :mod:`lwdna.recipes`. What the publications leave to
their code is said in ``source``.
"""

from __future__ import annotations

from typing import Any

from lwdna.recipes import Protocol as Published
from lwdna.recipes import protocols
from lwdna.training.preparation import Images, Patches
from lwdna.training.protocol import Loss, Protocol, Task

#: Mean and deviation of CIFAR-10's training images, as computed from them.
_CIFAR_MEAN, _CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
_TIMM_NAMES = {"sgd": "momentum", "adam": "adam"}


def _preset(name: str, task: Task, published: Published, note: str, **settings: Any) -> Protocol:
    loss: Loss = "cross_entropy" if task == "classification" else "l1"
    return Protocol(
        name=name,
        source=f"{published.source}; {note}",
        task=task,
        epochs=published.epochs,
        batch=published.batch,
        lr=published.lr,
        optimizer=_TIMM_NAMES[published.optimizer],
        momentum=published.momentum,
        weight_decay=published.weight_decay,
        schedule=published.schedule,
        milestones=published.milestones,
        gamma=published.gamma,
        loss=loss,
        distillation=published.distillation,
        **settings,
    )


_SR_NOTE = "32,208 patches per epoch, one of each part of DIV2K: --n_train of DHP's scripts"
_NOISE_NOTE = "10,000 steps per epoch: --test_every of DHP's scripts"

_ALL = (
    _preset(
        "imagenet-resnet50",
        "classification",
        protocols.IMAGENET,
        "mirrored with probability 0.5, as is usual with RandomResizedCrop",
        images=Images(size=224, crop="resized"),
    ),
    _preset(
        "tiny-imagenet-mobilenet",
        "classification",
        protocols.TINY_IMAGENET,
        "mean and deviation of ImageNet",
        images=Images(size=64, crop="whole", flip=0.0, test_share=1.0),
    ),
    _preset(
        "cifar-resnet56",
        "classification",
        protocols.CIFAR,
        "mean and deviation of CIFAR-10",
        images=Images(
            size=32, crop="padded", padding=4, test_share=1.0, mean=_CIFAR_MEAN, std=_CIFAR_STD
        ),
    ),
    _preset(
        "sr-x4-edsr",
        "super-resolution",
        protocols.EDSR,
        _SR_NOTE,
        patches=Patches(size=192, per_epoch=32_208, scale=4),
    ),
    _preset(
        "sr-x4-srresnet",
        "super-resolution",
        protocols.SRRESNET,
        _SR_NOTE,
        patches=Patches(size=96, per_epoch=32_208, scale=4),
    ),
    _preset(
        "denoising-dncnn",
        "denoising",
        protocols.DNCNN,
        _NOISE_NOTE,
        patches=Patches(size=64, per_epoch=640_000, channels=1, sigma=70.0),
    ),
    _preset(
        "denoising-unet",
        "denoising",
        protocols.UNET,
        _NOISE_NOTE,
        patches=Patches(size=128, per_epoch=160_000, channels=1, sigma=70.0, multiple=16),
    ),
)

#: name -> protocol.
PRESETS: dict[str, Protocol] = {protocol.name: protocol for protocol in _ALL}
