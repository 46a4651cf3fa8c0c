"""What a model says about itself: the attributes that its users read, on captured networks too.

A captured network is a ``GraphModule``; the attributes of the model's class do not come with it.
The ones below do. Each that counts channels is *defined* by a place in the graph (the result of
``forward_features``, the input of the classifier, the result of a named module ...), so that its
value on a resized network is that place's number of channels, not a guess from equal numbers. A
definition that does not hold on the network at hand (the place has another number of channels than
the attribute says) is no definition of it: the attribute is left out as soon as it would change.
Two methods come along, too: what an optimiser asks a model for (:mod:`lwdna.fx_passes.grouping`).

Source: https://huggingface.co/docs/timm/feature_extraction (``feature_info``, ``num_features``,
``head_hidden_size``, ``get_classifier``); torchvision's detection backbones (``out_channels``).
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.fx import GraphModule, Node

from lwdna.fx_passes.grouping import groupings
from lwdna.fx_passes.members import named_modules
from lwdna.fx_passes.outputs import channel_dim
from lwdna.graph import ChannelGraph, Copies
from lwdna.tensor_channels import TensorChannels
from lwdna.trees import tree_leaves

#: Key of a captured module's :class:`Interface` in its ``meta``.
INTERFACE = "lwdna_interface"
#: Method of timm's models whose result ``num_features`` counts.
FEATURES = "forward_features"

_AS_THEY_ARE = (
    "default_cfg",
    "in_chans",  # the image's channels, which never change
    "num_prefix_tokens",
    "num_reg_tokens",
    "output_fmt",
    "pretrained_cfg",
)
_INFO = "feature_info"
_ALL_OUTPUTS = "out_channels"


@dataclass(frozen=True)
class Call:
    """The graph nodes of one call of a module or method: its first argument and its result."""

    argument: Node | None
    result: Node | None

    @classmethod
    def of(cls, args: Any, result: Any) -> Call:
        """From what was passed and returned while tracing (proxies); None unless one tensor."""
        found = [tree_leaves(args)[:1], tree_leaves(result)]
        nodes = [getattr(f[0], "node", None) if len(f) == 1 else None for f in found]
        return cls(*nodes)


@dataclass(frozen=True)
class Place:
    """One tensor in the graph: the ``index``-th that the node of this name returns."""

    node: str
    index: int = 0


@dataclass(frozen=True)
class Interface:
    """Which attributes a captured network has, and which places of its graph they count.

    Attributes:
        names: the attributes, as they are set on the module.
        counts: attribute -> the places whose (common) number of channels it is.
        stages: place of each entry of ``feature_info``; None where the network has no such stage.
    """

    names: tuple[str, ...]
    counts: Mapping[str, tuple[Place, ...]]
    stages: tuple[Place | None, ...]


def describe(gm: GraphModule, model: nn.Module, calls: Mapping[str, Call]) -> None:
    """Give a captured network the attributes by which its model describes itself.

    Args:
        gm: the captured network; attributes are set on it.
        model: the original, whose values are copied.
        calls: module path (or :data:`FEATURES`) -> its call in the graph of ``gm``.
    """
    alive = set(gm.graph.nodes)

    def place(node: Node | None) -> Place | None:
        return Place(node.name) if node is not None and node in alive else None

    classifier = calls.get(_classifier_path(model) or "", Call(None, None))
    features = calls.get(FEATURES, Call(None, None))
    embedding = calls.get("patch_embed", Call(None, None))
    outputs = tuple(Place("output", k) for k in range(_n_outputs(gm)))
    found: dict[str, tuple[Place | None, ...]] = {
        "num_classes": (place(classifier.result),),
        "num_features": (place(features.result),),
        "head_hidden_size": (place(classifier.argument),),
        "embed_dim": (place(embedding.result),),
        _ALL_OUTPUTS: outputs,
    }
    counts = {
        name: tuple(p for p in places if p is not None)
        for name, places in found.items()
        if _is_count(getattr(model, name, None)) and None not in places
    }
    stages: tuple[Place | None, ...] = ()
    if _entries(getattr(model, _INFO, None)):
        stages = tuple(_stages(model.feature_info, calls, place, outputs))
    absent = tuple(name for name in found if getattr(model, name, None) == 0)  # no classifier
    plain = (*(name for name in _AS_THEY_ARE if hasattr(model, name)), *absent)
    names = (*plain, *counts, *((_INFO,) if stages else ()))
    told = {name: copy.deepcopy(getattr(model, name)) for name in names} | dict(groupings(model))
    for name, value in told.items():
        setattr(gm, name, value)
    gm.meta[INTERFACE] = Interface(tuple(told), counts, stages)


def update(gm: GraphModule, graph: ChannelGraph, copies: Copies) -> None:
    """Bring the attributes of a resized network up to date.

    Args:
        gm: the resized network, with the attributes of the network it was made from.
        graph: channel graph of the network it was made from.
        copies: copies of each unit of ``graph``.
    """
    interface: Interface = gm.meta[INTERFACE]
    counts = {}
    for name, places in interface.counts.items():
        new = {_recounted(graph, copies, p, getattr(gm, name)) for p in places}
        if len(new) == 1 and None not in new:
            setattr(gm, name, new.pop())
            counts[name] = places
        else:
            delattr(gm, name)
    for entry, stage in zip(_entries(getattr(gm, _INFO, ())), interface.stages, strict=True):
        old = entry["num_chs"]
        known = stage is not None and old is not None
        entry["num_chs"] = _recounted(graph, copies, stage, old) if known else None
    names = (n for n in interface.names if n in counts or n not in interface.counts)
    gm.meta[INTERFACE] = Interface(tuple(names), counts, interface.stages)


def attributes(gm: GraphModule) -> Iterator[tuple[str, Any]]:
    """The attributes that :func:`describe` and :func:`update` have set, with their values."""
    interface: Interface | None = gm.meta.get(INTERFACE)
    if interface is not None:
        yield from ((name, getattr(gm, name)) for name in interface.names)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _classifier_path(model: nn.Module) -> str | None:
    """Where timm's ``get_classifier()`` finds the classifier; the first of several."""
    method = getattr(model, "get_classifier", None)
    if method is None or any(
        p.default is p.empty for p in inspect.signature(method).parameters.values()
    ):
        return None
    found = method()
    first = next(iter(found), None) if isinstance(found, (tuple, list, nn.ModuleList)) else found
    return next((path for path, m in named_modules(model) if m is first), None)


