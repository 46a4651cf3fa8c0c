"""What modules keep in attributes about their widths, how it is brought up to date, and couplings.

The couplings are those that no single operator of a leaf module shows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _SpectralNorm

from lwdna.fx_passes.members import modules_of
from lwdna.fx_passes.rules.registry import OpCall

Resizer = Callable[[Any, Mapping[str, int], tuple[int, ...]], None]
Coupler = Callable[[OpCall, Any], None]
F = TypeVar("F", bound=Callable[..., None])
_RESIZERS: dict[type, Resizer] = {}
_COUPLERS: dict[type, Coupler] = {}


def resizes(*types: type) -> Callable[[Resizer], Resizer]:
    """Register how modules of ``types`` (and subclasses) take note of their new tensors.

    The function is called as ``f(module, facts, out_shape)``: the module already holds the new
    parameters; ``facts`` are operator quantities that changed (``"groups"`` ...); ``out_shape`` is
    that of a sample, ``()`` where the module's tensors are used and it is not called. A module of
    exactly one of these types is a leaf: not traced through, but analysed operator by operator.

    Raises:
        TypeError: not a module type.
        ValueError: the type has a resizer already.
    """
    return _registration(types, _RESIZERS, "resizer")


def couples(*types: type) -> Callable[[Coupler], Coupler]:
    """Register what ties the channels of leaf modules of ``types`` beyond their operators.

    The function is called as ``f(op, module)`` at each call of such a module; ``op`` is an
    :class:`lwdna.rules.OpCall` whose ``args`` and ``out`` are the module's.

    Raises:
        TypeError: not a module type.
        ValueError: the type has couplings already.
    """
    return _registration(types, _COUPLERS, "coupling")


def _registration(types: tuple[type, ...], registry: dict[type, F], what: str) -> Callable[[F], F]:
    def register(function: F) -> F:
        for t in types:
            if not (isinstance(t, type) and issubclass(t, nn.Module)):
                raise TypeError(f"{t!r} is no module type: a {what} is for subclasses of nn.Module")
            if t in registry:
                raise ValueError(f"{t.__name__} already has a {what}")
            registry[t] = function
        return function

    return register


def _resizer(module: nn.Module) -> Resizer | None:
    return next((_RESIZERS[t] for t in type(module).__mro__ if t in _RESIZERS), None)


def unsupported(module: nn.Module) -> str | None:
    """Why a leaf module cannot be resized, or None if it can."""
    if not (module._modules or module._parameters or module._buffers):
        return None
    if _resizer(module) is None and any(True for _ in module.parameters()):
        return (
            f"module {type(module).__name__} is a leaf of several layers, which has no resize rule"
        )
    for child in modules_of(module):
        holds = any(p is not None for p in (*child._parameters.values(), *child._buffers.values()))
        if holds and _resizer(child) is None:
            return f"module type {type(child).__name__} has no resize rule (lwdna.rules.resizes)"
    return None


def update(module: nn.Module, facts: Mapping[str, int], out_shape: tuple[int, ...]) -> None:
    """Bring the width attributes of a leaf module up to date with its tensors."""
    modes = [(child, child.training) for child in modules_of(module)]
    if any(training for _, training in modes):
        module.eval()  # a spectral norm that is asked for its weight's shape in training iterates
    for child, training in modes:
        resizer = _resizer(child)
        if resizer is not None:
            resizer(child, facts, out_shape)
        if child.training is not training:
            child.training = training


def has_widths(module: nn.Module) -> bool:
    """Whether a leaf module has widths to bring up to date; several layers keep theirs."""
    return _resizer(module) is not None


def declared(module: nn.Module) -> bool:
    """Whether modules of exactly this type were registered, and so are not traced through."""
    return type(module) in _RESIZERS


def couple(module: nn.Module, call: OpCall) -> None:
    """Apply what was declared by :func:`couples` to one call of a leaf module."""
    coupler = next((_COUPLERS[t] for t in type(module).__mro__ if t in _COUPLERS), None)
    if coupler is not None:
        coupler(call, module)


@couples(nn.RNNBase, nn.RNNCellBase)
def _hidden(op: OpCall, module: nn.Module) -> None:
    """All gates, layers and directions of a recurrent module share one ``hidden_size``."""
    for prefix in ("weight_hh", "weight_hr"):
        named = [p for n, p in module.named_parameters() if n.startswith(prefix)]
        for other in named[1:]:
            op.couple(op.vec(named[0])[1], op.vec(other)[1])


@resizes(nn.modules.conv._ConvNd)
def _conv(m: nn.modules.conv._ConvNd, facts: Mapping[str, int], out_shape: tuple[int, ...]) -> None:
    m.groups = facts.get("groups", m.groups)
    first, second = m.weight.shape[:2]
    if m.transposed:
        m.in_channels, m.out_channels = first, second * m.groups
    else:
        m.in_channels, m.out_channels = second * m.groups, first


@resizes(nn.Linear)
def _linear(m: nn.Linear, facts: Mapping[str, int], out_shape: tuple[int, ...]) -> None:
    m.out_features, m.in_features = m.weight.shape


@resizes(nn.Bilinear)
def _bilinear(m: nn.Bilinear, facts: Mapping[str, int], out_shape: tuple[int, ...]) -> None:
    m.out_features, m.in1_features, m.in2_features = m.weight.shape


@resizes(nn.modules.batchnorm._NormBase)
def _norm_base(m: Any, facts: Mapping[str, int], out_shape: tuple[int, ...]) -> None:
    known = next((t for t in (m.weight, m.running_mean) if t is not None), None)
    m.num_features = out_shape[1] if known is None else len(known)


@resizes(nn.LayerNorm, nn.RMSNorm)
def _layer_norm(m: Any, facts: Mapping[str, int], out_shape: tuple[int, ...]) -> None:
    last = out_shape[len(out_shape) - len(m.normalized_shape) :]
    m.normalized_shape = tuple(last if m.weight is None else m.weight.shape)


@resizes(nn.GroupNorm)
def _group_norm(m: nn.GroupNorm, facts: Mapping[str, int], out_shape: tuple[int, ...]) -> None:
    m.num_channels = out_shape[1] if m.weight is None else len(m.weight)
    m.num_groups = facts.get("num_groups", m.num_groups)


@resizes(nn.ChannelShuffle)
def _shuffle(m: nn.ChannelShuffle, facts: Mapping[str, int], out_shape: tuple[int, ...]) -> None:
    m.groups = facts.get("groups", m.groups)


@resizes(nn.PReLU)
def _prelu(m: nn.PReLU, facts: Mapping[str, int], out_shape: tuple[int, ...]) -> None:
    m.num_parameters = m.weight.numel()


@resizes(nn.Embedding)
def _embedding(m: nn.Embedding, facts: Mapping[str, int], out_shape: tuple[int, ...]) -> None:
    m.num_embeddings, m.embedding_dim = m.weight.shape


@resizes(nn.RNNBase)
def _recurrent(m: Any, facts: Mapping[str, int], out_shape: tuple[int, ...]) -> None:
    m.input_size = m.weight_ih_l0.shape[1]
    m.hidden_size = m.weight_hh_l0.shape[1]
    if m.proj_size:  # what is fed back is projected: (projection, hidden)
        m.proj_size, m.hidden_size = m.weight_hr_l0.shape


@resizes(nn.RNNCellBase)
def _cell(m: nn.RNNCellBase, facts: Mapping[str, int], out_shape: tuple[int, ...]) -> None:
    m.input_size, m.hidden_size = m.weight_ih.shape[1], m.weight_hh.shape[1]


@resizes(parametrize.ParametrizationList, _SpectralNorm)
def _parametrized(m: nn.Module, facts: Mapping[str, int], out_shape: tuple[int, ...]) -> None:
    """Weight and spectral normalisation know no widths; their layer asks for the weight's shape."""


@resizes(nn.Unflatten)
def _unflatten(m: nn.Unflatten, facts: Mapping[str, int], out_shape: tuple[int, ...]) -> None:
    if isinstance(m.dim, int):
        start = m.dim % (len(out_shape) - len(m.unflattened_size) + 1)
        m.unflattened_size = tuple(out_shape[start : start + len(m.unflattened_size)])
