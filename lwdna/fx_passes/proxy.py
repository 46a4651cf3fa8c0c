"""Proxies that know a meta-tensor *hint* of their value, and answer Python from it."""

from __future__ import annotations

import dis
import math
import operator
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.fx import Node, Proxy

from lwdna.errors import CaptureError

if TYPE_CHECKING:
    from lwdna.fx_passes.tracer import HintedTracer


_INVARIANT = ("ndim", "is_cuda", "is_quantized", "is_sparse", "layout", "names")


_OPAQUE = object()
_SIZES = (int, float, tuple)
_DEVICE_TYPE = "cpu"
_LENGTH = len  # whose name means another function while a network is traced
_COMPARISONS = (operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge)
_NOT_THE_MODEL = (str(Path(torch.__file__).parent), str(Path(__file__).parent), "<")


def source_line(error: BaseException | None = None) -> str:
    """The innermost frame of the model's own code, as ``package/file.py:line: text``.

    Graphs quote it in their assertions, and are saved: the file is named from the directory down
    that Python imports it from, so that nothing tells of the machine.

    Args:
        error: look at where this was raised, not at where we are.
    """
    frames = (
        traceback.extract_stack() if error is None else traceback.extract_tb(error.__traceback__)
    )
    for frame in reversed(frames):
        if not frame.filename.startswith(_NOT_THE_MODEL):
            return f"{_portable(Path(frame.filename))}:{frame.lineno}: {frame.line}"
    return "(unknown source line)"


def _portable(file: Path) -> str:
    places = [place for place in map(Path.absolute, map(Path, sys.path)) if place in file.parents]
    if not places:
        return file.name
    nearest = max(places, key=lambda place: len(place.parts))
    return file.relative_to(nearest).as_posix()


class HintedProxy(Proxy):
    """A proxy with the value it would have on meta tensors."""

    hint: Any
    tracer: HintedTracer

    def __init__(self, node: Node, tracer: HintedTracer, hint: Any = _OPAQUE) -> None:
        super().__init__(node, tracer)
        self.hint = hint

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        if isinstance(self.hint, dict) and name in ("values", "items"):
            _guard_length(self)
            pairs = [(key, self._entry(key)) for key in self.hint]
            return lambda: pairs if name == "items" else [value for _, value in pairs]
        value = getattr(self.hint, name)
        if callable(value) and not isinstance(value, Tensor):
            if name == "dim" and isinstance(self.hint, Tensor):
                return value
            return _BoundMethod(self, name)
        if name == "is_meta":
            return False
        if name == "requires_grad":  # hints are evaluated without gradients
            return self.tracer.gradients.required(self.node)
        if name in _INVARIANT and isinstance(self.hint, Tensor):
            return value
        found = self.tracer.create_proxy("call_function", getattr, (self, name), {})
        if name == "type" and isinstance(self.hint, torch.device):
            # Models leave regions out on the meta device, where hints are; networks run elsewhere.
            found.hint = found.node.meta["hint"] = _DEVICE_TYPE
        return found

    def _concrete(self, what: str) -> Any:
        if isinstance(self.hint, Tensor):
            raise CaptureError(
                f"{what} of a tensor's values decides the control flow at {source_line()}. The "
                "network is not one static graph; take the decision from shapes or attributes, "
                "or move it out of the model."
            )
        _guard(self)
        return self.hint

    def __bool__(self) -> bool:
        return bool(self._concrete("the truth"))

    def __index__(self) -> int:
        return operator.index(self._concrete("an index"))

    def __int__(self) -> int:
        return int(self._concrete("the integer"))

    def __float__(self) -> float:
        return float(self._concrete("the float"))

    def __len__(self) -> int:
        if isinstance(self.hint, Tensor):
            return operator.index(self.shape[0])
        _guard_length(self)
        return len(self.hint)

    def __contains__(self, item: Any) -> bool:
        return any(bool(entry == item) for entry in self)

    def __iter__(self) -> Iterator[Any]:
        unpacked = _unpacks(sys._getframe(1)) and self.node.op != "placeholder"
        n = len(self.hint) if unpacked else len(self)
        return iter(self.hint if isinstance(self.hint, dict) else map(self._entry, range(n)))

    def _entry(self, key: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.getitem, (self, key), {})

    def keys(self) -> Any:
        """Keys of a dict's hint."""
        _guard_length(self)
        return self.hint.keys()

    def __setitem__(self, key: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, key, value), {})

    def __format__(self, spec: str) -> str:
        return format(self.hint if not isinstance(self.hint, Tensor) else repr(self), spec)

    def __round__(self, digits: int | None = None) -> Any:
        arguments = (self,) if digits is None else (self, digits)
        return self.tracer.create_proxy("call_function", round, arguments, {})

    def __ceil__(self) -> Any:
        return self.tracer.create_proxy("call_function", math.ceil, (self,), {})

    def __floor__(self) -> Any:
        return self.tracer.create_proxy("call_function", math.floor, (self,), {})

    def __trunc__(self) -> Any:
        return self.tracer.create_proxy("call_function", math.trunc, (self,), {})


