"""The invariants of DESIGN as functions that can be run on any model.

Each function raises :class:`lwdna.errors.VerificationError` with what differs, and returns a short
statement of what it compared otherwise.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from lwdna.channels import Policy
from lwdna.fx_passes.analyse import analyse, single_batch
from lwdna.fx_passes.capture import capture
from lwdna.fx_passes.masked import run_masked, run_parts
from lwdna.fx_passes.module import detached_copy, in_double, meta_twin
from lwdna.fx_passes.outputs import Outputs, freed
from lwdna.fx_passes.patches import exact_attention
from lwdna.fx_passes.regions import graphs, of_samples, tensors_in
from lwdna.fx_passes.resize import resize
from lwdna.fx_passes.state import require, stir, untouched
from lwdna.fx_passes.widen import widen_copies
from lwdna.graph import ChannelGraph, Copies, TensorChannels
from lwdna.inputs import as_arguments


def _outputs(network: nn.Module, inputs: tuple[Any, ...]) -> list[Tensor]:
    with torch.no_grad(), exact_attention():
        return [t for t in tree_leaves(network(*inputs)) if isinstance(t, Tensor)]


def evaluated(network: nn.Module, inputs: Any) -> list[Tensor]:
    """Outputs of a network in evaluation mode; the network keeps its mode and statistics.

    Args:
        network: any module.
        inputs: real inputs of ``forward``.
    """
    return _outputs(detached_copy(network).eval(), as_arguments(network, inputs))


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

    Computed in float64 and evaluation mode; the difference is relative to the largest output.

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
    worst = 0.0
    for k, (x, y) in enumerate(zip(small, masked, strict=True)):
        require(x.shape == y.shape, f"masked equivalence: output {k}: {_difference(x, y)}")
        if not x.numel():
            continue
        x, y = x.double(), y.double()  # labels are integers
        error = float((x - y).abs().max() / y.abs().max().clamp_min(1e-300))
        require(
            error <= tolerance, f"masked equivalence: output {k} is off by {error:.3g} (relative)"
        )
        worst = max(worst, error)
    return f"{len(small)} outputs within {worst:.1e} of the masked original (float64)"


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
    ours: list[Any] = []
    theirs: list[Any] = []
    frozen: list[Any] = []
    for name, vectors in predicted.tensors.items():
        for d, (a, b) in enumerate(zip(vectors, found.tensors[name], strict=True)):
            if a is None or len(a) == 1:
                continue
            require(
                b is not None and len(a) == len(b), f"restriction: {name}[{d}] differs in length"
            )
            ours.append(a)
            theirs.append(b)
            alike = predicted.prunable[predicted.group_of[a]] == found.prunable[found.group_of[b]]
            frozen.append(alike)
            require(bool(alike.all()), f"restriction: {name}[{d}] is prunable on one side only")
    same = np.array_equal(*(_canonical(np.concatenate(side)) for side in (ours, theirs)))
    require(same, "restriction: the channels hang together differently")
    # How often a part is called, and on how many regions of interest, depends on values.
    costs = [c.params if graph.calls else c for c in (predicted.cost(), found.cost())]
    require(costs[0] == costs[1], f"restriction: {costs[0]} became {costs[1]}")
    return f"{len(ours)} channel vectors equal"


def _canonical(labels: Any) -> Any:
    """Labels renumbered by first occurrence."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse]


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


