"""Regions of mixed precision: ``with torch.autocast(...)`` inside ``forward``, as graph nodes.

A graph has no ``with``. Where the model enters and leaves such a region, the graph calls
:func:`enter_autocast` and :func:`exit_autocast`, as exported graphs do; the generated code calls
the second whatever is raised between the two (:mod:`lwdna.fx_passes.codegen`), and so does what
runs a graph node by node (:class:`lwdna.fx_passes.interpreter.NodeRunner`).

Source: torch.amp.autocast_mode (https://docs.pytorch.org/docs/stable/amp.html).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch.fx import Node
from torch.fx.node import has_side_effect

if TYPE_CHECKING:
    from lwdna.fx_passes.tracer import HintedTracer


@has_side_effect
def enter_autocast(
    device_type: str, dtype: torch.dtype | None, enabled: bool, cache_enabled: bool | None
) -> AbstractContextManager[Any]:
    """Enter a region; the arguments are those of ``torch.autocast``.

    Meta tensors, on which networks are analysed, know no mixed precision: nothing changes there.

    Returns:
        What :func:`exit_autocast` takes.
    """
    if device_type == "meta":
        return nullcontext()
    # Made for graphs: torch.compile and torch.export know these two.
    enter: Any = torch.amp.autocast_mode._enter_autocast
    region: AbstractContextManager[Any] = enter(device_type, dtype, enabled, cache_enabled)
    return region


@has_side_effect
def exit_autocast(region: AbstractContextManager[Any]) -> None:
    """Leave a region that was entered."""
    leave: Any = torch.amp.autocast_mode._exit_autocast
    leave(region)


def leave_open(values: Mapping[Node, Any]) -> None:
    """Leave the regions that a run of a graph has entered and not left, the innermost first.

    Args:
        values: of the nodes that have run, in that order.
    """
    for node in reversed(list(values)):
        if node.target is enter_autocast and not any(user in values for user in node.users):
            exit_autocast(values[node])


SWITCHES = (enter_autocast, exit_autocast)


def recorded_autocast(tracer: HintedTracer) -> dict[tuple[Any, str], Any]:
    """What to replace in ``torch.autocast`` so that its regions become nodes of a trace.

    Args:
        tracer: records the nodes.

    Returns:
        (class, name) -> replacement of that attribute.
    """
    region = torch.amp.autocast_mode.autocast
    original = {name: getattr(region, name) for name in ("__init__", "__enter__", "__exit__")}

    def init(
        self: Any,
        device_type: Any,
        dtype: Any = None,
        enabled: Any = True,
        cache_enabled: Any = None,
    ) -> None:
        if tracer.evaluation.running:
            original["__init__"](self, device_type, dtype, enabled, cache_enabled)
            return
        # The names of the original: a decorator's region was made before the trace.
        self.device, self.fast_dtype = device_type, dtype
        self._enabled, self._cache_enabled = enabled, cache_enabled

    def enter(self: Any) -> Any:
        if tracer.evaluation.running:
            return original["__enter__"](self)
        given = (self.device, self.fast_dtype, self._enabled, self._cache_enabled)
        self._entered = tracer.create_proxy("call_function", enter_autocast, given, {})
        return self

    def leave(self: Any, *raised: Any) -> Any:
        if tracer.evaluation.running:
            return original["__exit__"](self, *raised)
        tracer.create_proxy("call_function", exit_autocast, (self._entered,), {})
        return False

    replacements = {"__init__": init, "__enter__": enter, "__exit__": leave}
    return {(region, name): function for name, function in replacements.items()}
