"""Follow channels across the code between regions, by running it.

The network runs on real tensors, once in each mode. The operators between the regions are seen by
the same dispatch mode, and follow the same rules, as those of a graph. The regions compute their
results, too, but their channels are followed on meta tensors, where no activation is kept.

Numbers that the code between regions has for sizes cannot be repaired. So the channels that meet it
may change only as far as it hands them on as they are: whole, and not mixed with one another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from lwdna.channels import Policy, Vector, Vectors
from lwdna.cost import Term
from lwdna.errors import AnalysisError
from lwdna.fx_passes.analyse import close_graph, watch_relus
from lwdna.fx_passes.channel_interpreter import ChannelInterpreter
from lwdna.fx_passes.channel_mode import ChannelMode
from lwdna.fx_passes.module import detached_copy, meta_twin, to_meta
from lwdna.fx_passes.outputs import Outputs, freeze_outputs
from lwdna.fx_passes.region_watch import run_in_both_modes
from lwdna.fx_passes.regions import graphs, intercepted, of_samples, tensors_in
from lwdna.fx_passes.rules import OpCall
from lwdna.graph import ChannelGraph
from lwdna.tensor_channels import channels_in

#: (path of a region, number of the tensor among its inputs)
Entrance = tuple[str, int]


@dataclass(frozen=True, eq=False)
class RegionCall:
    """One call of a region: what it was given and what its graph did, with raw ids."""

    mode: str
    args: tuple[Any, ...]
    out: Any
    values: Mapping[str, Any]
    facts: Mapping[str, dict[str, Vector]]
    terms: tuple[Term, ...]

    @property
    def has_samples(self) -> bool:
        """Whether no input is empty, as those of a head are when nothing was detected."""
        return all(0 not in t.shape for t in channels_in(self.args))


class CrossingMode(ChannelMode):
    """A channel mode over code that is in no graph, and the regions that it calls.

    Args:
        host: the network that runs.
        distrusted: entrances whose channels must not change, and why.
    """

    def __init__(self, host: nn.Module, distrusted: Mapping[Entrance, str]) -> None:
        self.twin: nn.Module = meta_twin(host).eval()
        super().__init__(self.twin)
        self.distrusted = distrusted
        self.calls: dict[str, list[RegionCall]] = {path: [] for path in graphs(host)}
        self.running = ""
        self._paused = self._inside = False
        twins = dict((*self.twin.named_parameters(), *self.twin.named_buffers()))
        self._own = {
            id(t): (n, twins[n]) for n, t in (*host.named_parameters(), *host.named_buffers())
        }

    def vectors(self, tensor: Tensor) -> Vectors:
        """As for a graph; what the code between regions does with a parameter is not repaired."""
        name, twin = self._own.get(id(tensor), ("", tensor))
        found = super().vectors(twin)
        for vector in found if name else ():
            self.space.freeze(vector, "used outside of the captured parts", name)
        return found

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if self._paused or not (self._inside or self._concerned(args, kwargs)):
            return func(*args, **(kwargs or {}))
        return super().__torch_dispatch__(func, types, args, kwargs)

    def _concerned(self, args: Any, kwargs: Any) -> bool:
        """Whether an operator between regions sees channels that could change, or makes some."""
        tensors = list(tensors_in((args, kwargs)))
        return not tensors or any(
            id(t) in self._own or (self.knows(t) and any(map(self._live, self.vectors(t))))
            for t in tensors
        )

    def _live(self, vector: Vector) -> bool:
        return vector is not None and not self.space.frozen(vector).all()

    def finish(self, op: OpCall) -> Any:
        """Between regions, freeze what is not handed on whole and unmixed."""
        if not self._inside:
            given = [v for t in tensors_in((op.args, op.kwargs)) for v in self.vectors(t)]
            results = [
                self.space.find(v)
                for t in tensors_in(op.out)
                for v in self.vectors(t)
                if v is not None
            ]
            for vector in filter(self._live, given):
                assert vector is not None
                ids = self.space.find(vector)
                if op.mixing or not any(np.isin(ids, result).all() for result in results):
                    op.freeze(
                        vector, f"{op.name} outside of the captured parts does not hand it on"
                    )
        return op.out

    def region(self, path: str, forward: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Run a region, and its meta twin under the rules; see :func:`intercepted`."""
        with self._switched(paused=True):
            given = to_meta(args)
            out = forward(*args)
        for k, (real, meta) in enumerate(zip(tensors_in(args), tensors_in(given), strict=True)):
            if self.knows(real):
                for vector in self.vectors(real) if (path, k) in self.distrusted else ():
                    self.space.freeze(vector, self.distrusted[path, k], path)
                live = tuple(v if self._live(v) else None for v in self.vectors(real))
                self.set_vectors(meta, live)
        found = self._follow(path, given)
        pairs = list(zip(tensors_in(out), tensors_in(found), strict=True))
        if any(real.shape != meta.shape for real, meta in pairs):
            raise AnalysisError(f"{path!r} returns tensors of other shapes than its graph")
        for real, meta in pairs:
            self.set_vectors(real, self.vectors(meta))
        self.node = f"code after {path}"
        return out

    def _follow(self, path: str, args: tuple[Any, ...]) -> Any:
        graph = graphs(self.twin)[path]
        self.terms, self.facts = [], {}
        with self._switched(inside=True), torch.device("meta"):
            interpreter = ChannelInterpreter(graph, graph.graph, self, f"{path}.")
            out = interpreter.run(*args)
        given, found = tree_map_only(Tensor, self.channels, (args, out))
        call = RegionCall(
            self.running, given, found, interpreter.values, self.facts, tuple(self.terms)
        )
        self.calls[path].append(call)
        self.terms, self.facts = [], {}
        return out

    @contextmanager
    def _switched(self, *, paused: bool = False, inside: bool = False) -> Iterator[None]:
        before = self._paused, self._inside
        self._paused, self._inside = paused, inside
        try:
            yield
        finally:
            self._paused, self._inside = before


