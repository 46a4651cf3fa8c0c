"""``lwdna.shrink``: the pipeline on one screen."""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils._pytree import tree_leaves, tree_map_only
from tqdm import tqdm

from lwdna.budget import Budget, check_attainable, cost_range
from lwdna.channels import Policy
from lwdna.constraints import Constraints, Floors
from lwdna.cost import Cost
from lwdna.dna import Dna, GroupWidth, versions
from lwdna.errors import ScoringError, UnsupportedModelError
from lwdna.fx_passes.analyse import analyse
from lwdna.fx_passes.capture import capture
from lwdna.fx_passes.module import detached_copy, meta_twin
from lwdna.fx_passes.shrink import shrink_graph
from lwdna.fx_passes.widen import Multiplier
from lwdna.fx_passes.widen import widen as widen_graph
from lwdna.graph import ChannelGraph
from lwdna.inputs import default_inputs
from lwdna.scoring import Criterion, ScoringContext, as_batches, get, score, synthetic
from lwdna.selection import Selection, select

_SYNTHETIC_BATCH = 8
_STAGES = ("capture", "analyse", "widen", "score", "select", "resize")


def shrink(
    model: nn.Module,
    budget: float | str | Budget,
    *,
    data: Any = None,
    loss_fn: Callable[[Any, Any], Tensor] | None = None,
    widen: Multiplier = 2.0,
    criterion: str | Criterion = "latent-grad",
    batches: int = 2,
    floors: Floors | None = None,
    divisor: int = 1,
    policy: Policy = "auto",
    example_inputs: Any = None,
    device: torch.device | str | None = None,
    seed: int = 0,
    progress: bool = True,
) -> GraphModule:
    """Find the layer-wise differentiated widths of a network within a budget.

    Widens the network, scores its channels on a couple of batches, removes the least salient ones
    until the budget is met, and returns the smaller network, ready for the unchanged training
    protocol. Nothing is trained.

    Args:
        model: any ``nn.Module`` that is one static graph; it is not changed.
        budget: a float is the fraction of the model's own MACs that the result may have; a
            :class:`Budget` limits MACs, params or paper FLOPs, relative or absolute.
        data: one batch ``(inputs, targets)`` or anything that yields such batches; without it a
            synthetic batch is scored, with a warning.
        loss_fn: ``loss_fn(outputs, targets)`` -> scalar; cross entropy on logits by default.
        widen: factor >= 1, or a mapping from group-name pattern to factor; 1 only removes.
        criterion: name of a registered criterion (``lwdna.criteria()``) or a callable.
        batches: number of batches to take from ``data``.
        floors: least widths (:class:`Floors`).
        divisor: widths become multiples of it.
        policy: which axis of a choice point may change (heads or head_dim, ...); see
            :func:`lwdna.channels.choose_axis`.
        example_inputs: inputs to trace and count costs on; by default the first batch's, or an
            image of the size in the model's configuration.
        device: where to score; by default a CUDA device if there is one, else the model's.
        seed: of new weights and of the scoring; the global random state is not touched.
        progress: show progress on a terminal.

    Returns:
        ``torch.fx.GraphModule`` on the model's device and in its mode, with the model's parameter
        names; ``net.meta["lwdna"]`` is its :class:`Dna`: widths, budget, costs, seed, versions.

    Raises:
        BudgetError: the budget is out of reach; carries the attainable range.
        CaptureError, UnsupportedModelError: the model cannot be captured or worked on.
        ScoringError: the batch or the loss cannot score.
        ValueError, TypeError: an argument is wrong.

    Source: Li et al., "The Heterogeneity Hypothesis", CVPR 2021, section 3.

    >>> net = lwdna.shrink(timm.create_model("resnet50"), 0.9, data=loader)  # doctest: +SKIP
    """
    budget, criterion_fn, seed = Budget.of(budget), get(criterion), _seed(seed)
    constraints = Constraints(Floors() if floors is None else floors, divisor)
    check_model(model)
    taken = None if data is None else as_batches(data, batches, network=model)
    inputs = _inputs(model, taken, example_inputs)
    with _own_grad_mode(), _stages(_STAGES, progress) as stage:
        stage("capture")
        captured = capture(model, inputs)
        stage("analyse")
        graph = analyse(captured, inputs, policy=policy)
        before = graph.cost()
        limits = budget.limits(before)
        stage("widen")
        wide, wide_graph = widen_graph(captured, graph, widen, seed=seed)
        check_attainable(limits, cost_range(wide_graph, constraints), before)
        stage("score")
        context = _context(wide, wide_graph, taken, loss_fn, device, seed)
        saliency = score(context, criterion_fn)
        stage("select")
        selection = select(wide_graph, saliency, limits, constraints=constraints)
        stage("resize")
        net = shrink_graph(wide, wide_graph, selection.copies)
    name = criterion if isinstance(criterion, str) else getattr(criterion, "__name__", "custom")
    net.meta["lwdna"] = _dna(
        model, inputs, graph, wide_graph, selection, limits, name, widen, divisor, seed, before
    )
    return net


