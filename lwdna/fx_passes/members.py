"""The modules and tensors of a tree, as :class:`torch.nn.Module` lists them, without its recursion.

Its iterators hand every module up through one generator per level, and start anew for parameters
and for buffers, which made up a tenth of the time of all passes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

from torch import Tensor, nn

T = TypeVar("T", bound=Tensor)


def named_modules(root: nn.Module, *, again: bool = False) -> list[tuple[str, nn.Module]]:
    """``root.named_modules()`` as a list.

    Args:
        root: of the tree.
        again: list a module under every name that it has (``remove_duplicate=False``).
    """
    found: list[tuple[str, nn.Module]] = []
    seen: set[nn.Module] = set()
    waiting: list[tuple[str, nn.Module]] = [("", root)]
    while waiting:
        path, module = waiting.pop()
        if not again:
            if module in seen:
                continue
            seen.add(module)
        found.append((path, module))
        if module._modules:
            start = f"{path}." if path else ""
            children = [(start + n, m) for n, m in module._modules.items() if m is not None]
            waiting.extend(reversed(children))
    return found


def modules_of(root: nn.Module) -> list[nn.Module]:
    """``root.modules()`` as a list."""
    return [module for _, module in named_modules(root)]


def named_tensors(root: nn.Module) -> tuple[dict[str, nn.Parameter], dict[str, Tensor]]:
    """``root.named_parameters()`` and ``root.named_buffers()`` as dicts.

    A tensor that several modules hold is listed under its first name.
    """
    modules = named_modules(root)
    parameters = _named((path, module._parameters) for path, module in modules)
    buffers = _named((path, module._buffers) for path, module in modules)
    return parameters, buffers


def _named(held: Iterable[tuple[str, Mapping[str, T | None]]]) -> dict[str, T]:
    found: dict[str, T] = {}
    seen: set[int] = set()
    for path, members in held:
        for name, tensor in members.items():
            if tensor is not None and id(tensor) not in seen:
                seen.add(id(tensor))
                found[f"{path}.{name}" if path else name] = tensor
    return found
