"""What kind of value a step gives, and which steps are worth no line of their own."""

from __future__ import annotations

import math
import operator
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch.fx import Node

from lwdna.fx_passes.conditional import alternatives

#: Methods of a tensor that give sizes.
_SIZE_METHODS = frozenset(("dim", "element_size", "numel", "size", "stride"))
_ARITHMETIC = frozenset(
    getattr(operator, name)
    for name in (
        *(
            "add",
            "and_",
            "eq",
            "floordiv",
            "ge",
            "gt",
            "invert",
            "le",
            "lshift",
            "lt",
            "mod",
            "mul",
        ),
        *("ne", "neg", "not_", "or_", "pos", "pow", "rshift", "sub", "truediv", "xor"),
    )
)
_NUMBERS = frozenset(
    (len, max, min, round, int, float, math.ceil, math.floor, math.sqrt, math.trunc)
)
_SEVERAL = frozenset(
    ("chunk", "hsplit", "split", "split_with_sizes", "tensor_split", "topk", "unbind", "vsplit")
)


def function_name(step: Node) -> str:
    """The bare name of what a step calls."""
    if step.op == "call_function":
        return str(getattr(step.target, "__name__", "value"))
    return str(step.target).rpartition(".")[2]


def gives_several(step: Node) -> bool:
    """Whether a step gives a tuple or list of tensors."""
    return step.op in ("call_function", "call_method") and function_name(step) in _SEVERAL


def sizes(steps: Iterable[Node]) -> set[Node]:
    """The steps that give sizes, dtypes, and what is computed from them: no tensors."""
    found: set[Node] = set()
    for step in steps:
        if step.op == "call_method":
            own = step.target in _SIZE_METHODS
        elif step.target is getattr:
            own = len(step.args) == 2 and step.args[1] not in ("T", "mT", "H", "data", "grad")
        elif alternatives(step) is not None:
            own = all(n.op == "get_attr" or n in found for n in step.all_input_nodes)
            own = own and not any(isinstance(a, (tuple, list)) for a in alternatives(step) or ())
        elif step.target is operator.getitem:
            own = step.args[0] in found
        elif step.op == "call_function" and step.target in _ARITHMETIC | _NUMBERS:
            own = bool(step.all_input_nodes) and all(n in found for n in step.all_input_nodes)
        else:
            own = False
        if own:
            found.add(step)
    return found


def inlined(
    items: Sequence[Any], numbers: Collection[Node], conditions: Mapping[Node, Any]
) -> set[Node]:
    """The sizes that are written where they are used.

    Between such a step and its use stand other sizes and assertions only, so that nothing has
    changed, and no tensor is kept longer for it.

    Args:
        items: of one scope: its steps, and scopes that it calls.
        numbers: the steps that give sizes.
        conditions: step -> the mode that it needs.
    """
    places = {item: k for k, item in enumerate(items) if isinstance(item, Node)}
    heavy = [0]
    for item in items:
        light = isinstance(item, Node) and (item in numbers or item.target is torch._assert)
        heavy.append(heavy[-1] + (not light))
    found: set[Node] = set()
    for step, k in places.items():
        once = len(step.users) == 1 or step.target is getattr
        if step not in numbers or not once or not step.users:
            continue
        near = all(
            user in places
            and heavy[places[user]] == heavy[k]
            and conditions.get(user) == conditions.get(step)
            for user in step.users
        )
        if near:
            found.add(step)
    return found