def check_model(model: nn.Module) -> None:
    """Refuse models that cannot be worked on.

    Raises:
        TypeError: not a module.
        UnsupportedModelError: a wrapper (compiled, parallel, scripted); no parameters; parameters
            on several devices or on the meta device, uninitialised (lazy), or in half precision.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}: pass an nn.Module")
    for kinds, inner in _WRAPPERS:
        if isinstance(model, kinds):
            raise UnsupportedModelError(f"model is a {type(model).__name__}: {inner}")
    parameters = dict(model.named_parameters())
    if not parameters:
        raise UnsupportedModelError(f"{type(model).__name__} has no parameters to shrink")
    devices: dict[torch.device, str] = {}
    for name, p in parameters.items():
        if isinstance(p, nn.parameter.UninitializedParameter):
            raise UnsupportedModelError(
                f"parameter {name!r} is lazy and not initialised: run the model on a batch first"
            )
        if p.dtype in (torch.float16, torch.bfloat16):
            raise UnsupportedModelError(
                f"parameter {name!r} is {p.dtype}: gradients in half precision do not score "
                "channels; call model.float(), shrink, then cast the result back"
            )
        devices.setdefault(p.device, name)
    if torch.device("meta") in devices and len(devices) == 1:
        raise UnsupportedModelError(
            "the model is on the meta device: give it values first (to_empty, then initialise)"
        )
    if len(devices) > 1:
        where = ", ".join(f"{name!r} on {device}" for device, name in devices.items())
        raise UnsupportedModelError(f"the model lies on several devices ({where}): move it to one")


_WRAPPERS = (
    (
        (nn.DataParallel, nn.parallel.DistributedDataParallel),
        "pass model.module and wrap the result again",
    ),
    ((torch._dynamo.OptimizedModule,), "pass the model as it was before torch.compile"),
    (
        (torch.jit.ScriptModule,),
        "TorchScript cannot be traced; pass the nn.Module it was made from",
    ),
)


def _seed(seed: int) -> int:
    if isinstance(seed, bool) or not hasattr(seed, "__index__"):
        raise TypeError(f"seed={seed!r}: an int, not {type(seed).__name__}")
    return operator.index(seed)


@contextmanager
def _own_grad_mode() -> Iterator[None]:
    """Gradients are recorded for the scores, whatever mode the caller is in."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def _inputs(model: nn.Module, taken: Sequence[Any] | None, example_inputs: Any) -> Any:
    if example_inputs is None:
        if taken is None:
            return default_inputs(model)
        example_inputs = taken[0][0]
    twin = meta_twin(model).eval()
    given = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    try:
        with torch.no_grad():
            twin(*tree_map_only(Tensor, lambda t: torch.empty_like(t, device="meta"), given))
    except (RuntimeError, ValueError, AssertionError, IndexError, TypeError) as e:
        if "meta" not in str(e):  # what fails only without data is the capture's to explain
            shapes = [tuple(t.shape) for t in tree_leaves(given) if isinstance(t, Tensor)]
            raise ScoringError(
                f"the model does not take a batch of shape {', '.join(map(str, shapes))}: "
                f"{type(e).__name__}: {e}. Inputs of another form go into example_inputs"
            ) from e
    return example_inputs


