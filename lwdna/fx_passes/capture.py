"""Capture: nn.Module + example input -> torch.fx.GraphModule with the same names and values."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Iterator
from itertools import zip_longest
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.utils._pytree import tree_map_only

from lwdna.errors import CaptureError, UnsupportedModelError
from lwdna.fx_passes._base import CAPTURED
from lwdna.fx_passes.module import (
    CONSTANTS,
    assemble,
    check_initialised,
    detached_copy,
    meta_twin,
    skeleton,
)
from lwdna.fx_passes.proxy import IN_PLACE
from lwdna.fx_passes.tracer import HintedTracer
from lwdna.inputs import as_arguments

#: A mode difference settles one module type per round; real networks need one or two.
_MAX_ROUNDS = 64
_INTERFACE = ("placeholder", "output")


def capture(model: nn.Module, example_inputs: Any) -> GraphModule:
    """Capture ``model`` as one static graph, for training and for evaluation.

    Module calls stay module calls down to torch.nn; parameter names and state_dict keys are the
    model's; batch size, and resolution where the model allows it, stay dynamic. What depends on
    ``module.training`` follows ``module.training``.

    Args:
        model: any ``nn.Module``; it is not changed, and nothing is shared with the result.
        example_inputs: a tensor, a tuple or list of the positional arguments of ``forward``, or a
            mapping of its arguments by name. Only shapes and dtypes are used; dimension 0 is the
            batch (a batch of 1 is traced as 2, which batch norms need in training mode).

    Returns:
        A ``GraphModule`` with copies of the model's parameters, in the model's mode.

    Raises:
        CaptureError: the control flow depends on tensor values, or the structure differs between
            training and evaluation at the top level; the message quotes the source line.
        UnsupportedModelError: the model has uninitialised (lazy) parameters.

    Source: torch.fx symbolic tracing (https://pytorch.org/docs/stable/fx.html).
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}: pass an nn.Module")
    for name, p in model.named_parameters():
        check_initialised(name, p)
    _refuse_lost_behaviour(model)
    if isinstance(model, GraphModule) and CAPTURED in getattr(model, "meta", {}):
        return _recapture(model)
    hints = _example_hints(as_arguments(model, example_inputs))
    twin = meta_twin(model)
    leaf_types: frozenset[type] = frozenset()
    for _ in range(_MAX_ROUNDS):
        tracer, other = HintedTracer(hints, leaf_types), HintedTracer(hints, leaf_types)
        evaluated = tracer.trace(twin.eval())
        trained = other.trace(twin.train())
        paths = _structural_difference(evaluated, trained)
        if paths is None:
            break
        leaf_types |= {_culprit(twin, paths, tracer, tracer.entered & other.entered)}
    for in_eval, in_train in zip(evaluated.nodes, trained.nodes, strict=True):
        _follow_mode(evaluated, in_eval, in_train)
    _drop_dead(evaluated)
    return _emit(model, twin, tracer, evaluated)


def _refuse_lost_behaviour(model: nn.Module) -> None:
    """What a graph cannot carry over: hooks of the model itself, and its own ``train``."""
    if model._forward_hooks or model._forward_pre_hooks:
        raise UnsupportedModelError(
            f"{type(model).__name__} has forward hooks of its own, which a graph does not call: "
            "remove them, and register them on the result"
        )
    for path, module in model.named_modules():
        if type(module).train is not nn.Module.train and not isinstance(module, GraphModule):
            warnings.warn(
                f"{path or 'the model'} ({type(module).__name__}) overrides train(): the captured "
                "network does not; set the modes of its modules yourself",
                stacklevel=3,
            )


def _recapture(model: GraphModule) -> GraphModule:
    """A captured module is its own capture: tracing it again would gain nothing."""
    new: GraphModule = detached_copy(model)
    return new


