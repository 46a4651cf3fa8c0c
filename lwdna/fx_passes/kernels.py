"""Meta kernels, remembered: a functional operator's result on meta tensors follows from metadata.

Most of PyTorch's meta kernels are Python decompositions that take 0.1 to 1 ms, and a network
calls the same few combinations of operator and shapes in every block, in both traces and in every
time step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from lwdna.fx_passes.trees import tree_leaves

#: Shape, strides, dtype of a result.
_Layout = tuple[tuple[int, ...], tuple[int, ...], torch.dtype]


class MetaKernels:
    """Runs operators, and remembers the layouts that functional ones return on meta tensors.

    Made for one pass: what a layout depends on besides the arguments (the default dtype) must not
    change while it lives.
    """

    def __init__(self) -> None:
        self._known: dict[Any, tuple[bool, list[_Layout]]] = {}

    def __call__(self, func: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """``func(*args, **kwargs)``: new tensors, whether its layout was remembered or not."""
        if not _is_functional(func):
            return func(*args, **kwargs)
        try:
            key = (func, _signature(args), _signature(tuple(kwargs.items())))
            known = self._known.get(key)
        except TypeError:  # an argument that is no plain value
            return func(*args, **kwargs)
        if known is None:
            result = func(*args, **kwargs)
            tensors = [result] if isinstance(result, Tensor) else result
            if all(t.is_meta for t in tensors) and not _share(tensors, (args, kwargs)):
                layouts = [(tuple(t.shape), t.stride(), t.dtype) for t in tensors]
                self._known[key] = (isinstance(result, Tensor), layouts)
            return result
        lone, layouts = known
        new = [torch.empty_strided(n, s, dtype=d, device="meta") for n, s, d in layouts]
        return new[0] if lone else tuple(new)


@cache
def _is_functional(func: OpOverload) -> bool:
    """Whether an operator takes tensors, writes to none, and returns new ones only."""
    arguments, returns = func._schema.arguments, func._schema.returns
    return (
        any("Tensor" in str(a.type) for a in arguments)
        and len(returns) > 0  # an assertion returns nothing
        and all(str(r.type) == "Tensor" for r in returns)
        and not any(a.alias_info for a in arguments)
    )


def _share(results: Iterable[Tensor], arguments: Any) -> bool:
    """Whether a result is an argument after all, as dropout's is in evaluation mode."""
    given = {t.untyped_storage()._cdata for t in tree_leaves(arguments) if isinstance(t, Tensor)}
    return any(t.untyped_storage()._cdata in given for t in results)


def _signature(value: Any) -> Any:
    """What a meta kernel can see of an argument; ``1``, ``1.0`` and ``True`` are told apart.

    Raises:
        TypeError: a tensor with data, whose kernel computes.
    """
    if isinstance(value, Tensor):
        if not value.is_meta:
            raise TypeError("a tensor with data")
        return value.shape, value.stride(), value.dtype
    if isinstance(value, (tuple, list)):
        return tuple(map(_signature, value))
    return type(value), value


class MetaMode(TorchDispatchMode):
    """Sends every operator to remembered meta kernels."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._kernels = MetaKernels()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return self._kernels(func, args, kwargs or {})
