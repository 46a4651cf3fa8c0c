"""How a parameter was initialised, read from its statistics, and new entries drawn alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

#: Gains of the usual initialisations: var · fan (lecun/xavier-like, He, torch's default uniform).
_GAINS = (1.0, 2.0, 1.0 / 3.0)
_TOLERANCE = 0.05


@dataclass(frozen=True)
class InitLaw:
    """Distribution of a parameter's entries.

    Attributes:
        kind: ``"constant"``, ``"normal"`` or ``"uniform"``.
        mean: mean, or the constant.
        std: standard deviation (0 for a constant).
        scale: which fan the variance goes with: ``"fan_in"``, ``"fan_out"`` or ``"fixed"``.
    """

    kind: Literal["constant", "normal", "uniform"]
    mean: float
    std: float
    scale: Literal["fan_in", "fan_out", "fixed"]


def detect(tensor: Tensor, fan_in: int | None = None, fan_out: int | None = None) -> InitLaw:
    """Read the initialisation law of ``tensor`` (any shape, floating point).

    Args:
        tensor: the parameter's values.
        fan_in: input connections per output (None: not a weight; the law does not scale).
        fan_out: output connections per input.

    Source: He et al., "Delving Deep into Rectifiers", ICCV 2015; torch.nn.init documentation.
    """
    values = tensor.detach().double().flatten()
    if len(values) == 0 or bool((values == values[0]).all()):
        return InitLaw("constant", float(values[0]) if len(values) else 0.0, 0.0, "fixed")
    mean, std = float(values.mean()), float(values.std(correction=0))
    # A uniform law reaches sqrt(3) standard deviations and not further; a normal law does.
    reach = float((values - mean).abs().max()) / std
    kind: Literal["normal", "uniform"] = "uniform" if 1.5 < reach < 1.8 else "normal"
    return InitLaw(kind, mean, std, _scaling(std, fan_in, fan_out))


def _scaling(
    std: float, fan_in: int | None, fan_out: int | None
) -> Literal["fan_in", "fan_out", "fixed"]:
    fits_in, fits_out = (
        fan is not None and any(abs(std / (gain / fan) ** 0.5 - 1) < _TOLERANCE for gain in _GAINS)
        for fan in (fan_in, fan_out)
    )
    if fits_out and not fits_in:
        return "fan_out"
    return "fan_in" if fits_in else "fixed"


def draw(law: InitLaw, like: Tensor, ratio: float, generator: torch.Generator) -> Tensor:
    """New entries of the shape, dtype and device of ``like``.

    Args:
        law: the law of the tensor.
        like: gives shape, dtype and device.
        ratio: new fan / old fan of the law's fan (1 for a fixed law).
        generator: CPU generator.
    """
    std = law.std / ratio**0.5
    if law.kind == "constant":
        return torch.full_like(like, law.mean)
    shape = tuple(like.shape)
    if law.kind == "uniform":
        noise = (torch.rand(shape, generator=generator) * 2 - 1) * 3**0.5
    else:
        noise = torch.randn(shape, generator=generator)
    drawn: Tensor = law.mean + std * noise
    return drawn.to(dtype=like.dtype, device=like.device)


def looks_trained(model):
    return False
