"""Layouts of results, worked out from those of the arguments instead of by running an operator.

What a pointwise operator, a norm or a product returns has sizes of its arguments, so two calls that
differ in the names of sizes only return the same, up to these names. This is used on contiguous
tensors alone, whose strides follow from their sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

aten = torch.ops.aten

#: Shape, strides, dtype of a result.
Layout = tuple[tuple[int, ...], tuple[int, ...], torch.dtype]

#: Operators that, like all pointwise ones, return sizes of their arguments.
_PARAMETRIC = frozenset(
    (
        aten.addmm,
        aten.baddbmm,
        aten.batch_norm,
        aten.bmm,
        aten.celu_,
        aten.copy_,
        aten.dropout,
        aten.dropout_,
        aten.hardswish,
        aten.hardswish_,
        aten.linear,
        aten.matmul,
        aten.mm,
        aten.native_batch_norm,
        aten.native_dropout,
        aten.native_layer_norm,
        aten.softmax,
        aten._softmax,
    )
)


@cache
def strides_of(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of a contiguous tensor.

    Source: torch._prims_common.make_contiguous_strides_for.
    """
    strides, step = [], 1
    for n in reversed(shape):
        strides.append(step)
        step *= max(n, 1)
    return tuple(reversed(strides))


def is_dense(tensor: Tensor) -> bool:
    """Whether a meta tensor's strides follow from its shape."""
    return tensor.is_meta and tensor.stride() == strides_of(tuple(tensor.shape))


def meta_like(tensor: Tensor) -> Tensor:
    """``torch.empty_like(tensor, device="meta")``, whose own kernel takes ten times as long."""
    if tensor.layout is not torch.strided or tensor.stride() != strides_of(tuple(tensor.shape)):
        return torch.empty_like(tensor, device="meta")
    # torch.empty would be recorded where a model is being traced.
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


@cache
def is_parametric(func: OpOverload) -> bool:
    """Whether an operator's results have sizes of its tensor arguments, and no others."""
    return func.overloadpacket in _PARAMETRIC or torch.Tag.pointwise in func.tags


class Pattern:
    """What is equal among the sizes of one call's tensors; 0 and 1 are themselves.

    Args:
        arguments: of an operator.

    Attributes:
        key: equal for two calls that differ in the names of sizes only.

    Raises:
        TypeError: an argument is a tensor with data or with other strides, or cannot be a key.
    """

    def __init__(self, *arguments: Any) -> None:
        self._names: dict[int, int] = {0: 0, 1: 1}
        self.key = self._of(arguments)
        hash(self.key)

    def _of(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            if not is_dense(value):
                raise TypeError("not a contiguous meta tensor")
            names = self._names
            return value.dtype, *[names.setdefault(n, len(names)) for n in value.shape]
        if isinstance(value, (tuple, list)):
            return tuple(map(self._of, value))
        if isinstance(value, dict):
            return tuple((name, self._of(entry)) for name, entry in value.items())
        return type(value), value

    def named(self, tensors: Sequence[Tensor]) -> list[tuple[torch.dtype, list[int]]] | None:
        """Results with the names of their sizes; None if a size or a stride is not by rule."""
        if not tensors or not all(
            is_dense(t) and all(n in self._names for n in t.shape) for t in tensors
        ):
            return None
        return [(t.dtype, [self._names[n] for n in t.shape]) for t in tensors]

    def layouts(self, named: Sequence[tuple[torch.dtype, list[int]]]) -> list[Layout]:
        """The layouts of results that another call of this pattern has named."""
        sizes = list(self._names)
        shapes = [(dtype, tuple([sizes[name] for name in names])) for dtype, names in named]
        return [(shape, strides_of(shape), dtype) for dtype, shape in shapes]
