"""Rebuild: a DNA and a network as its constructor gives it -> the network of these widths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import nn

from lwdna.channels import Ids
from lwdna.checks import check_choice
from lwdna.cost import METRICS
from lwdna.dna import Dna
from lwdna.errors import DnaError, LwdnaError, SourceError
from lwdna.example import remade
from lwdna.fx_passes.analyse import analyse
from lwdna.fx_passes.capture import capture
from lwdna.fx_passes.refusals import check_values
from lwdna.fx_passes.regions import is_captured, meta_of, tensors_in
from lwdna.fx_passes.reinitialise import reinitialise
from lwdna.fx_passes.resize import resize
from lwdna.fx_passes.shrink import shrink_graph
from lwdna.fx_passes.widen import widen_copies
from lwdna.graph import ChannelGraph, Copies
from lwdna.group_width import MOST_UNITS
from lwdna.source import build, source_of, without_values

Values = Literal["inherit", "fresh"]


@dataclass(frozen=True, eq=False)
class Origin:
    """The network that a DNA speaks of, before anything is widened.

    Attributes:
        captured: the network.
        graph: its channel graph.
        free: the same with the groups fixed that the DNA's constraints freeze.
        wide_copies: copies per unit that widen it, shape (units,).
    """

    captured: nn.Module
    graph: ChannelGraph
    free: ChannelGraph
    wide_copies: Copies


def rebuild(
    model: nn.Module, dna: Dna, *, weights: Values = "inherit", example_inputs: Any = None
) -> nn.Module:
    """Give a network the widths of a DNA; nothing is scored, and no data is needed.

    It is what :func:`lwdna.shrink` did after the scoring: with the same model, and ``weights``
    those that it was called with, the result is the same to the last bit.

    Args:
        model: as the constructor gives it, with values of any kind, or on the meta device (then
            the result is there, too); it is not changed. A network that is captured in parts needs
            values.
        dna: the widths.
        weights: ``"inherit"``, the model's own, sliced (and fresh where it was widened), or
            ``"fresh"``, drawn by each tensor's own initialisation law at its new width.
        example_inputs: inputs to trace on; by default the DNA's.

    Returns:
        As from :func:`lwdna.shrink`; the DNA is in ``meta["lwdna"]``.

    Raises:
        DnaError: the DNA is of another network.
        CaptureError, UnsupportedModelError: the model cannot be captured, or has no values, and
            fresh ones are wanted.
        ValueError: ``weights`` is neither.
    """
    check_choice("weights", weights, get_args(Values))
    fresh = weights == "fresh"
    if fresh:
        check_values(model, "weights='fresh'")
    origin, wide_graph, copies = _selected(model, dna, example_inputs)
    net = _in_two_steps(origin, wide_graph, copies, dna.seed)
    if fresh:
        net = reinitialise(net, origin.captured, origin.graph, seed=dna.seed)
    meta_of(net)["lwdna"] = replace(dna, source=source_of(model) or dna.source)
    return net


def structure(
    dna: Dna,
    trust: Sequence[str] = (),
    *,
    example_inputs: Any = None,
    at_once: bool = True,
) -> nn.Module:
    """The network of a DNA; its values do not matter, and most are on the meta device.

    Where values do not matter, no network need be widened before it is shrunk: a unit has as many
    copies as stay of those that it was widened to. Both ways give the same sizes. That the code of
    the graph is written alike, no invariant says; :func:`lwdna.save` compares.

    Args:
        dna: the widths, from anywhere.
        trust: see :func:`lwdna.load`.
        example_inputs: see :func:`rebuild`.
        at_once: resize once; else as :func:`rebuild` does.

    Raises:
        SourceError: see :func:`construct_for`.
        DnaError: the DNA is of another network, or does not fit it.
    """
    model = construct_for(dna, trust)
    try:
        origin, wide_graph, copies = _selected(model, dna, example_inputs)
        if not at_once:
            return _in_two_steps(origin, wide_graph, copies, dna.seed)
        left = np.bincount(wide_graph.origin, weights=copies, minlength=origin.free.units)
        net: nn.Module = resize(origin.captured, origin.free, left.astype(np.int64))
        return net
    except LwdnaError:
        raise
    except Exception as e:  # a DNA that nobody vouches for
        raise DnaError(f"the DNA does not fit {dna.source}: {type(e).__name__}: {e}") from e


def _selected(
    model: nn.Module, dna: Dna, example_inputs: Any
) -> tuple[Origin, ChannelGraph, Copies]:
    """The network of a DNA, the graph that is widened, and what of it stays."""
    origin = originate(model, dna, example_inputs)
    wide_graph = origin.free.restrict(origin.wide_copies)
    copies = dna.copies(wide_graph)
    if example_inputs is None and not origin.graph.calls:
        _check_costs(dna, origin.graph, wide_graph, copies)
    return origin, wide_graph, copies


def _in_two_steps(origin: Origin, wide_graph: ChannelGraph, copies: Copies, seed: int) -> nn.Module:
    wide = origin.captured
    if (origin.wide_copies != 1).any():
        wide = resize(wide, origin.free, origin.wide_copies, seed=seed)
    return shrink_graph(wide, wide_graph, copies)


def dna_of(net: nn.Module) -> Dna:
    """The DNA of a network that :func:`lwdna.shrink`, :func:`rebuild` or :func:`lwdna.load` made.

    Raises:
        DnaError: it has none.
    """
    dna = meta_of(net).get("lwdna") if is_captured(net) else None
    if not isinstance(dna, Dna):
        raise DnaError(
            f"this {type(net).__name__} has no DNA: pass what lwdna.shrink returned; of a wrapper "
            "what it wraps (net.module, net._orig_mod)"
        )
    return dna


def construct_for(dna: Dna, trust: Sequence[str] = ()) -> nn.Module:
    """The original of a DNA, without values where it need not run to be captured.

    Args:
        dna: says how it is constructed.
        trust: see :func:`lwdna.load`.

    Raises:
        SourceError: the constructor is unknown, not trusted, or fails.
        DnaError: it gives what is too large to be worked on.
    """
    if dna.source is None:
        raise SourceError(
            f"the DNA does not tell how its {dna.model} is constructed: pass the model"
        )
    if all(t.is_meta for t in tensors_in(inputs_of(dna))):
        model = without_values(partial(build, dna.source, trust=trust))
    else:  # a network that is captured in parts
        with torch.random.fork_rng(devices=[]):
            model = build(dna.source, trust=trust)
    if any(n > MOST_UNITS for p in model.parameters() for n in p.shape):
        raise DnaError(f"{dna.source} has more channels than any network: the DNA is damaged")
    return model


def inputs_of(dna: Dna) -> tuple[Any, ...]:
    """The inputs that the costs of a DNA are counted for, made again.

    Tensors without values; of a network that was captured in parts noise of the same kind.

    Raises:
        DnaError: they cannot be made again.
    """
    inputs: tuple[Any, ...] = remade({"tuple": list(dna.inputs)})
    return inputs


def originate(model: nn.Module, dna: Dna, example_inputs: Any = None) -> Origin:
    """Capture and analyse a model as it was when the DNA was found.

    Args:
        model: see :func:`rebuild`.
        dna: says on which inputs, by which policy, with which groups frozen.
        example_inputs: in place of the DNA's.

    Raises:
        DnaError: the groups are not the DNA's.
    """
    inputs = inputs_of(dna) if example_inputs is None else example_inputs
    choices = {key: dna.settings.get(key) for key in ("policy", "outputs")}
    captured = capture(model, inputs)
    try:
        graph = analyse(captured, inputs, **choices)  # type: ignore[arg-type]
        free = graph.freeze(dna.constraints.freeze)
        copies = widen_copies(free, dna.widen)
    except (ValueError, TypeError) as e:
        raise DnaError(f"the DNA does not fit {type(model).__name__}: {e}") from e
    _check_groups(dna, graph, free, free.widths_of(copies))
    return Origin(captured, graph, free, copies)


def _check_groups(dna: Dna, graph: ChannelGraph, free: ChannelGraph, widened: Ids) -> None:
    """Refuse a DNA of other groups, before anything of the size that it says is made."""
    present = {
        g.name: (
            tuple(str(slot) for slot, _ in g.slots),
            graph.groups[g.index].width,
            int(widened[g.index]),
            g.prunable,
        )
        for g in free.groups
        if g.slots
    }
    known = {g.name: (g.slots, g.baseline, g.widened, g.prunable) for g in dna.groups}
    for name in (*known, *present):
        if known.get(name) != present.get(name):
            raise DnaError(
                f"the DNA is of another {dna.model}, or was found on other inputs: group "
                f"{name[:60]!r} is {_said(known.get(name))} in the DNA, and "
                f"{_said(present.get(name))} in the network"
            )


def _said(group: tuple[tuple[str, ...], int, int, bool] | None) -> str:
    if group is None:
        return "missing"
    slots, baseline, widened, prunable = group
    fixed = "" if prunable else ", fixed"
    return f"{baseline} units in {len(slots)} slots, widened to {widened}{fixed}"


def _check_costs(dna: Dna, graph: ChannelGraph, wide: ChannelGraph, copies: Copies) -> None:
    """Groups that agree cost the same, unless the DNA's figures were changed."""
    for name, told, found in (
        ("before", dna.before, graph.cost()),
        ("after", dna.after, wide.cost(copies)),
    ):
        for metric in METRICS:
            if metric != "latency" and told[metric] != found[metric]:
                raise DnaError(
                    f"the DNA tells {told[metric]:,} {metric} {name} shrinking, and the network "
                    f"has {found[metric]:,}: it was counted on other inputs, or changed"
                )