class _Noise(Sequence[Any]):
    """One synthetic batch, made (with its warning) when a criterion first asks for data."""

    def __init__(self, network: nn.Module, graph: ChannelGraph, seed: int) -> None:
        self._network, self._graph, self._seed = network, graph, seed
        self._made: list[Any] | None = None

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: Any) -> Any:
        if self._made is None:
            self._made = as_batches(self._batch(), 1, network=self._network)
        return self._made[index]

    def _batch(self) -> tuple[Tensor, Tensor]:
        first = next(t for t in tree_leaves(self._graph.inputs) if isinstance(t, Tensor))
        out = next(v for v in tree_leaves(self._graph.values["output"]) if hasattr(v, "vectors"))
        classes, *dense = out.shape[1:] or (2,)
        images, labels = synthetic((_SYNTHETIC_BATCH, *first.shape[1:]), classes, seed=self._seed)
        if dense:  # one label per pixel
            labels = labels.view(-1, *[1] * len(dense)).expand(-1, *dense).contiguous()
        return images, labels


def _context(
    wide: GraphModule,
    wide_graph: ChannelGraph,
    taken: Sequence[Any] | None,
    loss_fn: Any,
    device: torch.device | str | None,
    seed: int,
) -> ScoringContext:
    own = next(wide.parameters()).device
    if device is None:
        device = "cuda" if own.type == "cpu" and torch.cuda.is_available() else own
    network = wide if torch.device(device) == own else detached_copy(wide).to(device)
    if taken is None:
        batches: Sequence[Any] = _Noise(network, wide_graph, seed)
    else:
        batches = as_batches(list(taken), len(taken), network=network)
    return ScoringContext(network, wide_graph, batches, loss_fn, seed)


def _dna(
    model: nn.Module,
    inputs: Any,
    graph: ChannelGraph,
    wide_graph: ChannelGraph,
    selection: Selection,
    limits: Mapping[str, int],
    criterion: str,
    widen: Multiplier,
    divisor: int,
    seed: int,
    before: Cost,
) -> Dna:
    groups = tuple(
        GroupWidth(
            name=group.name,
            slots=tuple(str(slot) for slot, _ in group.slots),
            baseline=graph.groups[group.index].width,
            widened=group.width,
            width=int(selection.copies[group.units].sum()),
            kept=tuple(int(i) for i in np.flatnonzero(selection.copies[group.units])),
            prunable=group.prunable,
        )
        for group in wide_graph.groups
        if group.slots
    )
    return Dna(
        model=type(model).__name__,
        input_shapes=tuple(tuple(t.shape) for t in tree_leaves(inputs) if isinstance(t, Tensor)),
        groups=groups,
        limits=dict(limits),
        used=selection.used,
        note=selection.note,
        criterion=criterion,
        widen=dict(widen) if isinstance(widen, Mapping) else float(widen),
        divisor=divisor,
        seed=seed,
        before=before,
        after=selection.cost,
        versions=versions(),
    )


@contextmanager
def _stages(names: Sequence[str], progress: bool) -> Iterator[Callable[[str], None]]:
    """A progress bar over the stages; silent where stderr is no terminal."""
    silent = not (progress and sys.stderr.isatty())
    with tqdm(total=len(names), disable=silent, leave=False, unit="stage") as bar:

        def stage(name: str) -> None:
            bar.update(names.index(name) - bar.n)
            bar.set_description(f"lwdna: {name}")

        yield stage
