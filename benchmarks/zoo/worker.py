"""One model of a zoo: captured, analysed, shrunk, verified and timed, in the process it runs in.

Seconds are those of the processor, on one thread: what a clock shows where nothing else runs.
"""

from __future__ import annotations

import contextlib
import gc
import io
import math
import os
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import torch
from torch import nn

import lwdna
from benchmarks.measure import Clock, TimeLimitError, described, peak_memory, time_limit
from benchmarks.networks import build, build_on_meta
from benchmarks.pruners import (
    classifiers,
    prune,
    prune_as_peer,
    run_error,
    selection,
    shrink_as_peer,
    warm_up,
)
from benchmarks.zoo import oracles
from benchmarks.zoo.inputs import Shape, example, reduced, shapes
from benchmarks.zoo.shares import figures
from lwdna.fx_passes import verify
from lwdna.fx_passes.module import meta_twin
from lwdna.fx_passes.state import stir, untouched
from lwdna.graph import ChannelGraph, Copies

T = TypeVar("T")

#: Bytes of one counted activation in a training step: its value, what follows it, the gradient.
_TRAINING_BYTES = 3 * 4


@dataclass(frozen=True)
class Settings:
    """What decides the figures of a record, apart from the versions.

    Attributes:
        seed: of weights, inputs and removed channels.
        budget: fraction of the MACs that is left.
        numeric_params: largest number of parameters that gets values (above: the meta device).
        numeric_gb: largest memory that a training step at batch size 2 may take at the model's own
            resolution, if it can be built for a smaller one.
        peer: whether Torch-Pruning runs, too.
        peer_macs: most MACs of a network that the peer gets.
        peer_limit_s: seconds after which the peer is stopped.
        peer_times: how many times our seconds the peer gets to shrink to the budget.
    """

    seed: int = 0
    budget: float = 0.7
    numeric_params: int = 100_000_000
    numeric_gb: float = 1.0
    peer: bool = True
    peer_macs: int = 20_000_000_000
    peer_limit_s: float = 4.0
    peer_times: float = 4.0

    def as_dict(self) -> dict[str, Any]:
        """The settings by name."""
        return asdict(self)


class Log:
    """The record of one model while it grows.

    Args:
        name: ``"library:model"``.
        send: called with the record at the start of every stage, so that a process that dies
            leaves what it had.
    """

    def __init__(self, name: str, send: Callable[[Mapping[str, Any]], None]) -> None:
        self.record: dict[str, Any] = {"name": name, "stage": "start", "seconds": {}, "peak_mb": {}}
        self._send = send

    def enter(self, name: str) -> None:
        """Say that a stage begins."""
        self.record["stage"] = name
        self._send(self.record)

    def stage(self, name: str, step: Callable[[], T]) -> T:
        """Run a step; its processor seconds and its peak memory go into the record."""
        self.enter(name)
        clock, result = Clock(time.process_time), []

        def run() -> None:
            with clock.stage(name):
                result.append(step())

        self.record["peak_mb"][name] = round(peak_memory(run), 1)
        self.record["seconds"][name] = round(clock.seconds[name], 3)
        return result[0]

    def note(self, **facts: Any) -> None:
        """Add facts to the record."""
        self.record.update(facts)


def examine(name: str, settings: Settings, send: Callable[[Mapping[str, Any]], None]) -> None:
    """Examine one model; ``send`` gets the growing record, at last with stage ``"done"``.

    Args:
        name: ``"library:model"``.
        settings: see :class:`Settings`.
        send: called at the start of every stage and at the end.
    """
    log, started = Log(name, send), time.process_time()
    warnings.simplefilter("ignore")
    log.enter("warm up")
    warm_up(settings.seed, peer=settings.peer)
    log.note(input=[list(s) for s in shapes(name)])
    with contextlib.redirect_stdout(io.StringIO()):  # the peer prints
        try:
            _examine(name, settings, log)
        except Exception as error:
            stage = log.record["stage"]
            log.note(failure={"stage": stage, "error": described(stage, error), **_where(error)})
    log.note(cpu_s=round(time.process_time() - started, 2))
    log.enter("done")


def _where(error: BaseException) -> dict[str, str]:
    """The innermost line of the traceback, with its file from the package on."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return {}
    parts = trace.tb_frame.f_code.co_filename.split(os.sep)
    return {"at": f"{'/'.join(parts[-3:])}:{trace.tb_lineno}"}


def _examine(name: str, settings: Settings, log: Log) -> None:
    model, numeric = log.stage("build", lambda: _build(name, settings, log))
    images = example(name, 2, device="meta")
    gm = log.stage("capture", lambda: lwdna.capture(model, images))
    graph = log.stage("analyse", lambda: lwdna.analyse(gm, images))
    log.note(**figures(model, gm, graph))
    if numeric:
        net, copies = log.stage("shrink", lambda: _shrink(model, graph, images, settings))
    else:
        net, copies = None, log.stage("shrink", lambda: _select(graph, settings))
    resized = log.stage("resize", lambda: lwdna.resize(gm, graph, copies))
    left = graph.cost(copies).macs / graph.cost().macs
    log.note(left=round(left, 5))
    if left > settings.budget:
        raise lwdna.BudgetError(f"{left:.2%} of the MACs are left of {settings.budget:.0%}")
    case = oracles.Case(name, model, gm, graph, copies, net or resized, _sizes(name), settings.seed)
    del resized
    verdict = log.stage("verify", lambda: _verify(case, settings, numeric=numeric))
    log.note(held=verdict.held, broken=verdict.broken, **verdict.facts)
    if settings.peer and numeric and graph.cost().macs <= settings.peer_macs:
        del case, net, gm
        _compare(model, name, classifiers(graph), settings, log)


def _sizes(name: str) -> tuple[tuple[Shape, ...], ...]:
    """The sizes to verify at: the smallest, then the model's own."""
    return tuple(dict.fromkeys(shapes(name, small=s) for s in (True, False)))


