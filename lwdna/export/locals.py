"""Names of local variables: taken over from what a step has used up, as people write code."""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterable, Sequence

from torch.fx import Node

from lwdna.export.names import identifier, unused
from lwdna.export.scopes import Scope, Value
from lwdna.export.values import function_name, gives_several

_FIRST = "x"
_BRANCHES = 2
_BESIDE = "out"  # what is computed from x while x is still needed


class Locals:
    """The variables of one function, and the values that they hold.

    Args:
        numbers: the steps that give sizes.
    """

    def __init__(self, numbers: Collection[Node]) -> None:
        self._numbers = numbers
        self._names: dict[Value, str] = {}

    def __getitem__(self, value: Value) -> str:
        return self._names[value]

    def __contains__(self, value: Value) -> bool:
        return value in self._names

    def bind(self, value: Value, name: str) -> str:
        """Give a value this name."""
        self._names[value] = name
        return name

    def argument(self, value: Value) -> str:
        """Name an argument: ``x`` the first tensor, the others by what they are."""
        tensor = isinstance(value, Node) and value not in self._numbers
        generic = [_FIRST] if tensor else []
        return self.bind(value, self._free([*generic, self._own_name(value)]))

    def release(self, values: Iterable[Value]) -> list[str]:
        """Forget values that are used no more; gives the names of the tensors among them."""
        names = []
        for value in values:
            name = self._names.pop(value)
            if isinstance(value, Node) and value not in self._numbers and not gives_several(value):
                names.append(name)
        return names

    def result(self, value: Node, item: Node | Scope, used_up: Sequence[str]) -> str:
        """Name what an item gives.

        Args:
            value: the step that gives it.
            item: the step, or the scope that it is in.
            used_up: names of the tensors that the item was the last to use.
        """
        own = self._own_name(item.path if isinstance(item, Scope) else item)
        if isinstance(item, Node) and (item in self._numbers or _speaks(item)):
            return self.bind(value, self._free([own]))
        names = [_FIRST] if _FIRST in used_up else []
        names += [*used_up, _FIRST]
        if _is_layer(item) and not _branches(item):
            names.append(_BESIDE)
        return self.bind(value, self._free([*names, own]))

    def _free(self, names: Sequence[str]) -> str:
        """The first name that no value has; the last with a number if all are in use."""
        taken = set(self._names.values())
        return next((name for name in names if name not in taken), unused(names[-1], taken))

    def _own_name(self, value: Value) -> str:
        """What to call a value where nothing is known of its use."""
        if isinstance(value, str):
            parts = [part for part in value.split(".") if not part.isdecimal()]
            return identifier(parts[-1] if parts else "", _FIRST)
        if value.target is operator.getitem:
            return self._item_name(value)
        if value.op == "call_module":
            return self._own_name(str(value.target))
        target = value.args[1] if value.target is getattr else function_name(value)
        return identifier(str(target).strip("_"), _FIRST)

    def _item_name(self, step: Node) -> str:
        base, index = step.args[:2]
        if not isinstance(base, Node):
            return "chosen"
        if not isinstance(index, int):
            return "item"
        place = f"{index}" if index >= 0 else f"minus_{-index}"
        if step in self._numbers:
            return f"size_{place}"
        return f"{self._own_name(base)}_{place}" if gives_several(base) else "item"


def _speaks(step: Node) -> bool:
    """Whether a step says best what its result is: several tensors, or one of them."""
    base = step.args[0] if step.target is operator.getitem else None
    return gives_several(step) or (isinstance(base, Node) and gives_several(base))


def _is_layer(item: Node | Scope) -> bool:
    return isinstance(item, Scope) or item.op == "call_module"


def _branches(item: Node | Scope) -> bool:
    """Whether an item is one of several that start from the same value."""
    given = item.inputs if isinstance(item, Scope) else item.all_input_nodes
    return any(isinstance(value, Node) and len(value.users) > _BRANCHES for value in given)
