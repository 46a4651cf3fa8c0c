"""The pass contract: what a pass requires of its arguments and ensures of its result.

A pass is a free function over captured modules that never changes its arguments. Its conditions
are declared at the function and enforced at every call: a requirement speaks to the caller
(``TypeError``/``ValueError``), a guarantee that fails is our own defect (``AssertionError``).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from lwdna.fx_passes.members import named_tensors
from lwdna.fx_passes.regions import is_captured
from lwdna.graph import ChannelGraph

P = ParamSpec("P")
R = TypeVar("R")
Requirement = Callable[[dict[str, Any]], None]
Guarantee = Callable[[dict[str, Any], Any], None]


def graph_pass(
    *, requires: Sequence[Requirement] = (), ensures: Sequence[Guarantee] = ()
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Declare the contract of a pass.

    Args:
        requires: called with the bound arguments before the pass; raise to refuse.
        ensures: called with the bound arguments and the result after it.
    """

    def declare(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)

        @wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            arguments = signature.bind(*args, **kwargs).arguments
            for requirement in requires:
                requirement(arguments)
            result = function(*args, **kwargs)
            for guarantee in ensures:
                guarantee(arguments, result)
            return result

        return run

    return declare


def captured(arguments: dict[str, Any]) -> None:
    """The module comes from ``lwdna.capture``."""
    gm = arguments["gm"]
    if not is_captured(gm):
        raise TypeError(
            f"gm is a {type(gm).__name__} that was not captured: pass lwdna.capture(model, inputs)"
        )


def described(arguments: dict[str, Any]) -> None:
    """The channel graph belongs to the module: every vector has its dimension's length."""
    graph: ChannelGraph = arguments["graph"]
    parameters, buffers = named_tensors(arguments["gm"])
    tensors = {**parameters, **buffers}
    for name, vectors in graph.tensors.items():
        shape = tuple(tensors[name].shape) if name in tensors else None
        lengths = [None if v is None else len(v) for v in vectors]
        if shape is None or any(
            n is not None and n != size for n, size in zip(lengths, shape, strict=True)
        ):
            raise ValueError(
                f"the channel graph is not this module's: {name!r} has shape {shape}, the graph "
                f"says {lengths}; pass the graph that analyse() or restrict() gave for it"
            )


def own_state(arguments: dict[str, Any], result: Any) -> None:
    """The result has the state_dict keys of the argument, in order, and none of its memory."""
    new = result[0] if isinstance(result, tuple) else result
    before, after = arguments["gm"].state_dict(), new.state_dict()
    assert list(before) == list(after), "state_dict keys changed"
    old = {t.data_ptr() for t in before.values()} - {0}  # 0: no memory
    shared = [k for k, t in after.items() if t.data_ptr() in old]
    assert not shared, f"the result shares memory with its argument: {shared[:3]}"
