"""torch.utils._pytree for the plain containers of graph arguments, without building tree specs.

The results are those of the functions of the same names there, whatever else is registered: only
tuples, lists and dicts are walked here. An argument tree is walked several times per node, which
made up a third of the time of all passes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor, nn
from torch.fx.immutable_collections import immutable_dict, immutable_list
from torch.utils import _pytree as pytree

_SEQUENCES = frozenset((tuple, list, immutable_list))
_MAPPINGS = frozenset((dict, immutable_dict))


def _is_leaf(kind: type) -> bool:
    return kind not in pytree.SUPPORTED_NODES and not issubclass(kind, tuple)


def tree_leaves(tree: Any) -> list[Any]:
    """The leaves of a pytree, in order."""
    leaves: list[Any] = []
    _collect(tree, leaves)
    return leaves


def _collect(tree: Any, leaves: list[Any]) -> None:
    kind = type(tree)
    if kind in _SEQUENCES:
        for child in tree:
            _collect(child, leaves)
    elif kind in _MAPPINGS:
        for child in tree.values():
            _collect(child, leaves)
    elif _is_leaf(kind):
        leaves.append(tree)
    else:
        leaves.extend(pytree.tree_leaves(tree))


def tree_map(function: Callable[[Any], Any], tree: Any) -> Any:
    """The same pytree with ``function`` of each leaf."""
    kind = type(tree)
    if kind in _SEQUENCES:
        return kind([tree_map(function, child) for child in tree])
    if kind in _MAPPINGS:
        return kind({key: tree_map(function, child) for key, child in tree.items()})
    if _is_leaf(kind):
        return function(tree)
    return pytree.tree_map(function, tree)


def tree_map_only(only: type, function: Callable[[Any], Any], tree: Any) -> Any:
    """The same pytree with ``function`` of each leaf that is an ``only``."""
    return tree_map(lambda leaf: function(leaf) if isinstance(leaf, only) else leaf, tree)


def hides_tensors(value: Any) -> bool:
    """Whether a value holds tensors in attributes, where no pass that walks a tree finds them."""
    if isinstance(value, (Tensor, nn.Module)) or not _is_leaf(type(value)):
        return False
    if is_dataclass(value):
        held = [getattr(value, field.name, None) for field in fields(value)]
    else:
        held = list(getattr(value, "__dict__", {}).values())
    return any(isinstance(leaf, Tensor) for leaf in tree_leaves(held))


def opaque(value: Any) -> str:
    """What a value is that a graph cannot take or return, and the remedy; for error messages."""
    name = type(value).__name__
    remedy = f", or make it one with torch.export.register_dataclass({name})"
    return (
        f"an object of type {name}, which is no tuple, list or dict, so that the tensors in it are "
        f"out of sight: use one of these{remedy if is_dataclass(value) else ''}"
    )
