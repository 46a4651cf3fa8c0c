"""Regions: the captured parts of a network, which is one static graph or several.

Where the whole network cannot be one graph (detectors: lists of images, NMS, ``torch.nonzero``),
``capture`` gives an object of the original's class in which the largest parts that are static
graphs are GraphModules; the code between them runs as it is. The two forms are told apart here and
nowhere else: a network that is one graph has one region, at the path ``""``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.fx import GraphModule

from lwdna.trees import tree_leaves

#: Marks modules made by ``capture`` and everything derived from them.
CAPTURED = "lwdna_captured"
RegionRun = Callable[[str, Callable[..., Any], tuple[Any, ...]], Any]
#: In ``meta`` of a network that was captured in parts: the paths of these.
REGIONS = "lwdna_regions"


def is_captured(module: Any) -> bool:
    """Whether a module comes from ``capture``, as one graph or as several."""
    return isinstance(module, nn.Module) and CAPTURED in (getattr(module, "meta", None) or {})


def graphs(network: nn.Module) -> dict[str, GraphModule]:
    """Path -> graph of every region of a captured network; the only path of one graph is ``""``."""
    if isinstance(network, GraphModule):
        return {"": network}
    return {path: _graph(network, path) for path in meta_of(network)[REGIONS]}


def _graph(network: nn.Module, path: str) -> GraphModule:
    module = network.get_submodule(path)
    assert isinstance(module, GraphModule)
    return module


def meta_of(network: nn.Module) -> dict[str, Any]:
    """What lwdna knows about a captured network, as in ``torch.fx.GraphModule.meta``."""
    meta: Any = network.meta
    assert isinstance(meta, dict)
    return meta


def mark(network: nn.Module, paths: list[str]) -> None:
    """Note in ``meta`` that a network was captured in parts, at these paths."""
    network.meta = {CAPTURED: True, REGIONS: tuple(paths)}  # type: ignore[assignment]


def of_samples(arguments: tuple[Any, ...], n: int) -> tuple[Any, ...]:
    """``n`` samples of every argument of a network that was captured in parts.

    Lists hold one entry per sample (images, targets), tensors one row; too few are repeated.

    >>> of_samples(([1.5, 2.5],), 3)
    ([1.5, 2.5, 1.5],)
    """

    def chosen(value: Any) -> Any:
        if isinstance(value, Tensor) and value.dim() and len(value):
            return value[[k % len(value) for k in range(n)]]
        if isinstance(value, (list, tuple)) and value:
            return type(value)([value[k % len(value)] for k in range(n)])
        if isinstance(value, Mapping):
            return {key: chosen(entry) for key, entry in value.items()}
        return value

    return tuple(chosen(value) for value in arguments)


def tensors_in(tree: Any) -> Iterator[Tensor]:
    """The tensors of a pytree, in order."""
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


@contextmanager
def intercepted(network: nn.Module, run: RegionRun) -> Iterator[None]:
    """Have every region of ``network`` run by ``run(path, forward, positional arguments)``."""
    parts = graphs(network)

    def call(path: str, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        names = [n.target for n in parts[path].graph.nodes if n.op == "placeholder"]
        rest = (kwargs[str(name)] for name in names[len(args) :] if name in kwargs)
        return run(path, forward, (*args, *rest))

    for path, part in parts.items():
        part.forward = partial(call, path, part.forward)
    try:
        yield
    finally:
        for part in parts.values():
            del part.__dict__["forward"]