def _example_hints(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    def hint(t: Tensor) -> Tensor:
        size = (max(2, t.shape[0]), *t.shape[1:]) if t.dim() else ()
        return torch.empty(size, dtype=t.dtype, device="meta")

    return tuple(tree_map_only(Tensor, hint, value) for value in arguments)


def _structural_difference(a: Graph, b: Graph) -> tuple[str, str] | None:
    """Module paths of the first nodes that differ in more than a constant."""
    number: tuple[dict[Node, int], dict[Node, int]] = ({}, {})
    for i, (x, y) in enumerate(zip_longest(a.nodes, b.nodes)):
        if x is None or y is None:
            return (x or y).meta.get("module", ""), ""
        number[0][x], number[1][y] = i, i
        same = x.op == y.op and x.target == y.target
        nodes = [[number[k].get(n) for n in node.all_input_nodes] for k, node in ((0, x), (1, y))]
        if not same or nodes[0] != nodes[1]:
            return x.meta.get("module", ""), y.meta.get("module", "")
    return None


def _culprit(
    twin: nn.Module, paths: tuple[str, str], tracer: HintedTracer, entered: set[str]
) -> type:
    """Type of the innermost module, called in both modes, in which the two modes part."""
    shallow, deep = sorted((path.split(".") if path else [] for path in paths), key=len)
    shared = 0
    while shared < len(shallow) and shallow[shared] == deep[shared]:
        shared += 1
    # Where one path continues the other, the continuation was passed without a trace in one mode.
    start = len(deep) if shared == len(shallow) else shared
    for depth in range(start, 0, -1):
        path = ".".join(deep[:depth])
        module = twin.get_submodule(path)
        if path in entered and not tracer.is_leaf_module(module, path):
            return type(module)
    raise CaptureError(
        f"{type(twin).__name__}.forward has a different structure in training and in evaluation "
        f"mode (first at {paths[0] or 'the top level'!r} against {paths[1] or 'the top level'!r}). "
        "Move the part that exists in one mode only into a module of its own, or build the model "
        "without it (e.g. aux_logits=False)."
    )


def _follow_mode(graph: Graph, in_eval: Node, in_train: Node) -> None:
    """Make constants that differ between the modes depend on ``module.training``."""
    flags: dict[str, Node] = {}

    def flag() -> Node:
        path = in_eval.meta.get("module", "")
        if path not in flags:
            with graph.inserting_before(in_eval):
                flags[path] = graph.get_attr(f"{path}.training" if path else "training")
        return flags[path]

    def merge(a: Any, b: Any) -> Any:
        if isinstance(a, Node):
            return a
        if isinstance(a, slice) and isinstance(b, slice):
            return slice(*(merge(getattr(a, k), getattr(b, k)) for k in ("start", "stop", "step")))
        if isinstance(a, (list, tuple)) and type(a) is type(b) and len(a) == len(b):
            return type(a)(merge(x, y) for x, y in zip(a, b, strict=True))
        if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
            return {key: merge(a[key], b[key]) for key in a}
        if type(a) is type(b) and a == b:
            return a
        if a is False and b is True:
            return flag()
        with graph.inserting_before(in_eval):
            return graph.call_function(operator.getitem, ((a, b), flag()))

    in_eval.args = merge(tuple(in_eval.args), tuple(in_train.args))
    in_eval.kwargs = merge(dict(in_eval.kwargs), dict(in_train.kwargs))


def has_effect(node: Node) -> bool:
    """Whether a node does something besides returning a value."""
    if node.op == "call_method":
        method = str(node.target)
        return method.endswith("_") and not method.endswith("__")
    if node.op != "call_function":
        return node.is_impure()
    name = getattr(node.target, "__name__", "")
    return (
        node.is_impure()
        or name in IN_PLACE
        or (name.endswith("_") and not name.endswith("__"))
        or bool(node.kwargs.get("inplace"))
        or "out" in node.kwargs
    )


def _drop_dead(graph: Graph) -> None:
    """Remove unused nodes without effects (call_module stays: it may update statistics)."""
    for node in reversed(graph.nodes):
        keep = node.op in (*_INTERFACE, "call_module") or has_effect(node)
        if not node.users and not keep:
            graph.erase_node(node)


def _emit(model: nn.Module, twin: nn.Module, tracer: HintedTracer, graph: Graph) -> GraphModule:
    source = detached_copy(model)
    root = skeleton(source, tracer.is_leaf_module)
    for node, path in _constants(graph):
        constants = root._modules.setdefault(CONSTANTS, nn.Module())
        assert constants is not None
        constants.register_buffer(path, getattr(twin, path).clone(), persistent=False)
        node.target = f"{CONSTANTS}.{path}"
    for node in graph.nodes:
        node.meta = {"module": node.meta.get("module", "")}
        if isinstance(node.type, str):  # a postponed annotation, which torch 2.11 cannot pickle
            node.type = None
    graph.lint()
    graph._tracer_cls = None  # pickling traces the generated code again, by torch.fx's own tracer
    gm = assemble(root, graph, type(model).__name__)
    gm.meta[CAPTURED] = True
    return gm


def _constants(graph: Graph) -> Iterator[tuple[Node, str]]:
    """Tensors made while tracing, which fx stows away on the root."""
    for node in graph.nodes:
        if node.op == "get_attr" and node.target.startswith("_tensor_constant"):
            yield node, node.target
