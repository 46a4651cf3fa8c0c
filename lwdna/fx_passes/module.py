"""Module trees of captured networks: copies, containers, meta twins."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule
from torch.fx.graph import PythonCode
from torch.fx.node import map_aggregate

from lwdna.errors import UnsupportedModelError
from lwdna.fx_passes.codegen import in_blocks
from lwdna.fx_passes.interface import attributes
from lwdna.fx_passes.layouts import meta_like
from lwdna.fx_passes.members import modules_of
from lwdna.fx_passes.pickling import packed, unpacked
from lwdna.fx_passes.regions import graphs
from lwdna.trees import tree_map_only

_PLAIN_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
CONSTANTS = "_constants"
FUNCTIONS = "_functions"
_ATOMS = frozenset((bool, int, float, str, type(None)))
_DICTS = frozenset((dict, OrderedDict))
_COLLECTIONS = _DICTS | {set}
_NO_TENSORS = _ATOMS | _COLLECTIONS | {tuple, list}
#: What every module has of its own, and mostly empty: dicts of hooks, of children, of tensors.
_OWN = frozenset(vars(nn.Module()))


class Container(nn.Module):
    """Holds the children and parameters of a module whose ``forward`` was traced through.

    It prints like the module it stands for; the code that used to be in its ``forward`` is in the
    graph.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def _get_name(self) -> str:
        return self._name