def trains(
    network: nn.Module,
    inputs: Any,
    *,
    loss_fn: Callable[[Any], Tensor] | None = None,
    batches: Sequence[int] = (1, 3),
) -> str:
    """Invariant 7: modes act, batch sizes work, gradients are finite, state round-trips.

    Args:
        network: any captured or resized network; a copy is worked on.
        inputs: real inputs of ``forward``, batch first.
        loss_fn: loss from the output; the mean square of all outputs by default.
        batches: batch sizes to evaluate; the last one is trained on.
    """
    work: nn.Module = detached_copy(network)
    work.eval()
    require(not any(m.training for m in work.modules()), "trains: eval() does not reach a module")
    for n in batches:
        batch = _batch(as_arguments(network, inputs), n)
        again = [_outputs(work, batch) for _ in range(2)]
        for x, y in zip(*again, strict=True):
            require(torch.equal(x, y), "trains: evaluation is not deterministic")
            require(bool(x.isfinite().all()), f"trains: batch {n} gives values that are not finite")
    require(
        all(
            torch.equal(x, y)
            for x, y in zip(_outputs(copy.deepcopy(work), batch), again[0], strict=True)
        ),
        "trains: a deepcopy computes something else",
    )
    state = {key: value.clone() for key, value in work.state_dict().items()}
    other = copy.deepcopy(work)
    other.load_state_dict(state, strict=True)
    work.train()
    require(all(m.training for m in work.modules()), "trains: train() does not reach a module")
    out = [t for t in tree_leaves(work(*batch)) if isinstance(t, Tensor) and t.is_floating_point()]
    loss = (
        loss_fn(out)
        if loss_fn is not None
        else sum((t.square().mean() for t in out), torch.zeros(()))
    )
    loss.backward()
    used = 0
    for name, p in work.named_parameters():
        if p.grad is not None:
            used += 1
            require(bool(p.grad.isfinite().all()), f"trains: gradient of {name} is not finite")
    require(used > 0, "trains: no parameter gets a gradient")
    return (
        f"{used} parameters with finite gradients, batches {' and '.join(map(str, batches))}, "
        "state and deepcopy round-trip"
    )


def _batch(inputs: tuple[Any, ...], n: int) -> tuple[Any, ...]:
    """The inputs at batch size ``n`` (samples of batches repeated with small noise)."""
    if any(isinstance(value, (list, tuple)) for value in inputs):
        return of_samples(inputs, n)

    def sized(t: Tensor) -> Tensor:
        if not t.dim():
            return t
        rows = t[torch.arange(n, device=t.device) % len(t)]
        if not t.is_floating_point():
            return rows
        noise = 1e-3 * torch.arange(n, device=t.device, dtype=t.dtype)
        return rows + noise.view(-1, *[1] * (t.dim() - 1))

    return tuple(tree_map_only(Tensor, sized, inputs))


@dataclass(frozen=True)
class Verification:
    """What :func:`verify` compared, by invariant; prints as text."""

    statements: dict[str, str]

    def __str__(self) -> str:
        return "\n".join(f"{name}: {said}" for name, said in self.statements.items())


def verify(
    model: nn.Module,
    example_inputs: Any,
    *,
    keep: float = 0.7,
    policy: Policy = "auto",
    outputs: Outputs = "fixed",
    seed: int = 0,
) -> Verification:
    """Check all seven invariants on a model, with a random shrinking and widening of it.

    Args:
        model: any ``nn.Module``; it is not changed (which is one of the checks).
        example_inputs: real inputs of ``forward``, batch first; see
            :func:`lwdna.inputs.as_arguments`.
        keep: fraction of every prunable group that the random shrinking keeps.
        policy: see :func:`lwdna.choices.choose_axis`.
        outputs: see :func:`lwdna.analyse`.
        seed: of the choice of units and of the values that stand in for constant parameters.

    Returns:
        What was compared.

    Raises:
        VerificationError: an invariant does not hold.
    """
    rng = np.random.default_rng(seed)
    example_inputs = as_arguments(model, example_inputs)
    with untouched(model), torch.random.fork_rng():
        work = detached_copy(model)
        stir(work, seed=seed)
        gm = capture(work, example_inputs)
        graph = analyse(gm, example_inputs, policy=policy, outputs=outputs)
        fewer = random_copies(graph, keep, rng)
        small = resize(gm, graph, fewer)
        more = widen_copies(graph, 1.5)
        said = {
            "identity": identity(work, gm, example_inputs),
            "round trip": round_trip(gm, graph, more, example_inputs),
            "masked equivalence": masked_equivalence(gm, graph, fewer, small, example_inputs),
            "restriction": restriction(graph, fewer, small),
            "cost": cost(graph, fewer, small),
            "trains": trains(small, example_inputs),
        }
    return Verification({**said, "untouched": "the model is as it was"})


def random_copies(graph: ChannelGraph, keep: float, rng: np.random.Generator) -> Copies:
    """A random configuration that keeps the fraction ``keep`` (at least 2) of every group."""
    copies = graph.keep_all()
    for group in graph.groups:
        if group.prunable:
            kept = max(min(2, group.width), round(group.width * keep))
            copies[rng.permutation(group.units)[kept:]] = 0
    return graph.completed(copies)
