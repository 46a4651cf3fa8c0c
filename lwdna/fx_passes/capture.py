"""Capture: nn.Module + example input -> torch.fx.GraphModule with the same names and values."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from lwdna.errors import CaptureError, UnsupportedModelError
from lwdna.fx_passes.conditional import LONE
from lwdna.fx_passes.interface import describe
from lwdna.fx_passes.kernels import MetaMode
from lwdna.fx_passes.members import named_modules, named_tensors
from lwdna.fx_passes.mode_reads import follows_flag, set_mode
from lwdna.fx_passes.modes import CONSTANT, Alignment, align, innermost, merge, obstacle
from lwdna.fx_passes.module import (
    CONSTANTS,
    FUNCTIONS,
    assemble,
    detached_copy,
    meta_twin,
    skeleton,
    tensors_of,
)
from lwdna.fx_passes.proxy import has_effect
from lwdna.fx_passes.reassigned import keeping_state
from lwdna.fx_passes.refusals import check_initialised, check_names
from lwdna.fx_passes.region_capture import capture_regions
from lwdna.fx_passes.regions import CAPTURED, is_captured
from lwdna.fx_passes.tracer import HintedTracer
from lwdna.inputs import as_arguments
from lwdna.trees import hides_tensors, opaque, tree_leaves, tree_map_only

#: A mode difference settles one module type per round; real networks need one or two.
_MAX_ROUNDS = 64
_INTERFACE = ("placeholder", "output")


def capture(model: nn.Module, example_inputs: Any) -> nn.Module:
    """Capture ``model`` as one static graph, for training and for evaluation.

    A detector, which works on lists of images and on tensors whose sizes depend on values, is
    captured in parts: its largest submodules that are static graphs (see
    :func:`lwdna.fx_passes.region_capture.capture_regions`).

    Module calls stay module calls down to torch.nn; parameter names and state_dict keys are the
    model's; batch size, and resolution where the model allows it, stay dynamic. What depends on
    ``module.training`` follows ``module.training``.

    What one mode alone needs (an auxiliary head) runs in that mode alone, and is not counted among
    the MACs, which are those of evaluation. The example is traced in both modes, so it must be an
    input that training accepts too; afterwards evaluation takes what it took in the model.

    Args:
        model: any ``nn.Module``; it is not changed, and nothing is shared with the result.
        example_inputs: a tensor, a tuple or list of the positional arguments of ``forward``, or a
            mapping of its arguments by name. Only shapes and dtypes are used; dimension 0 is the
            batch (a batch of 1 is traced as 2, which batch norms need in training mode). A
            detector is run on them: give real images, and targets.

    Returns:
        A ``GraphModule`` with copies of the model's parameters, in the model's mode. Of a detector
        an object of its own class, with GraphModules in place of the parts.

    Raises:
        CaptureError: the control flow depends on tensor values, or the structure differs between
            training and evaluation at the top level; the message quotes the source line.
        UnsupportedModelError: the model has uninitialised (lazy) parameters, or names that cannot
            be written into code.

    Source: torch.fx symbolic tracing (https://pytorch.org/docs/stable/fx.html).
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}: pass an nn.Module")
    check_names(model)
    for name, p in named_tensors(model)[0].items():
        check_initialised(name, p)
    if is_captured(model):
        return _recapture(model)
    arguments = as_arguments(model, example_inputs)
    try:
        return _one_graph(model, arguments)
    except CaptureError as e:
        return capture_regions(model, arguments, _one_graph, e)


def _one_graph(model: nn.Module, arguments: tuple[Any, ...]) -> GraphModule:
    _refuse_lost_behaviour(model)
    gm = _emit(model, _trace_modes(model, _example_hints(arguments)))
    _refuse_lists_of_samples(gm, arguments)
    return gm


def _refuse_lists_of_samples(gm: GraphModule, arguments: tuple[Any, ...]) -> None:
    """A list of images (C, H, W) is a batch, of a number that the graph would hold fast.

    Their first dimension, which the graph takes for the batch, is the channels: it does not run
    with another size there. Levels (N, C, H, W) of a pyramid in a list are no obstacle.
    """
    if not any(isinstance(argument, (list, tuple)) for argument in arguments):
        return
    twin = meta_twin(gm)
    set_mode(twin, training=False)
    try:
        with torch.no_grad(), torch.device("meta"):
            twin(*_example_hints(arguments, batch=1))
    except Exception as e:
        raise CaptureError(
            "the network does not run on tensors of one entry along dimension 0 in the lists that "
            f"it is given: {e} If they are single samples, their number is part of the graph; give "
            "forward one tensor of samples, or lists of tensors with a batch dimension"
        ) from e


def _refuse_lost_behaviour(model: nn.Module) -> None:
    """What a graph cannot carry over: hooks of the model itself, and its own ``train``."""
    if model._forward_hooks or model._forward_pre_hooks:
        raise UnsupportedModelError(
            f"{type(model).__name__} has forward hooks of its own, which a graph does not call: "
            "remove them, and register them on the result"
        )
    for path, module in named_modules(model):
        if type(module).train is not nn.Module.train and not isinstance(module, GraphModule):
            warnings.warn(
                f"{path or 'the model'} ({type(module).__name__}) overrides train(): the captured "
                "network does not; set the modes of its modules yourself",
                stacklevel=4,
            )


