"""Analyse: GraphModule -> ChannelGraph, by running the graph once on meta tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
import torch
import torch.fx
from torch import Tensor, nn
from torch.fx import GraphModule

from lwdna.channels import Policy
from lwdna.choices import resolve
from lwdna.errors import AnalysisError, LwdnaError
from lwdna.fx_passes._base import captured, graph_pass
from lwdna.fx_passes.channel_interpreter import ChannelInterpreter
from lwdna.fx_passes.channel_mode import ChannelMode
from lwdna.fx_passes.layouts import meta_like
from lwdna.fx_passes.members import modules_of, named_tensors
from lwdna.fx_passes.mode_reads import set_mode
from lwdna.fx_passes.module import meta_twin, tree_of
from lwdna.fx_passes.outputs import REASON, Outputs, check_outputs, freeze_outputs
from lwdna.graph import ChannelGraph
from lwdna.graph_builder import build_graph
from lwdna.inputs import as_arguments
from lwdna.tensor_channels import TensorChannels, WeightRole
from lwdna.trees import tree_map

#: The activations that the paper's counter sees: objects of these classes.
#: Source: the authors' counter
#: (https://github.com/ofsoundof/dhp, restoration/model/flops_counter.py).
_COUNTED = (nn.ReLU, nn.ReLU6, nn.PReLU, nn.LeakyReLU, nn.ELU)


def single_batch(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """The first sample of every argument of ``forward``, on the meta device."""

    def first(value: Any) -> Any:
        if isinstance(value, Tensor):
            return meta_like(value[:1] if value.dim() else value)
        return value

    return tuple(tree_map(first, value) for value in arguments)


@graph_pass(requires=(captured,))
def analyse(
    gm: nn.Module, example_inputs: Any, *, policy: Policy = "auto", outputs: Outputs = "fixed"
) -> ChannelGraph:
    """Find the channel units, groups, couplings and costs of a captured network.

    Args:
        gm: a captured network (see :func:`lwdna.capture`); it is not changed.
        example_inputs: ``forward``'s arguments, see :func:`lwdna.inputs.as_arguments`. Only shapes
            and dtypes matter; costs are for batch size 1 at this resolution. A network that was
            captured in parts runs on them: see :func:`lwdna.fx_passes.region_follow.follow`.
        policy: which axis of a choice point may change; see
            :func:`lwdna.choices.choose_axis`.
        outputs: ``"fixed"``: outputs keep their shapes. ``"free"``: the channels of outputs that
            are feature maps or token sequences (three dimensions or more) may change, as those of
            a backbone whose user adapts to them; see :mod:`lwdna.fx_passes.outputs` for which
            dimension that is. Or a mapping from output-name pattern (``fnmatch``; ``"0"``,
            ``"layer4"``, ``"output"`` for a lone one) to one of these; what matches nothing is
            fixed.

    Returns:
        The channel graph.

    Raises:
        ValueError: ``policy`` or ``outputs`` is none, or frees what is no feature map.
        AnalysisError: an operator's result contradicts its rule, or the network does not run on
            a batch of one.

    Source: torch.utils._python_dispatch.
    """
    check_outputs(outputs)
    if not isinstance(gm, GraphModule):
        from lwdna.fx_passes.region_probe import analyse_parts  # it builds on this module

        return analyse_parts(gm, as_arguments(gm, example_inputs), policy=policy, outputs=outputs)
    twin = meta_twin(tree_of(gm))
    set_mode(twin, training=False)
    mode = ChannelMode(twin)
    interpreter = ChannelInterpreter(twin, gm.graph, mode)
    relus = watch_relus(twin, mode)
    inputs = single_batch(as_arguments(gm, example_inputs))
    with torch.inference_mode(), torch.device("meta"), mode:
        try:
            interpreter.run(*inputs)
        except LwdnaError:
            raise
        except Exception as e:
            raise AnalysisError(
                f"node {mode.node!r} fails on a batch of one sample on the meta device, on which "
                "channels are analysed: the example inputs lack a batch dimension in front, or the "
                f"network holds their batch size fast: {type(e).__name__}: {e}"
            ) from e
    freeze_outputs(mode.space, interpreter.values["output"], outputs)
    return close_graph(mode, twin, interpreter.values, inputs, relus, policy)


def close_graph(
    mode: ChannelMode,
    twin: nn.Module,
    values: Mapping[str, Any],
    inputs: tuple[Any, ...],
    relus: Mapping[int, TensorChannels],
    policy: Policy,
    calls: Mapping[str, tuple[tuple[Any, ...], ...]] | None = None,
) -> ChannelGraph:
    """The channel graph of a network that has run under ``mode``.

    Args:
        mode: with its outputs frozen.
        twin: the network that ran.
        values: node name -> pytree of :class:`TensorChannels`.
        inputs: what it ran on.
        relus: see :func:`watch_relus`.
        policy: decides the choice points.
        calls: see :class:`lwdna.graph.ChannelGraph`.
    """
    for out in relus.values():
        fixed = prod(n for n, v in zip(out.shape, out.vectors, strict=True) if v is None)
        mode.node = ""
        mode.add_term("relu", fixed, out.vectors)
    _freeze_data(mode)
    resolve(mode.space, policy)
    _close_kernels(mode)
    _param_terms(mode, twin)
    return build_graph(
        mode.space,
        mode.tensors,
        mode._buffers,
        mode.terms,
        values,
        mode.facts,
        _with_classifiers(mode),
        inputs,
        calls,
    )


def watch_relus(root: nn.Module, mode: ChannelMode) -> dict[int, TensorChannels]:
    """The last output of every object of a counted activation, for the paper's counter."""
    last: dict[int, TensorChannels] = {}

    def hook(module: nn.Module) -> Callable[..., None]:
        def note(_m: nn.Module, _args: Any, out: Tensor) -> None:
            if mode.counting:
                last[id(module)] = mode.channels(out)

        return note

    for module in modules_of(root):
        if isinstance(module, _COUNTED):
            module.register_forward_hook(hook(module))
    return last


