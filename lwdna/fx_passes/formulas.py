"""Layouts that follow from an operator's arguments by a formula, so that it need not run.

Every formula holds for contiguous tensors alone, whose strides follow from their sizes, and returns
None where it is not sure to hold, which includes whatever the operator refuses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from lwdna.fx_passes.layouts import Layout, is_dense, strides_of

aten = torch.ops.aten

Formula = Callable[..., Layout | None]


def by_formula(func: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Layout | None:
    """Layout of an operator's lone result; None if no formula is sure to hold.

    Args:
        func: the operator.
        args: its positional arguments.
        kwargs: its named arguments; a formula is for calls without any.
    """
    formula = _FORMULAS.get(func)
    return None if formula is None or kwargs else formula(*args)


def _contiguous(shape: tuple[int, ...], dtype: torch.dtype) -> Layout:
    return shape, strides_of(shape), dtype


def _convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
) -> Layout | None:
    """Layout of a plain, grouped or depthwise convolution.

    Source: https://pytorch.org/docs/stable/generated/torch.nn.Conv2d.html ("Shape").
    """
    rank = x.dim() - 2
    if transposed or rank < 1 or weight.dim() != rank + 2:
        return None
    tensors = [x, weight] if bias is None else [x, weight, bias]
    fits = (
        x.shape[1] == weight.shape[1] * groups
        and weight.shape[0] % groups == 0
        and (bias is None or bias.shape == weight.shape[:1])
        and all(is_dense(t) and t.dtype is x.dtype for t in tensors)
        and x.dtype.is_floating_point
    )
    options = (_per_dimension(o, rank) for o in (stride, padding, dilation))
    spatial = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(x.shape[2:], weight.shape[2:], *options, strict=True)
    ]
    shape = (x.shape[0], weight.shape[0], *spatial)
    if not fits or min(*shape, *x.shape, *weight.shape) < 1:
        return None
    return _contiguous(shape, x.dtype)


def _plain_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Layout | None:
    return _convolution(x, weight, bias, stride, padding, dilation, False, 0, groups)


def _per_dimension(option: Any, rank: int) -> list[int]:
    values = [option] if isinstance(option, int) else list(option)
    return values * rank if len(values) == 1 else values


def _reduction(x: Tensor, dim: Sequence[int] | None = None, keepdim: bool = False) -> Layout | None:
    """Layout of a mean, sum or extremum of floats.

    Source: https://pytorch.org/docs/stable/generated/torch.mean.html.
    """
    rank = x.dim()
    over = {d % rank for d in dim or range(rank) if -rank <= d < rank}
    valid = len(over) == len(dim or range(rank))
    if not (valid and rank and is_dense(x) and x.dtype.is_floating_point and min(x.shape) > 0):
        return None
    kept = [(1 if d in over else n) for d, n in enumerate(x.shape) if keepdim or d not in over]
    return _contiguous(tuple(kept), x.dtype)


def _concatenation(tensors: Sequence[Tensor], dim: int = 0) -> Layout | None:
    """Layout of tensors one after the other.

    Source: https://pytorch.org/docs/stable/generated/torch.cat.html.
    """
    first = tensors[0]
    rank = first.dim()
    if not -rank <= dim < rank:
        return None
    before, after = first.shape[: dim % rank], first.shape[dim % rank + 1 :]
    if not all(
        is_dense(t)
        and t.dtype is first.dtype
        and t.dim() == rank
        and t.shape[: dim % rank] == before
        and t.shape[dim % rank + 1 :] == after
        and min(t.shape) > 0
        for t in tensors
    ):
        return None
    length = sum(t.shape[dim] for t in tensors)
    return _contiguous((*before, length, *after), first.dtype)


def _layer_norm(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *_: Any,
) -> Layout | None:
    """Layout of what is normalised over its last dimensions.

    Source: https://pytorch.org/docs/stable/generated/torch.nn.LayerNorm.html ("Shape").
    """
    tensors = [t for t in (weight, bias) if t is not None]
    size = tuple(normalized_shape)
    fits = (
        0 < len(size) <= x.dim()
        and tuple(x.shape[x.dim() - len(size) :]) == size
        and all(is_dense(t) and t.dtype is x.dtype for t in (x, *tensors))
        and all(tuple(t.shape) == size for t in tensors)
        and x.dtype.is_floating_point
    )
    return _contiguous(tuple(x.shape), x.dtype) if fits else None


def _roll(x: Tensor, shifts: Sequence[int], dims: Sequence[int] = ()) -> Layout | None:
    """Layout of shifted entries.

    Source: https://pytorch.org/docs/stable/generated/torch.roll.html.
    """
    rank = x.dim()
    fits = len(shifts) == len(dims) > 0 and all(-rank <= d < rank for d in dims)
    return _contiguous(tuple(x.shape), x.dtype) if fits and is_dense(x) else None


def _pointwise(*args: Any) -> Layout | None:
    """Layout of a function of the entries at one place, of floats of one type and of numbers.

    The largest tensor has the shape of the result, to which the others are broadcast.

    Source: https://docs.pytorch.org/docs/stable/notes/broadcasting.html.
    """
    tensors = [a for a in args if isinstance(a, Tensor)]
    numbers = all(isinstance(a, (Tensor, int, float, type(None))) for a in args)
    x = max(tensors, key=Tensor.numel)
    shape, dtype = tuple(x.shape), x.dtype
    if not (numbers and dtype.is_floating_point and is_dense(x) and 0 not in shape):
        return None
    fits = all(
        t.dtype is dtype
        and is_dense(t)
        and t.dim() <= len(shape)
        and all(n in (1, m) for n, m in zip(t.shape[::-1], shape[::-1], strict=False))
        for t in tensors
    )
    return _contiguous(shape, dtype) if fits else None


def _written(x: Tensor, *others: Any) -> Layout | None:
    """Layout of what an operator writes to its first argument, and returns."""
    layout = _pointwise(x, *others)
    return layout if layout is not None and layout[0] == x.shape else None


def _batch_norm(
    x: Tensor, weight: Any, bias: Any, mean: Any, variance: Any, *_: Any
) -> Layout | None:
    """Layout of what is normalised over all dimensions but the second.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.BatchNorm2d.html ("Shape").
    """
    channels = [t for t in (weight, bias, mean, variance) if t is not None]
    fits = (
        x.dim() > 1
        and is_dense(x)
        and x.dtype.is_floating_point
        and min(x.shape) > 0
        and all(t.shape == x.shape[1:2] and t.dtype is x.dtype and is_dense(t) for t in channels)
    )
    return _contiguous(tuple(x.shape), x.dtype) if fits else None


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Layout | None:
    """Layout of a product with a matrix of weights.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.Linear.html ("Shape").
    """
    tensors = [x, weight] if bias is None else [x, weight, bias]
    fits = (
        x.dim() > 0
        and weight.dim() == 2
        and x.shape[-1] == weight.shape[1]
        and (bias is None or bias.shape == weight.shape[:1])
        and all(is_dense(t) and t.dtype is x.dtype for t in tensors)
        and x.dtype.is_floating_point
        and min(*x.shape, *weight.shape) > 0
    )
    return _contiguous((*x.shape[:-1], weight.shape[0]), x.dtype) if fits else None


#: Operators that map floats to floats, one by one or two by two.
POINTWISE = (
    aten.add.Tensor,
    aten.clamp.default,
    aten.div.Tensor,
    aten.elu.default,
    aten.exp.default,
    aten.gelu.default,
    aten.hardsigmoid.default,
    aten.hardswish.default,
    aten.hardtanh.default,
    aten.leaky_relu.default,
    aten.mish.default,
    aten.mul.Tensor,
    aten.relu.default,
    aten.sigmoid.default,
    aten.silu.default,
    aten.softplus.default,
    aten.sub.Tensor,
    aten.tanh.default,
)
#: The same in place.
WRITING = (
    aten.add_.Tensor,
    aten.clamp_.default,
    aten.div_.Tensor,
    aten.elu_.default,
    aten.gelu_.default,
    aten.hardsigmoid_.default,
    aten.hardswish_.default,
    aten.hardtanh_.default,
    aten.leaky_relu_.default,
    aten.mish_.default,
    aten.mul_.Tensor,
    aten.relu_.default,
    aten.sigmoid_.default,
    aten.silu_.default,
    aten.sub_.Tensor,
    aten.tanh_.default,
)

_FORMULAS: dict[OpOverload, Formula] = {
    **dict.fromkeys(POINTWISE, _pointwise),
    **dict.fromkeys(WRITING, _written),
    aten.amax.default: _reduction,
    aten.amin.default: _reduction,
    aten.batch_norm.default: _batch_norm,
    aten.cat.default: _concatenation,
    aten.conv1d.default: _plain_convolution,
    aten.conv2d.default: _plain_convolution,
    aten.conv3d.default: _plain_convolution,
    aten.convolution.default: _convolution,
    aten.layer_norm.default: _layer_norm,
    aten.linear.default: _linear,
    aten.mean.dim: _reduction,
    aten.roll.default: _roll,
    aten.sum.dim_IntList: _reduction,
}
