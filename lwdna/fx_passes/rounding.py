"""What rounding errors do to a network's outputs, so that they are not taken for wrong channels."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from lwdna.fx_passes.masked import run_parts
from lwdna.fx_passes.module import in_double
from lwdna.fx_passes.regions import tensors_in

#: Rounding errors of a whole pass may be so many times what the last bit of the inputs and
#: parameters is worth, and this large; a wrong channel is worth more.
_NOISE_FACTOR, _MOST_NOISE = 100.0, 1e-2


def rounding_bound(noise: float) -> float:
    """Largest relative error that rounding explains.

    Args:
        noise: relative error of an output of the :func:`perturbed` network.
    """
    return min(_MOST_NOISE, _NOISE_FACTOR * noise)


def relative_errors(found: Iterable[Tensor], expected: Iterable[Tensor]) -> list[float]:
    """Largest difference of each output, relative to the largest entry that is expected."""

    def error(x: Tensor, y: Tensor) -> float:
        if x.shape != y.shape:  # detections that come and go
            return float("inf")
        if not x.numel():
            return 0.0
        x, y = x.double(), y.double()  # labels are integers
        return float((x - y).abs().max() / y.abs().max().clamp_min(1e-300))

    return [error(x, y) for x, y in zip(found, expected, strict=True)]


def perturbed(network: nn.Module, arguments: tuple[Any, ...]) -> list[Tensor]:
    """Outputs when the last bit of every parameter and input is another one (float64)."""
    noise = torch.Generator().manual_seed(0)

    def shaken(x: Tensor) -> Tensor:
        if not x.is_floating_point():
            return x
        bit = torch.finfo(torch.float64).eps * torch.randn(x.shape, generator=noise).to(x)
        return x * (1 + bit)

    work = in_double(network).eval()
    with torch.no_grad():
        for p in work.parameters():
            p.copy_(shaken(p))
    return list(tensors_in(run_parts(work, tree_map_only(Tensor, shaken, arguments))))
