"""Buffers that ``forward`` assigns anew: a graph reads a module's state and cannot replace it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.fx import Node

from lwdna.errors import CaptureError
from lwdna.fx_passes.members import named_modules
from lwdna.fx_passes.proxy import is_proxy

#: Remedy where the state of the network's own module stands in the way.
KEEP_STATE = (
    "Keep the buffer and what updates it in a module of its own: it is called as it is, and what "
    "touches it keeps its width unless lwdna.rules.resizes declares the module"
)


def keeping_state(twin: nn.Module, leaves: frozenset[str]) -> set[str]:
    """Modules that have to stay as they are, because a buffer of theirs is replaced.

    A cache, which is computed from sizes and parameters alone, is no state: the graph computes it
    in every call.

    Args:
        twin: a module that was traced, with proxies where it has assigned them.
        leaves: paths of the modules that were not traced through.

    Returns:
        Paths of modules that have to become leaves.

    Raises:
        CaptureError: the whole network would have to, or a module assigns another one's buffer.
    """
    found = set()
    for path, module in named_modules(twin):
        for name, value in module._buffers.items():
            proxy: Any = value
            own = f"{path}.{name}" if path else name
            if not is_proxy(proxy) or not _is_state(proxy.node, own):
                continue
            if not path or path in leaves:
                raise CaptureError(
                    f"{type(twin).__name__}.forward assigns the buffer {own!r} anew, which a graph "
                    f"cannot do. {KEEP_STATE}"
                )
            found.add(path)
    return found


def _is_state(node: Node, buffer: str) -> bool:
    """Whether a value is computed from the values of an input, or from the buffer's own."""
    waiting, seen = [node], set[Node]()
    while waiting:
        node = waiting.pop()
        if node.op == "placeholder" or (node.op == "get_attr" and node.target == buffer):
            return True
        new = [n for n in node.all_input_nodes if n not in seen]
        seen.update(new)
        waiting.extend(n for n in new if isinstance(n.meta["hint"], (Tensor, tuple, list, dict)))
    return False