class CalledFunction(nn.Module):
    """A function that runs as it is: scripted, or with a backward pass of its own.

    Its operators are analysed like any others; numbers in its code are not repaired.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self._function = function

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Whatever the function returns."""
        return self._function(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> CalledFunction:
        return CalledFunction(self._function)  # scripted functions cannot be copied


def tensors_of(module: nn.Module) -> Iterator[Tensor]:
    """Every parameter, buffer and plain tensor attribute in the tree."""
    for child in modules_of(module):
        yield from (p for p in child._parameters.values() if p is not None)
        yield from (b for b in child._buffers.values() if b is not None)
        for value in vars(child).values():
            if type(value) not in _NO_TENSORS and isinstance(value, Tensor):
                yield value


def copy_with(module: nn.Module, replace: Callable[[Tensor], Tensor]) -> Any:
    """Deep copy of a module tree in which every tensor ``t`` becomes ``replace(t)``.

    Ties survive: a tensor met twice is replaced once. No tensor data is copied on the way, and the
    depth of the tree does not matter.
    """
    memo: dict[int, Any] = {}
    for tensor in tensors_of(module):
        if id(tensor) not in memo:
            memo[id(tensor)] = _like(tensor, replace(tensor))
    try:
        modules = modules_of(module)
        kinds = {kind for kind in set(map(type, modules)) if _is_plain(kind)}
        plain = [child for child in modules if type(child) in kinds]
        for child in plain:
            memo[id(child)] = type(child).__new__(type(child))
        for child in reversed(plain):  # a captured part assembles its tree as soon as it is copied
            _copy_attributes(vars(child), memo[id(child)].__dict__, memo)
        return copy.deepcopy(module, memo)
    except Exception as e:
        raise UnsupportedModelError(
            f"{module._get_name()} cannot be copied: {type(e).__name__}: {e}. Keep what cannot "
            "be copied (scripted functions, generators, open files) out of the module"
        ) from e


def _is_plain(kind: type[nn.Module]) -> bool:
    """Whether deepcopy would copy the attributes of such modules and do nothing else."""
    # What these add is missing in old pickles only. torch.compile replaces the first.
    completing = (nn.Module.__setstate__, nn.modules.conv._ConvNd.__setstate__)
    return (
        not hasattr(kind, "__deepcopy__")
        and all(
            getattr(kind, name) is getattr(nn.Module, name)
            for name in ("__new__", "__reduce__", "__reduce_ex__", "__getstate__")
        )
        and kind.__setstate__ in completing
        and not any("__slots__" in vars(base) for base in kind.__mro__)
    )


def _copy_attributes(old: dict[str, Any], new: dict[str, Any], memo: dict[int, Any]) -> None:
    for name, value in old.items():
        kind = type(value)
        if kind in _ATOMS:
            new[name] = value
        elif kind in _COLLECTIONS and name in _OWN and not value:
            new[name] = kind()
        else:
            new[name] = _copied(value, memo)


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    """``copy.deepcopy``, with a short way for what modules consist of: names, numbers, dicts."""
    kind = type(value)
    if kind in _ATOMS:
        return value
    known = memo.get(id(value), memo)
    if known is not memo:
        return known
    if kind in _DICTS:
        new: dict[Any, Any] = kind()
        memo[id(value)] = new
        for key, entry in value.items():
            own = key if type(key) in _ATOMS else _copied(key, memo)
            new[own] = entry if type(entry) in _ATOMS else _copied(entry, memo)
        return new
    if kind in (tuple, set) and all(type(entry) in _ATOMS for entry in value):
        return value if kind is tuple else set(value)
    return copy.deepcopy(value, memo)


def _like(old: Tensor, new: Tensor) -> Tensor:
    if isinstance(old, nn.Parameter):
        return nn.Parameter(new, requires_grad=old.requires_grad)
    return new.detach()


def meta_twin(module: nn.Module) -> Any:
    """Deep copy on the meta device: the same structure and code, no data."""
    return copy_with(module, meta_like)


def to_meta(tree: Any) -> Any:
    """The same structure with meta tensors in place of tensors."""
    return tree_map_only(Tensor, meta_like, tree)


def detached_copy(module: nn.Module) -> Any:
    """Deep copy that shares nothing with ``module`` and keeps its device, modes and flags."""
    return copy_with(module, lambda t: t.detach().clone())


def in_double(gm: nn.Module) -> nn.Module:
    """Copy of a captured module that computes in float64: its tensors and what its graph names.

    A graph that asks for float32 (``x.float()``, ``torch.arange(n, dtype=torch.float32)``) would
    lose digits, or meet float64 weights with float32 values.
    """
    work: nn.Module = detached_copy(gm).double()
    for part in graphs(work).values():
        for node in part.graph.nodes:
            if node.op == "call_method" and node.target == "float":
                node.target = "double"
            node.args, node.kwargs = map_aggregate(
                (node.args, node.kwargs), lambda a: torch.float64 if a is torch.float32 else a
            )
        part.recompile()
    return work


def skeleton(module: nn.Module, is_leaf: Callable[[nn.Module, str], bool]) -> nn.Module:
    """The tree of ``module`` with containers in place of the modules that were traced through.

    Leaves are taken over as they are (not copied); so are all parameters and buffers, used or
    not, so that the state_dict keeps its keys and their order.
    """
    done: dict[nn.Module, nn.Module] = {}

    def build(old: nn.Module, path: str) -> nn.Module:
        if old in done:
            return done[old]
        plain = type(old) in _PLAIN_CONTAINERS
        if path and not plain and is_leaf(old, path):
            done[old] = old
            return old
        new = type(old)() if plain else Container(old._get_name())
        done[old] = new
        new.training = old.training
        new._parameters.update(old._parameters)
        for name, buffer in old._buffers.items():
            new.register_buffer(name, buffer, name not in old._non_persistent_buffers_set)
        for name, value in vars(old).items():
            if isinstance(value, Tensor):
                new.register_buffer(name, value, persistent=False)
        for name, child in old._modules.items():
            new._modules[name] = (
                None if child is None else build(child, f"{path}.{name}" if path else name)
            )
        return new

    return build(module, "")


class CapturedModule(GraphModule):
    """A GraphModule over a whole module tree, not only over what its graph calls.

    Parameters that the graph does not use and second names of shared ones stay in the state_dict,
    in a deepcopy, too.
    """

    def recompile(self) -> PythonCode:
        """Generate the code anew, with its blocks (:mod:`lwdna.fx_passes.codegen`)."""
        with self.graph.on_generate_code(lambda _: partial(in_blocks, self.graph)):
            return super().recompile()

    def __deepcopy__(self, memo: dict[int, Any]) -> CapturedModule:
        root = copy.deepcopy(tree_of(self), memo)
        new = memo[id(self)] = reassemble(self, root, copy.deepcopy(self.graph), memo)
        return new

    def __reduce__(self) -> tuple[Any, ...]:
        """Tree and graph, as they are.

        A GraphModule is pickled as code, and traced again when it is loaded: the mode of that
        moment would be burned in.
        """
        parts = (tree_of(self), packed(self.graph), self.meta, dict(attributes(self)))
        return _restored, parts


def _restored(
    root: nn.Module, code: list[bytes], meta: dict[str, Any], told: dict[str, Any]
) -> CapturedModule:
    """A captured module from the parts that it is pickled as."""
    new = assemble(root, unpacked(code), root._get_name())
    new.meta = meta
    for name, value in told.items():
        setattr(new, name, value)
    return new


_TREE = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")


def tree_of(gm: GraphModule) -> nn.Module:
    """The module tree of a captured network, shared with it, without its code.

    ``torch.fx.Interpreter`` runs the graph on it, or on a copy of it.
    """
    root = Container(type(gm).__name__)
    root.training = gm.training
    for name in _TREE:
        setattr(root, name, getattr(gm, name))
    return root


def assemble(root: nn.Module, graph: Graph, name: str) -> CapturedModule:
    """A captured module with the tree of ``root`` and the code of ``graph``."""
    # With a graph, GraphModule would first build a tree of its own, of what the graph calls.
    gm = CapturedModule(nn.Module(), Graph(), class_name=name)
    for attribute in _TREE:
        setattr(gm, attribute, getattr(root, attribute))
    gm.training = root.training
    gm.graph = graph
    return gm


def reassemble(
    gm: GraphModule, root: nn.Module, graph: Graph, memo: dict[int, Any] | None = None
) -> CapturedModule:
    """A captured module with another tree and graph, and with what else ``gm`` says, copied."""
    new = assemble(root, graph, type(gm).__name__)
    new.meta = copy.deepcopy(gm.meta, memo)
    for name, value in attributes(gm):
        setattr(new, name, copy.deepcopy(value, memo))
    return new
