"""Capture the largest parts that are static graphs of a network that is none."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule
from torch.utils._pytree import tree_flatten

from lwdna.errors import CaptureError, LwdnaError, UnsupportedModelError
from lwdna.fx_passes.module import detached_copy, meta_twin, to_meta
from lwdna.fx_passes.region_watch import RUN_ERRORS, Call, Watch, watch
from lwdna.fx_passes.regions import mark, tensors_in

_logger = logging.getLogger(__name__)
OneGraph = Callable[[nn.Module, Any], GraphModule]


def capture_regions(
    model: nn.Module, arguments: tuple[Any, ...], one_graph: OneGraph, cause: CaptureError
) -> nn.Module:
    """Capture the largest submodules that are static graphs; the code between them stays.

    The network is run once in training and once in evaluation mode to see what its submodules are
    called with. From the top down, a submodule becomes a region if it can be captured, the graph
    gives results of the same shapes in every call, and nothing is used of it that a graph does not
    have (a method such as ``compute_loss``, a part of it called on its own).

    Args:
        model: the network; not changed.
        arguments: real positional arguments of ``forward``.
        one_graph: captures a module as one graph, or raises ``LwdnaError``.
        cause: why the whole is no graph.

    Returns:
        An object of the model's class, with GraphModules in place of the regions.

    Raises:
        CaptureError: ``cause``, if what keeps the network from being one graph is not that it works
            on lists of samples or on tensors whose sizes depend on values; or no example inputs to
            run it on.
        UnsupportedModelError: the model has an attribute ``meta`` of its own.
    """
    real = not any(t.is_meta for t in (*tensors_in(arguments), *model.parameters()))
    # On the meta device a run ends where a size depends on values, and has noted so.
    seen = watch(model, arguments) if real else watch(meta_twin(model), to_meta(arguments))
    if not (seen.value_sized or any(isinstance(a, (list, tuple)) for a in arguments)):
        raise cause
    if not real:
        raise CaptureError(
            f"{cause} A network of lists, or of sizes that depend on values, is captured in parts, "
            "for which it has to run: give real example inputs, e.g. "
            "example_inputs=(images, targets), and a model with values"
        ) from cause
    if hasattr(model, "meta"):
        raise UnsupportedModelError(
            f"{type(model).__name__} has an attribute 'meta', in which lwdna keeps what it knows "
            "about a captured network: rename it"
        )
    host: nn.Module = detached_copy(model)
    found = dict(_regions(host, "", seen, one_graph))
    if not found:
        raise CaptureError(
            f"{cause} No part of it with parameters could be captured either"
            + "".join(
                f"; in {mode} mode it does not run ({why})" for mode, why in seen.failed.items()
            )
        ) from cause
    for path, graph in found.items():
        _take_tensors(graph, host.get_submodule(path))
        _replace(host, host.get_submodule(path), graph)
    mark(host, list(found))
    return host


def _regions(
    module: nn.Module, path: str, seen: Watch, one_graph: OneGraph
) -> Iterator[tuple[str, GraphModule]]:
    for name, child in module.named_children():
        below = f"{path}.{name}" if path else name
        graph = _captured(child, below, seen, one_graph)
        if graph is None:
            yield from _regions(child, below, seen, one_graph)
        else:
            yield below, graph


def _captured(module: nn.Module, path: str, seen: Watch, one_graph: OneGraph) -> GraphModule | None:
    """The graph that can take the module's place, or None."""
    calls = seen.calls.get(path, [])
    if not calls or path in seen.bypassed or next(module.parameters(), None) is None:
        return None
    example = next((c for c in calls if _has_samples(c)), calls[0])
    if any(call.args is None for call in calls):
        return None
    try:
        graph = one_graph(module, example.args)
    except (LwdnaError, TypeError) as e:
        _logger.debug("%s is no region: %s", path, e)
        return None
    missing = [
        f"{below}.{name}" if below else name
        for below, name in seen.used.get(path, ())
        if not hasattr(graph.get_submodule(below), name)
    ]
    if missing:
        _logger.debug("%s is no region: code outside of it uses its %s", path, missing)
        return None
    return graph if all(_alike(call, example) for call in calls) and _fits(graph, calls) else None


def _has_samples(call: Call) -> bool:
    return all(t.numel() for t in tensors_in(call.args))


def _alike(a: Call, b: Call) -> bool:
    """Whether two calls have arguments of one structure, with tensors of any shape in it."""
    (ours, ours_in), (theirs, theirs_in) = tree_flatten(a.args), tree_flatten(b.args)
    return ours_in == theirs_in and all(_same_kind(x, y) for x, y in zip(ours, theirs, strict=True))


def _same_kind(x: Any, y: Any) -> bool:
    if isinstance(x, torch.Tensor) and isinstance(y, torch.Tensor):
        return x.dim() == y.dim() and x.dtype == y.dtype
    return type(x) is type(y) and bool(x == y)


def _fits(graph: GraphModule, calls: list[Call]) -> bool:
    """Whether the graph returns tensors of the recorded shapes in every call."""
    twin = meta_twin(graph).eval()
    for call in calls:
        try:
            with torch.no_grad(), torch.device("meta"):
                out = twin(*(call.args or ()))
        except RUN_ERRORS as e:
            _logger.debug("a graph does not take a call: %s", e)
            return False
        shapes = [[(t.shape, t.dtype) for t in tensors_in(tree)] for tree in (out, call.out)]
        if shapes[0] != shapes[1]:
            return False
    return True


def _take_tensors(graph: GraphModule, module: nn.Module) -> None:
    """Give the graph the module's own parameters and buffers: ties to other modules survive."""
    for path, child in module.named_modules(remove_duplicate=False):
        own = graph.get_submodule(path)
        for name in child._parameters:
            own._parameters[name] = child._parameters[name]
        for name in child._buffers:
            own._buffers[name] = child._buffers[name]


def _replace(host: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put ``new`` wherever ``old`` is."""
    for module in list(host.modules()):
        for name, child in module._modules.items():
            if child is old:
                module._modules[name] = new
