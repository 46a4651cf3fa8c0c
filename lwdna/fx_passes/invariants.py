"""The README's invariants on what a network computes, as functions for any model.

Each function raises :class:`lwdna.errors.VerificationError` with what differs, and returns a short
statement of what it compared otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from lwdna.channels import Ids
from lwdna.copies import is_product
from lwdna.fx_passes.analyse import analyse, single_batch
from lwdna.fx_passes.masked import run_masked, run_parts
from lwdna.fx_passes.module import detached_copy, in_double, meta_twin
from lwdna.fx_passes.outputs import freed
from lwdna.fx_passes.patches import exact_attention
from lwdna.fx_passes.regions import graphs, tensors_in
from lwdna.fx_passes.resize import resize
from lwdna.fx_passes.rounding import perturbed, relative_errors, rounding_bound
from lwdna.fx_passes.state import require
from lwdna.graph import ChannelGraph, Copies
from lwdna.inputs import as_arguments
from lwdna.tensor_channels import TensorChannels


def outputs_of(network: nn.Module, inputs: tuple[Any, ...]) -> list[Tensor]:
    """The tensors that a network returns, without gradients.

    Args:
        network: any module, in the mode to run it in.
        inputs: the positional arguments of ``forward``.
    """
    with torch.no_grad(), exact_attention():
        return [t for t in tree_leaves(network(*inputs)) if isinstance(t, Tensor)]


def evaluated(network: nn.Module, inputs: Any) -> list[Tensor]:
    """Outputs of a network in evaluation mode; the network keeps its mode and statistics.

    Args:
        network: any module.
        inputs: real inputs of ``forward``.
    """
    return outputs_of(detached_copy(network).eval(), as_arguments(network, inputs))


def identity(
    model: nn.Module, gm: nn.Module, inputs: Any, *, expected: Sequence[Tensor] | None = None
) -> str:
    """Invariant 1: the captured (or all-kept) module is bit-identical to the model.

    Args:
        model: the original.
        gm: its capture, or :func:`resize` of it with one copy of every unit.
        inputs: real inputs of ``forward``.
        expected: ``evaluated(model, inputs)`` where it is known: one forward pass less.
    """
    ours, theirs = gm.state_dict(), model.state_dict()
    require(
        list(ours) == list(theirs), f"identity: state_dict keys differ: {set(ours) ^ set(theirs)}"
    )
    for key, value in theirs.items():
        require(torch.equal(ours[key], value), f"identity: {key} differs")
    a = evaluated(model, inputs) if expected is None else expected
    b = evaluated(gm, as_arguments(model, inputs))
    require(len(a) == len(b), f"identity: {len(a)} outputs became {len(b)}")
    for k, (x, y) in enumerate(zip(a, b, strict=True)):
        require(torch.equal(x, y), f"identity: output {k} differs by {_difference(x, y)}")
    return f"{len(ours)} entries and {len(a)} outputs bit-identical"


def _difference(x: Tensor, y: Tensor) -> str:
    if x.shape != y.shape or not x.numel():
        return f"shapes {tuple(x.shape)} and {tuple(y.shape)}"
    return f"{float((x - y).abs().max()):.3g} at most"


def round_trip(
    gm: nn.Module,
    graph: ChannelGraph,
    copies: Copies,
    inputs: Any,
    *,
    expected: Sequence[Tensor] | None = None,
) -> str:
    """Invariant 2: widening and keeping the originals gives back the input, bit by bit.

    Args:
        gm: a captured network.
        graph: its channel graph.
        copies: a widening, shape (units,), every entry >= 1.
        inputs: real inputs of ``forward``.
        expected: as for :func:`identity`.
    """
    wide = resize(gm, graph, copies)
    wide_graph = graph.restrict(copies)
    originals = np.append(True, np.diff(np.repeat(np.arange(graph.units), copies)) > 0)
    back = resize(wide, wide_graph, originals.astype(np.int64))
    return identity(gm, back, inputs, expected=expected)


def masked_equivalence(
    gm: nn.Module,
    graph: ChannelGraph,
    copies: Copies,
    shrunk: nn.Module,
    inputs: Any,
    *,
    tolerance: float = 1e-9,
) -> str:
    """Invariant 3: the shrunk network computes the original with the removed channels masked.

    Computed in float64 and evaluation mode; the difference is relative to the largest output. Where
    it exceeds the tolerance, it is compared with what rounding errors do: some networks (deep, with
    gates, at random weights) amplify them a billionfold.

    Args:
        gm: the captured original.
        graph: its channel graph.
        copies: copies of each unit, 0 or 1.
        shrunk: ``resize(gm, graph, copies, ...)``.
        inputs: real inputs of ``forward``.
        tolerance: relative tolerance.
    """
    arguments = as_arguments(gm, inputs)
    # Detectors insist on float32 keypoints in their targets, which evaluation does not use.
    n = 1 if graph.calls else len(arguments)
    double = tree_map_only(
        Tensor, lambda t: t.double() if t.is_floating_point() else t, arguments[:n]
    )
    double += arguments[n:]
    with _default_dtype(torch.float64):  # of tensors that forward creates
        small = list(tensors_in(run_parts(in_double(shrunk).eval(), double)))
        masked = list(tensors_in(run_masked(in_double(gm), graph, copies, double)))
        for k, (x, y) in enumerate(zip(small, masked, strict=True)):
            require(x.shape == y.shape, f"masked equivalence: output {k}: {_difference(x, y)}")
        errors = relative_errors(small, masked)
        said = f"{len(small)} outputs within {max(errors, default=0):.1e} of the masked original"
        if max(errors, default=0) <= tolerance:
            return f"{said} (float64)"
        rounding = relative_errors(perturbed(shrunk, double), small)
    for k, (error, noise) in enumerate(zip(errors, rounding, strict=True)):
        bound = max(tolerance, rounding_bound(noise))
        require(
            error <= bound,
            f"masked equivalence: output {k} is off by {error:.3g} (relative; the last bit of "
            f"inputs and parameters is worth {noise:.1g})",
        )
    return f"{said} (float64, of which the last bit is worth {max(rounding):.1e})"


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def restriction(graph: ChannelGraph, copies: Copies, resized: nn.Module) -> str:
    """Invariant 4: analysing the resized module gives the restricted channel vectors.

    Dimensions of one entry are fixed, and have no vectors. So where ``copies`` leave one unit of
    several, an axis is gone, with what it tied together: a convolution whose groups came down to
    one is a plain one, and one with one channel per group a depthwise one. The module may be freer
    than predicted then: whatever could be changed by itself still can. Units that are alone in
    their groups, which cannot be removed anyway, are compared in number only, and do not count as
    factors.

    Args:
        graph: channel graph of the original.
        copies: the configuration, shape (units,).
        resized: ``resize(..., copies, ...)``.
    """
    predicted = graph.restrict(copies)
    found = analyse(resized, graph.inputs, policy=graph.policy, outputs=freed(graph))
    require(
        predicted.tensors.keys() == found.tensors.keys(), "restriction: other tensors have channels"
    )
    freer = bool(((predicted.widths == 1) & (graph.widths > 1)).any())
    ours, theirs = (_seen(g, but_lone=freer) for g in (predicted, found))
    pairs: list[tuple[Ids, Ids]] = [(np.zeros(0, np.int64),) * 2]
    for name, vectors in predicted.tensors.items():
        for d, (a, b) in enumerate(zip(vectors, found.tensors[name], strict=True)):
            if a is None or len(a) == 1:
                continue
            require(
                b is not None and len(a) == len(b), f"restriction: {name}[{d}] differs in length"
            )
            assert b is not None
            a, b = a[ours.compared[a]], b[ours.compared[a]]
            may, can = ours.may_change[a], theirs.may_change[b]
            alike = can >= may if freer else can == may
            require(bool(alike.all()), f"restriction: {name}[{d}] is prunable on one side only")
            fixed = -1 if freer else ours.label[a]
            pairs.append((np.where(may, ours.label[a], fixed), theirs.label[b]))
    a, b = (np.concatenate(side) for side in zip(*pairs, strict=True))
    met = len(np.unique(a * found.units + b))
    same = met == len(np.unique(b)) and (freer or met == len(np.unique(a)))
    require(same, "restriction: the channels hang together differently")
    # How often a part is called, and on how many regions of interest, depends on values.
    costs = [c.params if graph.calls else c for c in (predicted.cost(), found.cost())]
    require(costs[0] == costs[1], f"restriction: {costs[0]} became {costs[1]}")
    return f"{len(pairs) - 1} channel vectors {'at least as free' if freer else 'equal'}"


@dataclass(frozen=True)
class _Seen:
    """What :func:`restriction` compares of each unit, arrays of shape (units,).

    Attributes:
        label: equal for units that are the same.
        may_change: whether it is prunable, or one of its factors is.
        compared: whether it is compared at all.
    """

    label: Ids
    may_change: NDArray[np.bool_]
    compared: NDArray[np.bool_]


def _seen(graph: ChannelGraph, *, but_lone: bool) -> _Seen:
    own = np.arange(graph.units)[:, None]
    rows = np.concatenate([np.where(is_product(graph.factors)[:, None], -1, own), graph.factors], 1)
    lone = (rows >= 0) & (graph.widths[graph.group_of[rows]] == 1) & but_lone
    compared = (~lone & (rows >= 0)).any(axis=1)
    rows = np.where(lone & compared[:, None], -1, rows)
    rows = np.take_along_axis(rows, np.argsort(rows < 0, axis=1, kind="stable"), axis=1)
    _, label = np.unique(rows, axis=0, return_inverse=True)
    prunable = (rows >= 0) & graph.prunable[graph.group_of[rows]]
    return _Seen(label.reshape(-1), prunable.any(axis=1), compared)


def measured_cost(network: nn.Module, inputs: Any) -> tuple[int, int]:
    """(MACs on one sample, parameters) as PyTorch counts them.

    Source: torch.utils.flop_counter (half of its FLOPs), ``Tensor.numel``.
    """
    macs = _macs(network, single_batch(as_arguments(network, inputs)))
    return macs, sum(p.numel() for p in network.parameters())


def _macs(network: nn.Module, arguments: tuple[Any, ...]) -> int:
    twin = meta_twin(network).eval().requires_grad_(False)  # the counter hooks what needs gradients
    with torch.no_grad(), torch.device("meta"), FlopCounterMode(display=False) as counter:
        twin(*arguments)
    macs: int = counter.get_total_flops() // 2
    return macs


def cost(graph: ChannelGraph, copies: Copies, resized: nn.Module) -> str:
    """Invariant 5: predicted MACs and params equal the measured ones, exactly.

    A network that was captured in parts is measured part by part, in the calls that were counted.

    Args:
        graph: channel graph of the original.
        copies: the configuration, shape (units,).
        resized: ``resize(..., copies, ...)``.
    """
    predicted = graph.cost(copies)
    macs, params = (
        measured_cost(resized, graph.inputs)
        if not graph.calls
        else (
            sum(
                _macs(part, tree_map_only(TensorChannels, TensorChannels.empty, call))
                for path, part in graphs(resized).items()
                for call in graph.restrict(copies).calls[path]
            ),
            sum(p.numel() for p in resized.parameters()),
        )
    )
    require(macs == predicted.macs, f"cost: {predicted.macs} MACs predicted, {macs} measured")
    require(
        params == predicted.params, f"cost: {predicted.params} params predicted, {params} measured"
    )
    return f"{macs} MACs and {params} params as predicted"