def follow(
    host: nn.Module,
    arguments: tuple[Any, ...],
    distrusted: Mapping[Entrance, str],
    *,
    policy: Policy,
    outputs: Outputs,
) -> ChannelGraph:
    """The channel graph of a network that was captured in parts.

    MACs, activations and paper FLOPs are those of the regions' calls on one sample in evaluation
    mode; of a region that is not reached there (a mask head, if nothing is detected), those of its
    calls in training mode, on two. The code between regions costs nothing.

    Args:
        host: the network; not changed.
        arguments: real positional arguments of ``forward``.
        distrusted: inputs of regions whose channels must not change, and why.
        policy: see :func:`lwdna.analyse`.
        outputs: see :func:`lwdna.analyse`.

    Raises:
        AnalysisError: the network runs in neither mode, or one of its parts is never called.
    """
    work = detached_copy(host)
    mode = CrossingMode(work, distrusted)
    relus = watch_relus(mode.twin, mode)
    returned: dict[str, Any] = {}

    def keep(name: str, out: Any) -> None:
        returned[name] = tree_map_only(Tensor, mode.channels, out)

    def region(path: str, forward: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        mode.running = "training" if work.training else "evaluation"
        return mode.region(path, forward, args)

    with torch.inference_mode(), mode, intercepted(work, region):
        failed = run_in_both_modes(work, arguments, then=keep)
    _check_reached(mode, failed)
    for name, out in returned.items():
        freeze_outputs(mode.space, out, outputs if name == "evaluation" else "fixed")
    _freeze_crossings(mode, _unseen(mode, failed))
    counted = {path: _counted(calls) for path, calls in mode.calls.items()}
    values = {"output": returned.get("evaluation", returned.get("training"))}
    for path, calls in mode.calls.items():
        _unite(mode, calls, counted[path][0])
        values.update(counted[path][0].values)
        mode.facts.update(counted[path][0].facts)
    mode.terms = [term for calls in counted.values() for call in calls for term in call.terms]
    return close_graph(
        mode,
        mode.twin,
        values,
        of_samples(arguments, 1),
        relus,
        policy,
        {path: tuple(call.args for call in calls) for path, calls in counted.items()},
    )


def _check_reached(mode: CrossingMode, failed: Mapping[str, str]) -> None:
    never = [path for path, calls in mode.calls.items() if not calls]
    if never or len(failed) == 2:
        reasons = "".join(
            f"; in {name} mode it does not run ({why})" for name, why in failed.items()
        )
        raise AnalysisError(
            f"the example inputs do not reach {', '.join(map(repr, never))} of the network{reasons}"
        )


def _counted(calls: list[RegionCall]) -> list[RegionCall]:
    """The calls whose costs count, the first of which has samples if any call has."""
    by_mode = [[c for c in calls if c.mode == name] for name in ("evaluation", "training")]
    chosen = next((some for some in by_mode if any(c.has_samples for c in some)), calls)
    return sorted(chosen, key=lambda c: not c.has_samples)


def _unite(mode: CrossingMode, calls: list[RegionCall], first: RegionCall) -> None:
    """All calls of one graph have the same channels: what is repaired for one fits all."""
    for other in calls:
        for name, value in first.values.items():
            for a, b in zip(channels_in(value), channels_in(other.values[name]), strict=True):
                for x, y in zip(a.vectors, b.vectors, strict=True):
                    if x is None or y is None or len(x) == len(y):
                        mode.space.couple(x, y, name, "another call")
                    else:  # boxes or positions, not channels
                        for v in (x, y):
                            mode.space.freeze(v, "of another size in another call", name)
        for name, facts in first.facts.items():
            for key, vector in facts.items():
                mode.space.couple(vector, other.facts[name][key], name, "another call")


def _unseen(mode: CrossingMode, failed: Mapping[str, str]) -> tuple[str, str] | None:
    """(reason, where) why the runs may not have shown all that channels meet; None if they have."""
    for name, why in failed.items():
        return f"unknown in {name} mode, in which the example inputs do not run: {why}", "forward"
    for name, p in mode.twin.named_parameters():
        if not mode.knows(p):
            return "the example inputs do not reach all parameters; one is not reached", name
    return None


def _freeze_crossings(mode: CrossingMode, cause: tuple[str, str] | None) -> None:
    if cause is None:
        return
    for call in (call for calls in mode.calls.values() for call in calls):
        for t in channels_in((call.args, call.out)):
            for vector in t.vectors:
                mode.space.freeze(vector, *cause)
