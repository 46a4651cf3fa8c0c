"""Reinitialise: weights drawn as if the network had been built at its widths, and never trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from lwdna.errors import UnsupportedModelError
from lwdna.fx_passes._base import captured, described, graph_pass, own_state
from lwdna.fx_passes.init_law import Fans, InitLaw, draw, fans_of, laws
from lwdna.fx_passes.module import copy_with
from lwdna.fx_passes.refusals import check_values
from lwdna.graph import ChannelGraph

#: From so many entries on, a vector's law is known without a bound.
_MANY = 48


def _of_one_network(arguments: dict[str, Any]) -> None:
    """``like`` is captured, ``graph`` is its channel graph, and ``gm`` has its parameters."""
    captured({"gm": arguments["like"]})
    described({"gm": arguments["like"], "graph": arguments["graph"]})
    new, old = (
        {name: p.dim() for name, p in arguments[key].named_parameters()} for key in ("gm", "like")
    )
    if new != old:
        differ = sorted(name for name in new.keys() | old.keys() if new.get(name) != old.get(name))
        raise ValueError(
            f"like is not the network that gm was shrunk from: {differ[:3]} differ; pass the "
            "captured network as it was before widening"
        )


def _with_values(arguments: dict[str, Any]) -> None:
    """The laws are read from values."""
    check_values(arguments["like"], "drawing weights anew")


@graph_pass(requires=(captured, _of_one_network, _with_values), ensures=(own_state,))
def reinitialise(gm: nn.Module, like: nn.Module, graph: ChannelGraph, *, seed: int) -> nn.Module:
    """Draw every parameter of a resized network anew, by the law of the baseline's tensor.

    The family of the law and its gain are kept: constants (norm gains, zero biases, LayerScale)
    stay, cut normal laws stay cut, position tables and embeddings keep their deviation.
    Batch-norm statistics start anew.

    A layer's output varies by ``Var(w) · fan_in · E[x²] + Var(b)``. So of the weights of
    convolutions and linear layers ``Var · fan_in`` is the baseline's, and of biases ``Var``;
    then every layer inherits its inputs' variance in turn. For weights of a fan-in law that is
    the law itself at the new width. Laws of the fan-out, fixed deviations of weights, and
    torch's default ``1 / fan_in`` of biases presume the regular widths: at others they change a
    layer's variance by the change of fan_in / fan_out, of fan_in, and of 1 / fan_in.

    Measured on the recipes' networks (``benchmarks/bm_initialisation.py``), layer by layer, what
    is drawn here stays within a factor of 2 of the baseline's variance. The literal laws do not:
    those of the fan-out give 0.08 to 10 times on RegNet by magnitude; that of biases 4.1 times in
    MobileNetV3's gates by latent-grad, and 0.45 to 2.5 times in the U-Net, whose
    variance is that of its biases (without them, below a tenth is left in 15 of 23 layers). The
    inputs of a concatenation are drawn alike, though their mean squares may differ and their
    numbers change differently: with one half of each of the U-Net's at 0.2 of its width and the
    other at 2, the layers stay between 0.58 and 1.7.

    Args:
        gm: a captured network of any widths; it is not changed.
        like: the captured baseline, as it was initialised; not changed.
        graph: channel graph of ``like`` (for the roles of its weights).
        seed: of all draws, in the order of the parameters; the global random state is not used.

    Returns:
        A network like ``gm`` (widths, device, modes, flags) with new parameters.

    Raises:
        ValueError: ``gm``, ``like`` and ``graph`` do not belong together.
        UnsupportedModelError: a parameter of another shape than the baseline's has entries of no
            known law there, so that none can be drawn (a table, a trained weight); or ``like`` is
            on the meta device.

    Source: Li et al., "The Heterogeneity Hypothesis", CVPR 2021 (shrunk networks are trained from
    scratch); He et al., "Delving Deep into Rectifiers", ICCV 2015,
    eq. 10; with biases: Poole et al., "Exponential Expressivity in Deep Neural Networks through
    Transient Chaos", NeurIPS 2016 (the length map: weights by 1 / fan_in, biases by a constant).
    """
    generator = torch.Generator().manual_seed(seed)
    old = dict(like.named_parameters())
    found = laws(old, fans_of(like))
    ratios = _Ratios(gm, like, graph)
    new: dict[int, Tensor] = {}
    for name, p in gm.named_parameters():
        law = found[name]
        if law is None:
            new[id(p)] = _kept(name, p, old[name])
        else:
            new[id(p)] = draw(law, p.detach(), ratios(name, law), generator)

    def replacement(tensor: Tensor) -> Tensor:
        drawn = new.get(id(tensor))
        return tensor.detach().clone() if drawn is None else drawn

    result: nn.Module = copy_with(gm, replacement)
    for module in result.modules():
        if isinstance(module, _NormBase):
            module.reset_running_stats()
    return result


def _kept(name: str, new: Tensor, old: Tensor) -> Tensor:
    """The value of a parameter that is no draw: a table of fixed size, or one never trained."""
    if new.shape == old.shape:
        return old.detach().clone()
    if not new.requires_grad:
        return new.detach().clone()
    raise UnsupportedModelError(
        f"parameter {name!r} follows no initialisation law, so its {tuple(new.shape)} entries "
        "cannot be drawn anew: keep the weights of the network it is shrunk from, or pass a model "
        "that was not trained"
    )


class _Ratios:
    """New fan / old fan by which the variance of each parameter's law is divided."""

    def __init__(self, gm: nn.Module, like: nn.Module, graph: ChannelGraph) -> None:
        self._fans: tuple[Mapping[str, Fans], ...] = (fans_of(gm), fans_of(like))
        shapes = [{n: p.shape for n, p in network.named_parameters()} for network in (gm, like)]
        self._vectors = {name for name, shape in shapes[1].items() if len(shape) == 1}
        self._inputs = {
            name: shapes[0][name][role.in_dim] / shapes[1][name][role.in_dim]
            for name, role in graph.roles.items()
        }

    def __call__(self, name: str, law: InitLaw) -> float:
        inputs = self._inputs.get(name)
        if inputs is not None:
            return inputs
        if law.scale == "fixed" or name in self._vectors:
            return 1.0  # a bias is added once, whatever fan its deviation was chosen by
        new, old = (fans[name].of(law.scale) for fans in self._fans)
        return new / old