def _verify(case: oracles.Case, settings: Settings, *, numeric: bool) -> oracles.Verdict:
    """Everything that fits: with values, or, where a training step is too large, twice.

    That is at the model's own resolution without values, and with them built for smaller inputs.
    """
    if not numeric:
        return oracles.on_meta(case)
    small = None
    if (needs := _training_gb(case)) > settings.numeric_gb:
        small = _reduced(case, settings)
    if small is None:
        return oracles.numeric(case)
    own, verdict = oracles.on_meta(case), oracles.numeric(small)
    verdict.broken.update({f"{name}, own size": text for name, text in own.broken.items()})
    verdict.facts["reduced_because"] = f"a training step takes about {needs:.1f} GB"
    return verdict


def _reduced(case: oracles.Case, settings: Settings) -> oracles.Case | None:
    """The same for the model built for smaller inputs: the largest that fit, or the smallest."""
    small = None
    for arguments, sizes in reduced(case.name):
        inputs = example(case.name, 2, sizes, device="meta")
        torch.manual_seed(settings.seed)
        try:
            model, _ = build(case.name, **arguments)
            verify.evaluated(meta_twin(model), inputs)
        except Exception:  # the model cannot do it: say, a window larger than the image
            continue
        stir(model, seed=settings.seed)
        gm = lwdna.capture(model, inputs)
        graph = lwdna.analyse(gm, inputs)
        copies = selection(settings.budget)(graph, settings.seed)
        net = lwdna.resize(gm, graph, copies)
        small = oracles.Case(case.name, model, gm, graph, copies, net, (sizes,), settings.seed)
        if _training_gb(small) <= settings.numeric_gb:
            break
    return small


def _training_gb(case: oracles.Case) -> float:
    """About the memory of a training step at batch size 2 and the first of the case's sizes."""
    first, own = (sum(map(math.prod, sizes)) for sizes in (case.sizes[0], case.sizes[-1]))
    return 2 * case.graph.cost().activations * _TRAINING_BYTES * first / own / 1e9


def _build(name: str, settings: Settings, log: Log) -> tuple[nn.Module, bool]:
    """The model, with values if it is small enough; else on the meta device."""
    twin, _ = build_on_meta(name)
    params = sum(p.numel() for p in twin.parameters())
    reason = None
    if params > settings.numeric_params:
        reason = f"more than {settings.numeric_params / 1e6:g} M parameters"
    log.note(params=params, device="cpu" if reason is None else "meta", meta_because=reason)
    if reason is not None:
        return twin, False
    torch.manual_seed(settings.seed)
    model, _ = build(name)
    stir(model, seed=settings.seed)
    return model, True


def _shrink(
    model: nn.Module, graph: ChannelGraph, images: Any, settings: Settings
) -> tuple[nn.Module, Copies]:
    """The public entry, which leaves the model as it was."""
    with untouched(model):
        net = lwdna.shrink(
            model,
            settings.budget,
            widen=1.0,
            criterion="random",
            weights="inherit",
            example_inputs=images,
            seed=settings.seed,
            progress=False,
        )
    return net, net.meta["lwdna"].copies(graph)


def _select(graph: ChannelGraph, settings: Settings) -> Copies:
    """What ``lwdna.shrink`` selects by random saliencies, without values."""
    return selection(settings.budget)(graph, settings.seed)


def _compare(model: nn.Module, name: str, last: set[str], settings: Settings, log: Log) -> None:
    """Both tools on the same jobs, warm, in an order that alternates by name.

    A channel removal: part of every group, once. A shrink: to the budget.
    """
    model.eval()
    batch, one = example(name, 2), example(name, 1)
    timer, seed, found = time.process_time, settings.seed, dict[str, Any]()

    def ours() -> None:
        found["ours_s"] = prune(model, batch, seed, timer)[0]["total"]
        choose = selection(settings.budget)
        found["ours_shrink_s"] = prune(model, batch, seed, timer, choose)[0]["total"]

    def theirs() -> None:
        try:
            with time_limit(settings.peer_limit_s):
                found["peer_s"], small = prune_as_peer(model, one, seed, last, timer)
            found["failure"] = run_error(small, one)
        except (Exception, TimeLimitError) as error:
            found["failure"] = described("pruning", error)

    def theirs_to_budget() -> None:
        most_s = settings.peer_times * found["ours_shrink_s"]
        try:
            with time_limit(settings.peer_limit_s + most_s):
                found["peer_shrink_s"], found["peer_left"] = shrink_as_peer(
                    model, one, seed, last, share=settings.budget, most_s=most_s, timer=timer
                )
        except (Exception, TimeLimitError) as error:
            found["failure"] = described("shrinking", error)

    log.enter("peer")
    first_ours = sum(name.encode()) % 2 == 0
    for step in (ours, theirs) if first_ours else (theirs, ours):
        gc.collect()
        step()
    if found["failure"] is None:
        theirs_to_budget()
    rounded = {k: round(v, 4) if isinstance(v, float) else v for k, v in found.items()}
    log.note(peer={**rounded, "first": "lwdna" if first_ours else "peer"})
