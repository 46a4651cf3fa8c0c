"""Names of what the exported file imports, and names that it may use itself."""

from __future__ import annotations

import builtins
import keyword
import math
import operator
import re
import sys
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch._ops import OpOverload, OpOverloadPacket

from lwdna.errors import UnsupportedModelError

#: Where a class or function is looked for first: module, how it is called there, what to import.
_KNOWN: tuple[tuple[Any, str, str], ...] = (
    (builtins, "", ""),
    (nn, "nn.", "from torch import nn"),
    (F, "F.", "import torch.nn.functional as F"),
    (torch, "torch.", "import torch"),
    (math, "math.", "import math"),
    (operator, "operator.", "import operator"),
    (torch.Tensor, "torch.Tensor.", "import torch"),
)
#: Libraries of operators under ``torch.ops``, and what registers them.
_OPERATORS = {
    "aten": "import torch",
    "prim": "import torch",
    "prims": "import torch",
    "torchvision": "import torchvision",
}
#: Names in the file that nothing else may have.
TAKEN = frozenset(
    (
        *("F", "OrderedDict", "base64", "math", "nn", "operator", "self", "table", "timm", "torch"),
        *("torchvision", "zlib"),
    )
)
_BUILTINS = frozenset(dir(builtins))


class Imports:
    """What the file imports, collected while it is written."""

    def __init__(self) -> None:
        self._lines: set[str] = {"from torch import nn"}

    def add(self, line: str) -> None:
        """Import by this statement."""
        self._lines.add(line)

    def lines(self) -> list[str]:
        """The statements, the standard library's first."""
        ordered = sorted(self._lines, key=lambda line: (line.startswith("from"), line.lower()))
        own = [line for line in ordered if line.split()[1].split(".")[0] in sys.stdlib_module_names]
        others = [line for line in ordered if line not in own]
        return [*own, *([""] if own else []), *others]

    def name_of(self, value: Any, where: str) -> str:
        """How the file calls a class or function, which is then imported.

        Args:
            value: a class, a function, an operator.
            where: what needs it, for the message.

        Raises:
            UnsupportedModelError: no import gives it.
        """
        if isinstance(value, (OpOverload, OpOverloadPacket)):
            return self._operator(value, where)
        name = getattr(value, "__name__", "")
        for holder, prefix, line in _KNOWN:
            if name and getattr(holder, name, None) is value:
                if line:
                    self.add(line)
                return prefix + name
        return self._imported(value, where)

    def _operator(self, value: Any, where: str) -> str:
        name = str(value)
        line = _OPERATORS.get(name.partition(".")[0])
        if line is None:
            raise UnsupportedModelError(
                f"{where} calls torch.ops.{name}, and nothing tells which import registers it: "
                "export is for operators of torch and torchvision"
            )
        self.add(line)
        self.add("import torch")
        return f"torch.ops.{name}"

    def _imported(self, value: Any, where: str) -> str:
        """By the shortest module name that has it: where libraries show what they keep below."""
        module, name = _place(value)
        parts = module.split(".")
        for k in range(1, len(parts) + 1):
            prefix = ".".join(parts[:k])
            if name and module != "__main__" and _find(sys.modules.get(prefix), name) is value:
                self.add(f"import {prefix}")
                return f"{prefix}.{name}"
        raise UnsupportedModelError(
            f"{where} needs {name or value!r} of {module or 'no module'}, which no import finds: "
            "define it at the top level of a module that can be imported"
        )


def _place(value: Any) -> tuple[str, str]:
    """(module, name in it) of a class or function; of a scripted function by what it is called."""
    if isinstance(value, torch.jit.ScriptFunction):
        module, _, name = value.qualified_name.removeprefix("__torch__.").rpartition(".")
        return module, name
    module = getattr(value, "__module__", None) or ""
    return module, getattr(value, "__qualname__", "")


def _find(module: ModuleType | None, name: str) -> Any:
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def is_identifier(name: str) -> bool:
    """Whether a name can stand as it is in code, also behind a dot inside a class.

    Python folds other letters than ASCII's, and mangles names that begin with two underscores.
    """
    return (
        name.isascii()
        and name.isidentifier()
        and not keyword.iskeyword(name)
        and not name.startswith("__")
    )


def is_free(name: str) -> bool:
    """Whether a variable may have this name: it hides nothing that the file uses."""
    return is_identifier(name) and name not in TAKEN and name not in _BUILTINS


def identifier(text: str, default: str) -> str:
    """A name for a variable or class, made from any text."""
    name = re.sub(r"[^0-9a-zA-Z_]+", "_", text).strip("_")
    name = f"{default}_{name}" if name[:1].isdigit() else name or default
    return name if is_free(name) else f"{name}_"


def unused(name: str, used: set[str] | frozenset[str]) -> str:
    """``name``, or with the first number from 2 on that makes it new."""
    if name not in used:
        return name
    k = 2
    while f"{name}_{k}" in used:
        k += 1
    return f"{name}_{k}"
