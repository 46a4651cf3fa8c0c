"""How parameters were initialised, read from their statistics, and new entries drawn alike.

A law is a family (normal, uniform ...), a gain and the fan that the variance goes with:
``Var = gain / fan``. One tensor often fits several laws (a convolution with as many inputs as
outputs fits both fans), so the tensors of a network are read together (:func:`laws`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from lwdna.fx_passes.init_sample import CUT_STD, Family, Sample, sample
from lwdna.fx_passes.init_search import Scale, search


@dataclass(frozen=True)
class InitLaw:
    """Distribution of a parameter's entries.

    Attributes:
        kind: ``"constant"``, ``"normal"``, ``"uniform"``, ``"truncated"`` (a normal law cut at two
            of its standard deviations) or ``"orthogonal"``.
        mean: mean, or the constant.
        std: standard deviation of the entries (0 for a constant).
        scale: which fan the variance goes with (see :class:`Fans`), or ``"fixed"``.
        usual: whether it is an initialisation that is in use: a constant, a usual gain, a gain
            that layers of several fans share, a round standard deviation.
    """

    kind: Literal["constant"] | Family
    mean: float
    std: float
    scale: Scale
    usual: bool = True


@dataclass(frozen=True)
class Fans:
    """The fans of a parameter, in torch.nn.init's convention.

    Attributes:
        fan_in: ``shape[1]`` times the kernel positions; of a bias, its weight's.
        fan_out: ``shape[0]`` times the kernel positions; ``None`` for a bias.
        groups: of the convolution.
        rows: ``shape[0]``, for orthogonal matrices; ``None`` for a bias.
    """

    fan_in: int
    fan_out: int | None = None
    groups: int = 1
    rows: int | None = None

    def of(self, scale: Scale) -> float:
        """The fan that a scale speaks of: 1 for ``"fixed"``, NaN if there is none.

        ``"fan_group"`` is the fan-out of one group, ``"fan_avg"`` the mean of both fans,
        ``"fan_max"`` the longer side of the weight as a matrix.
        """
        out = float("nan") if self.fan_out is None else float(self.fan_out)
        return {
            "fixed": 1.0,
            "fan_in": float(self.fan_in),
            "fan_out": out,
            "fan_group": out / self.groups,
            "fan_avg": (self.fan_in + out) / 2,
            "fan_max": float("nan") if self.rows is None else float(max(self.fan_in, self.rows)),
        }[scale]


def fans_of(network: nn.Module) -> dict[str, Fans]:
    """Fans of every weight and bias, by parameter name.

    Args:
        network: any module. Norms, LayerScale and other vectors have no fans.

    Source: torch.nn.init, ``_calculate_fan_in_and_fan_out``; the modules' ``reset_parameters``.
    """
    found: dict[str, Fans] = {}
    for path, module in network.named_modules():
        groups = getattr(module, "groups", 1)
        weight = module._parameters.get("weight")
        for own, p in module._parameters.items():
            name = f"{path}.{own}" if path else own
            if p is None:
                continue
            if isinstance(module, nn.RNNBase):  # draws everything by its hidden size
                found[name] = Fans(module.hidden_size)
            elif p.dim() > 1:
                found[name] = _fans(p, groups)
            elif own == "bias" and weight is not None and weight.dim() > 1:
                found[name] = Fans(_fans(weight, groups).fan_in)
    return found


def _fans(weight: Tensor, groups: int) -> Fans:
    kernel = weight.shape[2:].numel()
    return Fans(weight.shape[1] * kernel, weight.shape[0] * kernel, groups, weight.shape[0])


def detect(tensor: Tensor, fan_in: int | None = None, fan_out: int | None = None) -> InitLaw:
    """Read the initialisation law of one tensor (any shape, floating point).

    Args:
        tensor: the parameter's values.
        fan_in: input connections per output (None: not a weight; the law does not scale).
        fan_out: output connections per input.

    Returns:
        The law with the tensor's own standard deviation, for entries that are to join its own;
        for entries of no known family, a normal law of their mean.

    Source: He et al., "Delving Deep into Rectifiers", ICCV 2015; torch.nn.init documentation.
    """
    law = laws({"": tensor}, {} if fan_in is None else {"": Fans(fan_in, fan_out)})[""]
    values = tensor.detach().double()
    if law is None:
        law = InitLaw("normal", float(values.mean()), 0.0, "fixed", usual=False)
    elif law.kind == "constant":
        return law
    return replace(law, std=float(values.std(correction=0)))


def laws(tensors: Mapping[str, Tensor], fans: Mapping[str, Fans]) -> dict[str, InitLaw | None]:
    """Read the initialisation laws of a network's tensors together.

    Args:
        tensors: name -> values (any shape, floating point).
        fans: name -> fans (:func:`fans_of`); tensors without follow a fixed law.

    Returns:
        name -> its law, or ``None`` if the entries are of no known family (tables, trained
        weights).
    """
    found: dict[str, InitLaw | None] = {}
    spread: dict[str, Sample] = {}
    for name, tensor in tensors.items():
        if _constant(tensor, has_fans=name in fans):
            value = float(tensor.detach().flatten()[0]) if tensor.numel() else 0.0
            found[name] = InitLaw("constant", value, 0.0, "fixed")
            continue
        s = sample(tensor)
        if not s.families:
            found[name] = None
        elif not s.centred:
            kind = next(f for f in get_args(Family) if f in s.families)
            found[name] = InitLaw(kind, s.mean, s.std, "fixed", usual=False)
        else:
            spread[name] = s
    # Biases are drawn by statements of their own, and their few entries fit many laws: they are
    # read together, apart from weights, whose law would explain them by sheer number.
    biases = {name for name in spread if _is_bias(fans.get(name))}
    for names in ([n for n in spread if n not in biases], [n for n in spread if n in biases]):
        if not names:
            continue
        own = [fans.get(name) for name in names]
        table = {scale: _column(own, scale) for scale in get_args(Scale)}
        for name, law in zip(names, search([spread[n] for n in names], table), strict=True):
            found[name] = InitLaw(law.family, 0.0, law.std, law.scale, law.usual)
    return found


def _is_bias(fans: Fans | None) -> bool:
    return fans is not None and fans.fan_out is None


def _constant(tensor: Tensor, *, has_fans: bool) -> bool:
    values = tensor.detach().flatten()
    if len(values) == 1:  # a weight or bias of one entry was drawn, if it is not 0
        return not has_fans or not bool(values)
    return not len(values) or bool((values == values[0]).all())


def _column(fans: list[Fans | None], scale: Scale) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    none = 1.0 if scale == "fixed" else float("nan")
    return np.array([none if f is None else f.of(scale) for f in fans])


def draw(law: InitLaw, like: Tensor, ratio: float, generator: torch.Generator) -> Tensor:
    """New entries of the shape, dtype, device and memory format of ``like``.

    Args:
        law: the law of the tensor.
        like: gives shape, dtype, device and memory format.
        ratio: new fan / old fan of the law's fan (1 for a fixed law).
        generator: CPU generator.
    """
    if law.kind == "constant":
        return torch.full_like(like, law.mean)
    # float32 on the CPU, whatever the defaults are: the same seed gives the same entries.
    noise = torch.empty(like.shape, dtype=torch.float32, device="cpu")
    if law.kind == "uniform":
        noise.uniform_(-(3**0.5), 3**0.5, generator=generator)
    elif law.kind == "truncated":
        bound = 2 / CUT_STD
        nn.init.trunc_normal_(noise, std=bound / 2, a=-bound, b=bound, generator=generator)
    elif law.kind == "orthogonal":
        longer = max(len(noise), noise[0].numel())
        nn.init.orthogonal_(noise, gain=longer**0.5, generator=generator)
    else:
        noise.normal_(generator=generator)
    return torch.empty_like(like).copy_(law.mean + law.std / ratio**0.5 * noise)
