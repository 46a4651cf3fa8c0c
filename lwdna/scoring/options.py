"""How a criterion goes through the batches."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Literal, get_args

import torch

Average = Literal["mean", "last", "exponential"]


@dataclass(frozen=True)
class SGD:
    """A step of stochastic gradient descent after every batch.

    Attributes:
        lr: learning rate, positive.
        momentum: in [0, 1).
        weight_decay: L2 penalty, not negative.

    Raises:
        ValueError: a value outside its range.

    Source: the paper's released code, whose settings are the defaults
    (https://github.com/ofsoundof/Heterogeneity_Hypothesis, util/option.py); torch.optim.SGD.
    """

    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4

    def __post_init__(self) -> None:
        for name, least, most in (
            ("lr", 0.0, float("inf")),
            ("momentum", 0.0, 1.0),
            ("weight_decay", 0.0, float("inf")),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"SGD: {name}={value!r}: a number")
            if not (isfinite(value) and least <= value < most) or (name == "lr" and not value):
                raise ValueError(f"SGD: {name}={value!r} must be finite, >= {least} and < {most}")

    def optimizer(self, tensors: list[torch.Tensor]) -> torch.optim.SGD:
        """Torch's optimiser with these settings over ``tensors``."""
        return torch.optim.SGD(
            tensors,
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            foreach=False,  # no temporary copy of all parameters at once
        )


@dataclass(frozen=True)
class Scoring:
    """How many batches are scored, and how.

    Attributes:
        batches: number of batches to take from the data.
        sgd: a step after every batch, on the hypernetwork (latent criteria) or on the network's
            own weights (the others); copies, the network stays as it is. ``None``: no step.
        average: what becomes of the scores of several batches: their ``"mean"``, those of the
            ``"last"`` batch, or an ``"exponential"`` moving average (with bias correction).
            Latent gradients are averaged before the modulus is taken.
        decay: weight of the past in the exponential average, in [0, 1).
        bfloat16: run the network and the loss under bfloat16 autocast; a float64 network is not
            affected. Gradients behind batch norms cancel to a large part, so that rounding (8
            bits of significand) shows: measured on an untrained resnet18 (two batches of 16
            images of 64 × 64), scores rank-correlate with those in float32 by 0.87 for
            ``latent-grad`` without ``normalize`` (0.8 within a group), 0.95 for ``taylor``, 0.97
            for ``grasp`` and 0.99 for ``snip`` and ``fisher``.
        micro_batch: number of samples that go through the network at a time, for memory. The
            loss is computed on the whole batch, and the scores are the same up to the order of
            summation. Where the network treats samples one by one, a batch is split in
            micro-batches, and dropout, if there is any, draws other masks than for the whole;
            where it mixes them (batch norm in training mode), the network's depth is split
            instead, in as many stretches, with the same masks. Either way activations are
            computed a second time in the backward pass (torch.utils.checkpoint).

    Raises:
        TypeError, ValueError: a value of the wrong type or outside its range.

    Source: released code (https://github.com/ofsoundof/Heterogeneity_Hypothesis,
    util/trainer_hh_grad.py: two batches); Chen et al., "Training Deep Nets with Sublinear
    Memory Cost", 2016.
    """

    batches: int = 2
    sgd: SGD | None = None
    average: Average = "mean"
    decay: float = 0.9
    bfloat16: bool = False
    micro_batch: int | None = None

    def __post_init__(self) -> None:
        for name in ("batches", "micro_batch"):
            value = getattr(self, name)
            if name == "micro_batch" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name}={value!r}: an int, not {type(value).__name__}")
            if value < 1:
                raise ValueError(f"{name}={value}: must be at least 1")
        if self.sgd is not None and not isinstance(self.sgd, SGD):
            raise TypeError(f"sgd={self.sgd!r}: lwdna.SGD(lr=...) or None")
        if self.average not in get_args(Average):
            raise ValueError(f"average={self.average!r}: one of {', '.join(get_args(Average))}")
        if not isinstance(self.decay, (int, float)) or not 0 <= self.decay < 1:
            raise ValueError(f"decay={self.decay!r} must lie in [0, 1)")
        if not isinstance(self.bfloat16, bool):
            raise TypeError(f"bfloat16={self.bfloat16!r}: True or False")