def _n_outputs(gm: GraphModule) -> int:
    output = next(node for node in reversed(gm.graph.nodes) if node.op == "output")
    return sum(isinstance(leaf, Node) for leaf in tree_leaves(output.args[0]))


def _entries(feature_info: Any) -> list[dict[str, Any]]:
    """The stages of timm's ``feature_info``: a list, or a ``FeatureInfo`` around one."""
    entries = getattr(feature_info, "info", feature_info)
    proper = isinstance(entries, (list, tuple)) and all(
        isinstance(e, dict) and "num_chs" in e for e in entries
    )
    return list(entries) if proper else []


def _stages(info: Any, calls: Mapping[str, Call], place: Any, outputs: Any) -> Iterator[Any]:
    """Place of each stage: an output, in ``features_only`` networks; else a module's result."""
    entries = _entries(info)
    indices = sorted(i % len(entries) for i in getattr(info, "out_indices", ()))
    returned = dict(zip(indices, outputs, strict=True)) if len(indices) == len(outputs) else {}
    for k, entry in enumerate(entries):
        path = str(entry.get("module", ""))
        # timm's wrappers flatten the tree ("stages_0") or put it below "model".
        tried = (calls.get(p) for p in (path, path.replace(".", "_"), f"model.{path}"))
        call = next((c for c in tried if c is not None), Call(None, None))
        yield returned.get(k, place(call.result))


def _recounted(graph: ChannelGraph, copies: Copies, place: Place | None, old: int) -> int | None:
    """Number of channels at a place after resizing; None if ``old`` is not the one before it."""
    assert place is not None
    leaves = tree_leaves(graph.values.get(place.node))
    tensors = [t for t in leaves if isinstance(t, TensorChannels)]
    if place.index >= len(tensors):
        return None
    tensor = tensors[place.index]
    if all(v is None or (copies[v] == 1).all() for v in tensor.vectors):
        return old
    dim = channel_dim(graph, tensor)
    vector = None if dim is None else tensor.vectors[dim]
    if dim is None or vector is None or tensor.shape[dim] != old:
        return None
    return int(copies[vector].sum())