def looks_trained(model: nn.Module) -> bool:
    """Whether a model is anything else than freshly initialised.

    False only if every parameter is recognisably as it was initialised: norm gains and biases
    constant, weights and biases drawn by a usual law of their fan or with a round deviation, and
    batch-norm statistics at their defaults. What cannot be told counts as trained, so that
    nothing is lost: initialisations of a model's own (orthogonal factors, tables, odd constants
    of deviation) give True.

    Args:
        model: any module; not changed.
    """
    if any(_has_counted(module) for module in model.modules()):
        return True
    parameters = {n: p for n, p in model.named_parameters() if p.is_floating_point()}
    fans = fans_of(model)
    found = laws(parameters, fans)
    return any(not _told(found[name], p, name in fans) for name, p in parameters.items())


def _told(law: InitLaw | None, p: Tensor, has_fans: bool) -> bool:
    """Whether a parameter is recognisably at its initialisation."""
    if law is None or not law.usual:
        return False
    if law.kind == "constant" or p.dim() > 1:
        return True
    # Few entries fit many laws; but a bound is telling, as training knows none.
    return has_fans and ((law.kind, law.scale) == ("uniform", "fan_in") or p.numel() >= _MANY)


def _has_counted(module: nn.Module) -> bool:
    """Whether a norm's running statistics have moved."""
    if not isinstance(module, _NormBase):
        return False
    defaults = ((module.running_mean, 0), (module.running_var, 1), (module.num_batches_tracked, 0))
    return any(t is not None and bool((t != value).any()) for t, value in defaults)