def _recapture(model: nn.Module) -> nn.Module:
    """A captured module is its own capture: tracing it again would gain nothing."""
    new: nn.Module = detached_copy(model)
    return new


def _example_hints(arguments: tuple[Any, ...], batch: int | None = None) -> tuple[Any, ...]:
    """Meta tensors like the arguments, of this batch size (of theirs, but at least 2)."""

    def hint(t: Tensor) -> Tensor:
        size = (batch or max(2, t.shape[0]), *t.shape[1:]) if t.dim() else ()
        return torch.empty(size, dtype=t.dtype, device="meta")

    for leaf in tree_leaves(arguments):
        if hides_tensors(leaf):
            raise CaptureError(f"the example inputs hold {opaque(leaf)}")
    return tuple(tree_map_only(Tensor, hint, value) for value in arguments)


@dataclass(frozen=True)
class _Trace:
    """A graph with the tracer and the twin that it came from."""

    tracer: HintedTracer
    twin: nn.Module
    graph: Graph


def _trace(
    model: nn.Module, training: bool, hints: Any, leaves: frozenset[str], kernels: MetaMode
) -> _Trace:
    # A fresh twin each time: forward() may keep what it computes (a cached position table), and
    # train() may clear such caches.
    twin = meta_twin(model)
    set_mode(twin, training)
    tracer = HintedTracer(hints, leaves, kernels)
    return _Trace(tracer, twin, tracer.trace(twin))


def _trace_modes(model: nn.Module, hints: Any) -> _Trace:
    """Trace in both modes, and merge; what exists in one mode only is best left to a leaf.

    A network that never asks for its mode is the same in both, and is traced once.
    """
    leaves: frozenset[str] = frozenset()
    kernels = MetaMode()
    for _ in range(_MAX_ROUNDS):
        evaluated = _trace(model, False, hints, leaves, kernels)
        more = keeping_state(evaluated.twin, leaves)
        if not more and not evaluated.tracer.asked_mode and follows_flag(model):
            return evaluated
        trained = _trace(model, True, hints, leaves, kernels)
        more |= keeping_state(trained.twin, leaves)
        alignment = align(evaluated.graph, trained.graph)
        more = more or _mode_leaves(evaluated, trained, alignment)
        if not more:
            break
        leaves |= more
    merge(evaluated.graph, trained.graph, alignment, (evaluated.twin, trained.twin))
    return evaluated


def _mode_leaves(evaluated: _Trace, trained: _Trace, alignment: Alignment) -> set[str]:
    """Modules without parameters that do something else in each mode stay as they are.

    A module with parameters is left as it is only where merging would change what it does, since
    the channels of a leaf of several layers are frozen.
    """
    entered = evaluated.tracer.entered & trained.tracer.entered
    places = {innermost(node, entered) for node in alignment.lone} - {""}
    bare = {
        p for p in places if not any(True for _ in evaluated.twin.get_submodule(p).parameters())
    }
    if bare:
        return bare
    found = obstacle((evaluated.twin, trained.twin), alignment)
    if found is None:
        return set()
    place = innermost(found.node, entered)
    if not place:
        raise CaptureError(
            f"{type(evaluated.twin).__name__}.forward has a different structure in training and "
            f"in evaluation mode, and {found.node.format_node()} runs in one of them only: "
            f"{found.why}. {found.remedy}."
        )
    return {place}


def _drop_dead(graph: Graph) -> None:
    """Remove unused nodes without effects (call_module stays: it may update statistics)."""
    for node in reversed(graph.nodes):
        keep = node.op in (*_INTERFACE, "call_module") or has_effect(node)
        if not node.users and not keep:
            graph.erase_node(node)


def _emit(model: nn.Module, trace: _Trace) -> GraphModule:
    graph = trace.graph
    _drop_dead(graph)
    root = detached_copy(skeleton(model, trace.tracer.is_leaf_module))
    for node, path in _constants(graph):
        constants = root._modules.setdefault(CONSTANTS, nn.Module())
        assert constants is not None
        constant = getattr(trace.twin, path)
        if constant.is_meta and not all(t.is_meta for t in tensors_of(root)):
            raise CaptureError(
                f"forward makes a constant of shape {tuple(constant.shape)} from a tensor that is "
                "kept where no graph looks for it: register that tensor as a buffer"
            )
        constants.register_buffer(path, constant.clone(), persistent=False)
        node.target = f"{CONSTANTS}.{path}"
    if FUNCTIONS in trace.twin._modules:
        root._modules[FUNCTIONS] = trace.twin._modules[FUNCTIONS]
    for node in graph.nodes:
        node.meta = {key: node.meta[key] for key in ("module", LONE) if key in node.meta}
        if isinstance(node.type, str):  # a postponed annotation, which torch 2.11 cannot pickle
            node.type = None
    graph.lint()
    graph._tracer_cls = None  # pickling traces the generated code again, by torch.fx's own tracer
    gm = assemble(root, graph, type(model).__name__)
    gm.meta[CAPTURED] = True
    describe(gm, model, trace.tracer.calls)
    return gm


def _constants(graph: Graph) -> Iterator[tuple[Node, str]]:
    """Tensors made while tracing, which fx stows away on the root."""
    for node in graph.nodes:
        if node.op == "get_attr" and node.target.startswith(CONSTANT):
            yield node, node.target
