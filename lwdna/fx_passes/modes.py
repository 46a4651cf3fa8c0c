"""One graph from two: what a network does in training and in evaluation mode.

The graphs of both modes are aligned node by node. Where an argument differs, the merged graph
takes it by ``module.training``; what one mode alone computes stands in the graph beside the rest,
and its result is not chosen in the other mode, where it does not run
(:mod:`lwdna.fx_passes.conditional`).
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node

from lwdna.fx_passes.autocast import SWITCHES
from lwdna.fx_passes.conditional import LONE
from lwdna.fx_passes.module import FUNCTIONS
from lwdna.fx_passes.proxy import has_effect
from lwdna.fx_passes.reassigned import KEEP_STATE

#: Prefix of the names under which torch.fx stores tensors made while tracing.
CONSTANT = "_tensor_constant"
_OWN_MODULE = "Move the part that exists in one mode only into a module of its own"
_OUT_OF_PLACE = "Compute a new tensor instead (x = x * 2 for x *= 2)"


@dataclass(frozen=True)
class Alignment:
    """Which nodes of two traces are the same step of the model.

    Attributes:
        pairs: (in evaluation, in training) in the order of both graphs.
        evaluated: nodes that exist in evaluation mode only.
        trained: nodes that exist in training mode only.
    """

    pairs: list[tuple[Node, Node]]
    evaluated: list[Node] = field(default_factory=list)
    trained: list[Node] = field(default_factory=list)

    @property
    def lone(self) -> list[Node]:
        """Nodes that exist in one mode only."""
        return [*self.evaluated, *self.trained]


@dataclass(frozen=True)
class Obstacle:
    """A node of one mode that cannot run in the other mode too; why, and what helps."""

    node: Node
    why: str
    remedy: str


def align(evaluated: Graph, trained: Graph) -> Alignment:
    """Pair the nodes that do the same in the same module, in order.

    Source: difflib.SequenceMatcher (https://docs.python.org/3/library/difflib.html).
    """
    nodes = list(evaluated.nodes), list(trained.nodes)
    keys = [[(n.op, n.target, n.meta["module"]) for n in side] for side in nodes]
    if keys[0] == keys[1]:
        return Alignment(list(zip(*nodes, strict=True)))
    found = Alignment([])
    for tag, i, i_end, j, j_end in SequenceMatcher(
        a=keys[0], b=keys[1], autojunk=False
    ).get_opcodes():
        if tag == "equal":
            found.pairs.extend(zip(nodes[0][i:i_end], nodes[1][j:j_end], strict=True))
        else:
            found.evaluated.extend(nodes[0][i:i_end])
            found.trained.extend(nodes[1][j:j_end])
    return found


def innermost(node: Node, entered: set[str]) -> str:
    """Path of the innermost module around a node that is called in both modes.

    Args:
        node: a node that exists in one mode only.
        entered: paths of the modules that are called in both modes.
    """
    path: str = node.meta["module"]
    while path and path not in entered:
        path = path.rpartition(".")[0]
    return path


def obstacle(twins: tuple[Any, Any], alignment: Alignment) -> Obstacle | None:
    """What keeps two traces from being merged, if anything does.

    What is merged is followed by one run of the graph, so it must run on what the other mode
    computes, and leave alone what the other mode sees. Kinds of values are compared, not shapes:
    what fails on the other mode's shapes is refused by the analysis.

    Args:
        twins: the modules that were traced, (in evaluation, in training).
        alignment: of their graphs.
    """
    for node in alignment.lone:
        if node.target in SWITCHES:
            why = "it switches mixed precision for what both modes compute"
            return Obstacle(node, why, _OWN_MODULE)
    for root, lone, shared in (
        (twins[0], alignment.evaluated, [pair[0] for pair in alignment.pairs]),
        (twins[1], alignment.trained, [pair[1] for pair in alignment.pairs]),
    ):
        read = [node for node in (*shared, *lone) if node.op == "get_attr"]
        state = {key for node in read for key in _storages(node)}  # seen by every later call
        visible = {key for node in shared for key in _storages(node)} | state
        for node in lone:
            changed = [t for t in _changed(root, node) if t in visible]
            if changed:
                why = "it changes a tensor in place that is seen in both modes"
                return Obstacle(node, why, KEEP_STATE if changed[0] in state else _OUT_OF_PLACE)
    partner = {**dict(alignment.pairs), **{b: a for a, b in alignment.pairs}}
    for node in alignment.lone:
        for n in node.all_input_nodes:
            kinds = _kind(n), _kind(partner.get(n, n))
            if kinds[0] != kinds[1]:
                return Obstacle(
                    node,
                    f"it needs {n.format_node()}, which is a {kinds[0]} in that mode and "
                    f"a {kinds[1]} in the other",
                    "Let both modes return values of the same kinds, or build the model without "
                    "what exists in one mode only (e.g. aux_logits=False, patch_drop_rate=0)",
                )
    for node in alignment.evaluated:
        if node.op == "call_module" and any(True for _ in _module(twins[0], node).buffers()):
            return Obstacle(node, "it would update its buffers in training mode", _OWN_MODULE)
    return None


def _module(root: nn.Module, node: Node) -> nn.Module:
    return root.get_submodule(str(node.target))


def _kind(node: Node) -> str:
    return type(node.meta.get("hint")).__name__


def _storages(node: Node) -> Iterator[int]:
    hint = node.meta.get("hint")
    if isinstance(hint, Tensor):
        yield hint.untyped_storage()._cdata


def _changed(root: nn.Module, node: Node) -> Iterator[int]:
    """The storages that a node writes to."""
    if node.op == "call_module":
        writes = getattr(_module(root, node), "inplace", False)
    else:
        writes = has_effect(node) and node.target is not torch._assert
    if writes:
        for n in node.all_input_nodes[:1]:
            yield from _storages(n)


def merge(evaluated: Graph, trained: Graph, alignment: Alignment, twins: tuple[Any, Any]) -> None:
    """Bring what is different in training mode into the graph of evaluation mode.

    Args:
        evaluated: the graph that becomes the merged one.
        trained: the graph of training mode; it is not changed.
        alignment: of these two.
        twins: the modules that were traced, (in evaluation, in training), which hold the tensors
            that were made on the way.
    """
    partner = {b: a for a, b in alignment.pairs}
    for node in alignment.lone:
        node.meta[LONE] = True
    known: dict[Node, Node] = {}
    choices = _Choices(evaluated)
    anchor = next(iter(evaluated.nodes))
    for node in trained.nodes:
        same = partner.get(node)
        if same is not None and not _differ(twins, same, node):
            known[node] = same
            choices.unite(same, node, known)
            anchor = same.next
            continue
        with evaluated.inserting_before(anchor):
            known[node] = evaluated.node_copy(node, known.__getitem__)
        _adopt(twins, known[node])


def _is_constant(node: Node) -> bool:
    return node.op == "get_attr" and str(node.target).startswith(CONSTANT)


def _differ(twins: tuple[Any, Any], a: Node, b: Node) -> bool:
    """Constants are numbered as they are met, so the same name may mean another tensor."""
    if not _is_constant(a):
        return False
    x, y = getattr(twins[0], str(a.target)), getattr(twins[1], str(b.target))
    if x.shape != y.shape or x.dtype != y.dtype or x.device != y.device:
        return True
    return not x.is_meta and not torch.equal(x, y)


def _adopt(twins: tuple[Any, Any], node: Node) -> None:
    """Bring over what tracing in training mode left at its twin."""
    if _is_constant(node):
        value = getattr(twins[1], str(node.target))
        node.target = f"{node.target}_training"
        setattr(twins[0], node.target, value)
    elif FUNCTIONS in twins[1]._modules:
        theirs = twins[0]._modules.setdefault(FUNCTIONS, nn.Module())
        theirs._modules.update(twins[1]._modules[FUNCTIONS]._modules)


class _Choices:
    """Arguments that are chosen by ``module.training``, each choice one node."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._flags: dict[str, Node] = {}
        self._made: dict[tuple[str, str, Node], Node] = {}

    def unite(self, node: Node, other: Node, known: dict[Node, Node]) -> None:
        """Let the arguments of ``node`` be those of ``other`` in training mode."""
        theirs: Any = torch.fx.node.map_arg((other.args, other.kwargs), known.__getitem__)
        with self.graph.inserting_before(node):
            node.args = self._merge(node, tuple(node.args), tuple(theirs[0]))
            node.kwargs = self._merge(node, dict(node.kwargs), dict(theirs[1]))

    def _merge(self, node: Node, a: Any, b: Any) -> Any:
        if isinstance(a, slice) and isinstance(b, slice):
            parts = ((getattr(a, k), getattr(b, k)) for k in ("start", "stop", "step"))
            return slice(*(self._merge(node, x, y) for x, y in parts))
        if isinstance(a, (list, tuple)) and type(a) is type(b) and len(a) == len(b):
            merged = [self._merge(node, x, y) for x, y in zip(a, b, strict=True)]
            return type(a)(*merged) if hasattr(a, "_fields") else type(a)(merged)
        if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
            return {key: self._merge(node, a[key], b[key]) for key in a}
        if a is b or (type(a) is type(b) and not isinstance(a, Node) and a == b):
            return a
        flag = self._flag(node)
        if a is False and b is True:
            return flag
        key = (repr(a), repr(b), flag)
        if key not in self._made:
            self._made[key] = self.graph.call_function(operator.getitem, ((a, b), flag))
        return self._made[key]

    def _flag(self, node: Node) -> Node:
        path = node.meta["module"]
        if path not in self._flags:
            self._flags[path] = self.graph.get_attr(f"{path}.training" if path else "training")
        return self._flags[path]
