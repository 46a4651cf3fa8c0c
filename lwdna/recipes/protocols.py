"""The training protocols, as far as the publications and their released code give them."""

from __future__ import annotations

from dataclasses import replace

from lwdna.recipes.types import Distillation, Protocol

HH = "Li et al., The Heterogeneity Hypothesis, CVPR 2021"
DHP = "Li et al., DHP: Differentiable Meta Pruning via HyperNetworks, ECCV 2020"

IMAGENET = Protocol(
    source=f"{HH}, released command",
    optimizer="sgd",
    lr=0.1,
    momentum=0.9,
    weight_decay=1e-4,
    epochs=150,
    schedule="cosine",
    batch=256,
    augmentation="RandomResizedCrop 224",
)
TINY_IMAGENET = Protocol(
    source=f"{HH}; optimiser: defaults of its released options; data: {DHP}, released loader",
    optimizer="sgd",
    lr=0.1,
    momentum=0.9,
    weight_decay=1e-4,
    epochs=220,
    schedule="step",
    milestones=(200, 205, 210, 215),
    batch=64,
    augmentation="none: whole images; the released loader leaves the flip out by default",
    distillation=Distillation(weight=0.4, temperature=4.0),
)
CIFAR = Protocol(
    source=f"{DHP}, released scripts for ResNet-56, and defaults of the released options",
    optimizer="sgd",
    lr=0.1,
    momentum=0.9,
    weight_decay=1e-4,
    epochs=300,
    schedule="step",
    milestones=(150, 225),
    batch=64,
    augmentation="32x32 of the image with a frame of 4 pixels, mirrored with probability 0.5",
)
SRRESNET = Protocol(
    source=f"{HH}; {DHP}, released scripts",
    optimizer="adam",
    lr=1e-4,
    epochs=300,
    schedule="step",
    milestones=(200,),
    batch=16,
    augmentation="patches of 96x96 of the output (24x24 of the input)",
)
EDSR = replace(SRRESNET, augmentation="patches of 192x192 of the output (48x48 of the input)")
DNCNN = Protocol(
    source=f"{DHP}, released scripts",
    optimizer="adam",
    lr=1e-4,
    epochs=60,
    schedule="step",
    milestones=(40,),
    batch=64,
    augmentation="patches of 64x64, grey, Gaussian noise of sigma 70 (of 255)",
)
UNET = replace(
    DNCNN, batch=16, augmentation="patches of 128x128, grey, Gaussian noise of sigma 70 (of 255)"
)
DIMP = Protocol(
    source="Bhat et al., DiMP, ICCV 2019, released settings dimp50; lr is the backbone's",
    optimizer="adam",
    lr=2e-5,
    epochs=50,
    schedule="step",
    milestones=(15, 30, 45),
    gamma=0.2,
    batch=10,
    augmentation="search regions of 288x288, jittered; grey with probability 0.05; brightness",
)
