"""Meta kernels, remembered: a functional operator's result on meta tensors follows from metadata.

Most of PyTorch's meta kernels are Python decompositions that take 0.1 to 5 ms, and networks call
the same few combinations of operator and shapes in every block, in every pass and in every time
step.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from lwdna.fx_passes.formulas import by_formula
from lwdna.fx_passes.layouts import Layout, Pattern, is_parametric
from lwdna.trees import tree_leaves

aten = torch.ops.aten


#: Return a view where the strides allow it, and a copy otherwise.
_MAYBE_VIEWS = frozenset((aten.contiguous.default, aten.reshape.default, aten.reshape_as.default))
#: Entries of a memory, of about a kilobyte each.
_MOST = 1 << 14


class MetaKernels:
    """Runs operators, and knows the layouts that most of them return on meta tensors.

    A layout follows by formula (:mod:`lwdna.fx_passes.formulas`), is that of a call which differed
    in the names of sizes only (:mod:`lwdna.fx_passes.layouts`), or that of the same call (whatever
    else returns new tensors). All passes share one memory, :data:`KERNELS`; of what a layout
    depends on besides the arguments, the default dtype is remembered too. Operators of other
    libraries, whose kernels may be registered anew, are run each time.
    """

    def __init__(self) -> None:
        self._known: dict[Any, tuple[bool, list[Layout]]] = {}
        self._named: dict[Any, tuple[bool, Any]] = {}

    def forget(self) -> None:
        """Know no layouts, as in a new process."""
        self._known.clear()
        self._named.clear()

    def __call__(self, func: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """``func(*args, **kwargs)``: new tensors, whether its layout was known or not."""
        layout = by_formula(func, args, kwargs)
        if layout is not None:
            return args[0] if _is_in_place(func) else _made(True, [layout])
        functional = _is_functional(func)
        if is_parametric(func) and (functional or _is_in_place(func)):
            try:
                pattern = Pattern(func, args, kwargs, torch.get_default_dtype())
            except TypeError:  # an argument that is no plain value, or a tensor of other strides
                pass
            else:
                return self._by_pattern(pattern, func, args, kwargs)
        if not (functional or func in _MAYBE_VIEWS):
            return func(*args, **kwargs)
        return self._by_call(func, args, kwargs)

    def _by_pattern(
        self, pattern: Pattern, func: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        known = self._named.get(pattern.key)
        if known is not None:
            lone, named = known
            return args[0] if named is None else _made(lone, pattern.layouts(named))
        before = _layout(args[0]) if isinstance(args[0], Tensor) else None
        result = func(*args, **kwargs)
        lone = isinstance(result, Tensor)
        if result is args[0]:
            if _layout(result) == before:
                self._remember(self._named, pattern.key, (lone, None))
        else:
            named = pattern.named(_new_tensors(result, args, kwargs))
            if named is not None:
                self._remember(self._named, pattern.key, (lone, named))
        return result

    def _by_call(self, func: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        try:
            own = _signature(args), _signature(tuple(kwargs.items()))
            key = (func, *own, torch.get_default_dtype())
            known = self._known.get(key)
        except TypeError:  # an argument that is no plain value
            return func(*args, **kwargs)
        if known is not None:
            return _made(*known)
        result = func(*args, **kwargs)
        tensors = _new_tensors(result, args, kwargs)
        if tensors:
            entry = isinstance(result, Tensor), [_layout(t) for t in tensors]
            self._remember(self._known, key, entry)
        return result

    @staticmethod
    def _remember(memory: dict[Any, Any], key: Any, entry: Any) -> None:
        if len(memory) >= _MOST:
            memory.clear()
        memory[key] = entry


#: The memory of all passes.
KERNELS = MetaKernels()


def _layout(tensor: Tensor) -> Layout:
    return tuple(tensor.shape), tensor.stride(), tensor.dtype


def _made(lone: bool, layouts: list[Layout]) -> Any:
    new = [torch.empty_strided(n, s, dtype=d, device="meta") for n, s, d in layouts]
    return new[0] if lone else tuple(new)


def _new_tensors(result: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """What a functional operator returned; nothing if that is an argument after all.

    Dropout in evaluation mode returns what it was given.
    """
    tensors = [result] if isinstance(result, Tensor) else list(result)
    given = {
        t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)
    }
    new = all(t.is_meta and t.untyped_storage()._cdata not in given for t in tensors)
    return tensors if new else []


@cache
def _is_functional(func: OpOverload) -> bool:
    """Whether an operator of torch takes tensors, writes to none, and returns new ones only."""
    arguments, returns = func._schema.arguments, func._schema.returns
    return (
        func.namespace == "aten"
        and any("Tensor" in str(a.type) for a in arguments)
        and len(returns) > 0  # an assertion returns nothing
        and all(str(r.type) == "Tensor" for r in returns)
        and not any(a.alias_info for a in arguments)
    )


@cache
def _is_in_place(func: OpOverload) -> bool:
    """Whether an operator writes to its first argument only, and returns it."""
    first, *rest = func._schema.arguments
    returns = func._schema.returns
    return (
        bool(first.alias_info and first.alias_info.is_write)
        and not any(a.alias_info for a in rest)
        and len(returns) == 1
        and bool(returns[0].alias_info)
        and torch.Tag.inplace_view not in func.tags
    )


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
    """Sends every operator to the remembered meta kernels."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return KERNELS(func, args, kwargs or {})