def _guard(proxy: HintedProxy) -> None:
    """Assert in the graph that a size which decided the control flow is the one traced.

    The graph would silently compute something else at another size than the model does.
    """
    node, value, tracer = proxy.node, proxy.hint, proxy.tracer
    if tracer.evaluation.running or "guarded" in node.meta:
        return
    sizes = [proxy] if not isinstance(value, bool) else _operands(node)
    if not sizes or not all(isinstance(hint_of(s), _SIZES) for s in sizes):
        return  # dtypes, devices and flags are free to change, as in the model
    node.meta["guarded"] = True
    message = f"the control flow was captured for {value!r} at {source_line()}: capture again"
    _assert_equal(proxy, value, message)


def _guard_length(proxy: HintedProxy) -> None:
    """Assert in the graph that a container over which the model went has as many entries."""
    node, value, tracer = proxy.node, proxy.hint, proxy.tracer
    if tracer.evaluation.running or "guarded" in node.meta:
        return
    if not isinstance(value, (list, dict)) and type(value) is not tuple:
        return  # a shape, or a tuple with named fields: as long for any input
    node.meta["guarded"] = True
    what = f"the argument {node.target!r}" if node.op == "placeholder" else repr(node.name)
    message = (
        f"{what} had {len(value)} entries when the network was captured, which goes over them at "
        f"{source_line()}: give {len(value)}, or capture again with as many as you give"
    )
    length = tracer.create_proxy("call_function", _LENGTH, (proxy,), {})
    _assert_equal(length, len(value), message)


def _assert_equal(proxy: HintedProxy, value: Any, message: str) -> None:
    condition = proxy
    if value is False:
        condition = proxy.tracer.create_proxy("call_function", operator.not_, (proxy,), {})
    elif value is not True:  # torch.jit.trace, to which sizes are tensors, compares none to a bool
        condition = proxy.tracer.create_proxy("call_function", operator.eq, (proxy, value), {})
    proxy.tracer.create_proxy("call_function", torch._assert, (condition, message), {})


def _unpacks(frame: FrameType) -> bool:
    """Whether a frame is at ``a, b = ...``, where the model takes no other number either."""
    return frame.f_code.co_code[frame.f_lasti] == dis.opmap["UNPACK_SEQUENCE"]


def _operands(node: Node) -> list[Any]:
    """What a comparison compares; nothing if the truth value comes from elsewhere."""
    return list(node.args) if node.target in _COMPARISONS else []


def _in_place(name: str) -> Callable[[HintedProxy, Any], Any]:
    function = getattr(operator, name)

    def method(self: HintedProxy, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return method


IN_PLACE = ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "iand", "ior", "ixor")
for _name in IN_PLACE:
    setattr(HintedProxy, f"__{_name}__", _in_place(_name))


def has_effect(node: Node) -> bool:
    """Whether a node does something besides returning a value."""
    if node.op == "call_method":
        method = str(node.target)
        return method.endswith("_") and not method.endswith("__")
    if node.op != "call_function":
        return node.is_impure()
    name = getattr(node.target, "__name__", "")
    return (
        node.is_impure()
        or name in IN_PLACE
        or (name.endswith("_") and not name.endswith("__"))
        or bool(node.kwargs.get("inplace"))
        or "out" in node.kwargs
    )


class _BoundMethod:
    """A method of a hinted value, recorded when called."""

    def __init__(self, owner: HintedProxy, name: str) -> None:
        self.owner, self.name = owner, name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.owner.tracer.create_proxy("call_method", self.name, (self.owner, *args), kwargs)


def is_proxy(value: Any) -> bool:
    """Whether a value is a hinted proxy (``isinstance`` answers for the hint instead)."""
    return type(value) is HintedProxy


def hint_of(argument: Any) -> Any:
    """The hint of a node or proxy; any other value is its own hint."""
    if isinstance(argument, Node):
        return argument.meta["hint"]
    return argument.hint if is_proxy(argument) else argument
