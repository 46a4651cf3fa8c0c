"""Values as code: numbers, text, containers, types of torch, classes, tensors."""

from __future__ import annotations

import base64
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from lwdna.errors import UnsupportedModelError
from lwdna.export.code import INDENT, Code, Group, call, number, plain, quoted
from lwdna.export.names import Imports

Written = Callable[[Node], Code]
_TORCH = (torch.dtype, torch.layout, torch.memory_format)
#: Tensors of at most this many entries are written out.
_FEW = 64
_TEXT_WIDTH = 76


class Literals:
    """Writes values.

    Args:
        imports: collects what the values need.
        where: what the values belong to, for messages.
        node: writes the nodes among the values.
    """

    def __init__(self, imports: Imports, where: str, node: Written | None = None) -> None:
        self._imports = imports
        self._where = where
        self._node = node

    def of(self, value: Any, hint: str) -> Code:
        """Code that gives this value.

        Args:
            value: a number, text, container, dtype, device, class, or function.
            hint: what to call the numbers in it.

        Raises:
            UnsupportedModelError: the value has no such code.
        """
        if isinstance(value, Node):
            assert self._node is not None
            return self._node(value)
        if value is None or isinstance(value, bool) or value is Ellipsis:
            return ("..." if value is Ellipsis else repr(value),)
        if type(value) in (int, float):
            return number(value, hint)
        if type(value) in (str, bytes, complex):
            return (quoted(value) if isinstance(value, str) else repr(value),)
        if isinstance(value, _TORCH):
            self._imports.add("import torch")
            return (str(value),)
        if isinstance(value, torch.device):
            self._imports.add("import torch")
            return call("torch.device", (quoted(str(value)),))
        if isinstance(value, Enum):
            return (f"{self._imports.name_of(type(value), self._where)}.{value.name}",)
        if isinstance(value, (slice, range)):
            bounds = (value.start, value.stop, value.step)
            return call(type(value).__name__, *(self.of(b, hint) for b in bounds))
        if isinstance(value, (tuple, list, dict)):
            return self._container(value, hint)
        if isinstance(value, type) or callable(value):
            return (self._imports.name_of(value, self._where),)
        raise UnsupportedModelError(
            f"{self._where} holds a value of type {type(value).__name__}, which cannot be written "
            "as code: use numbers, text, lists, tuples and dicts of them"
        )

    def _container(self, value: Any, hint: str) -> Code:
        if isinstance(value, dict):
            ordered = isinstance(value, OrderedDict)
            items = tuple(
                (*plain(self.of(key, hint)), ": ", *self.of(entry, _inner(hint, key)))
                for key, entry in value.items()
            )
            group = Group(items, "{", "}")
            return call(self._imports.name_of(OrderedDict, hint), (group,)) if ordered else (group,)
        items = tuple(self.of(entry, hint) for entry in value)
        if hasattr(value, "_fields"):
            return call(self._imports.name_of(type(value), self._where), *items)
        if isinstance(value, torch.Size):
            self._imports.add("import torch")
            return call("torch.Size", (Group(items, "[", "]"),))
        if isinstance(value, list):
            return (Group(items, "[", "]"),)
        return (Group(items, "(", ",)" if len(items) == 1 else ")"),)


def _inner(hint: str, key: Any) -> str:
    return f"{hint}_{key}" if isinstance(key, str) else hint


class Tables:
    """Writes tensors that no state_dict holds; large ones as text at the end of the file.

    Args:
        imports: collects what the tensors need.
    """

    def __init__(self, imports: Imports) -> None:
        self._imports = imports
        self._names: dict[str, str] = {}  # text -> its name

    def of(self, tensor: Tensor, where: str) -> Code:
        """Code that makes this tensor.

        Raises:
            UnsupportedModelError: it has no values, or is not a plain tensor.
        """
        if tensor.is_meta or tensor.layout is not torch.strided or tensor.is_quantized:
            raise UnsupportedModelError(
                f"{where} is no part of the state_dict, so the file has to hold its values, and it "
                f"is a {tensor.layout} tensor on {tensor.device}: move the network to the CPU"
            )
        self._imports.add("import torch")
        t = tensor.detach().cpu().contiguous()
        dtype: Code = (f"dtype={t.dtype}",)
        shape: Code = (repr(tuple(t.shape)),)
        if t.numel() <= _FEW and t.numel():
            return call("torch.tensor", plain(self._written(t.tolist())), dtype)
        data = _bytes(t)
        if data == data[: t.itemsize] * t.numel():
            value = self._written(t.flatten()[0].item() if t.numel() else 0)
            return call("torch.full", shape, plain(value), dtype)
        text = base64.b64encode(zlib.compress(data, 9)).decode()
        name = self._names.setdefault(text, f"_TABLE_{len(self._names)}")
        return call("table", (name,), (str(t.dtype),), shape)

    def _written(self, value: Any) -> Code:
        return Literals(self._imports, "a constant").of(value, "")

    def lines(self) -> Iterator[str]:
        """The texts, and the function that reads them."""
        if not self._names:
            return
        yield from _READER
        for text, name in self._names.items():
            yield ""
            yield f"{name} = ("
            for k in range(0, len(text), _TEXT_WIDTH):
                yield f'{INDENT}"{text[k : k + _TEXT_WIDTH]}"'
            yield ")"

    def add_imports(self) -> None:
        """Import what reads the texts, if there are any."""
        if self._names:
            self._imports.add("import base64")
            self._imports.add("import zlib")


_READER = (
    "",
    "",
    "def table(text, dtype, shape):",
    f'{INDENT}"""A constant tensor: its bytes (little-endian), compressed, in base64."""',
    f"{INDENT}data = bytearray(zlib.decompress(base64.b64decode(text)))",
    f"{INDENT}return torch.frombuffer(data, dtype=dtype).reshape(shape)",
    "",
)


def _bytes(t: Tensor) -> bytes:
    data: bytes = t.reshape(-1).view(torch.uint8).numpy().tobytes()
    return data


def zeros_like(tensor: Tensor, hint: str) -> Code:
    """``torch.zeros`` of a tensor's shape and dtype."""
    sizes = tuple(number(n, f"{hint}_dim{d}") for d, n in enumerate(tensor.shape)) or (("()",),)
    dtype = () if tensor.dtype is torch.float32 else ((f"dtype={tensor.dtype}",),)
    return call("torch.zeros", *sizes, *dtype)