def _freeze_data(mode: ChannelMode) -> None:
    """Freeze constants that layers take in and none puts out (coordinates, frequencies).

    They are data, as the channels of an image are: a copy would say nothing new, and what is
    removed, no training brings back.
    """
    space = mode.space
    made = np.zeros(space.size, dtype=bool)  # by representative
    rectangles = (ids for r in space.rectangles for ids in (r.whole, *r.axes))
    for ids in (*mode.made, *rectangles):
        made[space.find(ids)] = True
    buffers = {name: vectors for name, vectors in mode.tensors.items() if name in mode._buffers}
    for name in mode.tensors.keys() - buffers.keys():
        taken_in = mode.roles[name].in_dim if name in mode.roles else None
        for d, v in enumerate(mode.tensors[name]):
            if v is not None and d != taken_in:
                made[space.find(v)] = True
    for name, vectors in buffers.items():
        for v in vectors:
            if v is not None:
                space.freeze(v[~made[space.find(v)]], f"entries of the constant {name!r}", "")


def _close_kernels(mode: ChannelMode) -> None:
    """Kernel positions are no channels: the dimensions of a weight that its role leaves out."""
    for name, role in mode.roles.items():
        mode.tensors[name] = tuple(
            v if d in (role.out_dim, role.in_dim) else None
            for d, v in enumerate(mode.tensors[name])
        )


def _param_terms(mode: ChannelMode, root: nn.Module) -> None:
    for name, p in named_tensors(root)[0].items():
        vectors = mode.tensors.get(name, (None,) * p.dim())
        mode.node = name
        fixed = prod(n for n, v in zip(p.shape, vectors, strict=True) if v is None)
        mode.add_term("params", fixed, vectors)


def _with_classifiers(mode: ChannelMode) -> dict[str, WeightRole]:
    is_output = np.zeros(mode.space.size, dtype=bool)  # by representative
    for freeze in mode.space.freezes:
        if freeze.reason == REASON:
            is_output[mode.space.find(freeze.ids)] = True
    result = {}
    for name, role in mode.roles.items():
        out = mode.tensors[name][role.out_dim]
        final = out is not None and bool(is_output[mode.space.find(out)].all())
        result[name] = replace(role, classifier=final)
    return result
