"""Measure a network's operators at several widths, and fit the table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.fx
from torch import Tensor, nn
from tqdm import tqdm

from lwdna.channels import Policy
from lwdna.dna import versions
from lwdna.errors import LatencyError
from lwdna.fx_passes.analyse import analyse
from lwdna.fx_passes.capture import capture
from lwdna.fx_passes.refusals import check_values
from lwdna.fx_passes.resize import resize
from lwdna.fx_passes.state import untouched
from lwdna.fx_passes.timing import device_of, time_network, time_nodes
from lwdna.fx_passes.widen import Multiplier, widen_copies
from lwdna.graph import ChannelGraph, Copies
from lwdna.inputs import as_arguments
from lwdna.latency.fit import (
    Amounts,
    fit_operator,
    fit_scale,
    predicted_seconds,
    spread,
    without_overhead,
)
from lwdna.latency.kernels import preferred_divisor
from lwdna.latency.sizes import amounts, one_graph, operator_sizes
from lwdna.latency.table import Given, LatencyTable, Setting

#: Narrowest and widest width that is measured, as fractions of the given one. A budget at most as
#: large as the given cost leaves hardly a group wider, and of tensors that are larger than any
#: result has, time says little about the results.
LEAST, MOST = 0.2, 1.5

#: Passes until the heap has its final size and pages.
_WARM_UP = 10


def measure_latency(
    model: nn.Module,
    example_inputs: Any,
    *,
    widen: Multiplier = 1.0,
    divisor: int | None = None,
    configurations: int = 16,
    repeats: int = 5,
    policy: Policy = "auto",
    seed: int = 0,
) -> LatencyTable:
    """Measure what each operator of a network takes, on the device and at the batch size at hand.

    The network is resized to random widths, run operator by operator, and each operator's seconds
    are fitted by a fixed part and parts that grow with the elements it writes and reads and with
    its multiply-accumulates. Do nothing else on the machine meanwhile. A terminal shows a progress
    bar.

    Args:
        model: any network that :func:`lwdna.capture` takes as one graph; on the device to measure
            on, and in the memory format to measure in. It is run in evaluation mode, and not
            changed.
        example_inputs: real inputs of the batch size, resolution and dtype to measure.
        widen: the range of widths goes up to this multiple, but not beyond 1.5; as for
            :func:`lwdna.shrink`.
        divisor: widths are multiples of it where that is at least half of the width, as kernels
            like them; by default that of the device (:func:`lwdna.preferred_divisor`). It is what
            :func:`lwdna.shrink` takes with the table, if it is given no constraints.
        configurations: number of networks to run, most of random widths, each beside the given one.
        repeats: passes over each, of which the median counts.
        policy: as for :func:`lwdna.shrink`.
        seed: of the widths and of new weights.

    Returns:
        The table, for ``lwdna.shrink(..., Budget(latency=0.7), latency=table)``.

    Raises:
        LatencyError: the network is captured in parts, or fewer than four configurations are asked
            for.
        CaptureError, UnsupportedModelError: the model cannot be captured or worked on.
    """
    if configurations < 4:
        raise LatencyError(f"configurations={configurations}: four or more determine the fit")
    arguments = as_arguments(model, example_inputs)
    check_values(model, "measuring")
    if divisor is None:
        divisor = preferred_divisor(device_of(arguments))
    with untouched(model), torch.random.fork_rng():
        gm = capture(model, arguments)
        one_graph(gm)
        gm.eval()
        graph = analyse(gm, arguments, policy=policy)
        drawn = _Widths(graph, widen_copies(graph, widen), divisor, seed)
        sizes = operator_sizes(gm, graph)
        time_network(gm, arguments, _WARM_UP)
        runs: list[_Run] = []
        found: list[dict[str, Amounts]] = []
        widths = drawn.configurations(configurations)
        for copies in tqdm(widths, desc="measuring", delay=1, disable=None, leave=False):
            small = resize(gm, graph, copies, seed=seed)
            runs.append(_run(gm, small, arguments, repeats))
            found.append({name: amounts(size, copies) for name, size in sizes.items()})
    usual = median(run.given for run in runs)
    runs = [run.at_speed(usual) for run in runs]
    operators = {
        name: fit_operator([f[name] for f in found], [run.nodes[name] for run in runs])
        for name in sizes
    }
    totals = [run.total for run in runs]
    operators = without_overhead(operators, found, totals)
    predicted = [predicted_seconds(operators, f) for f in found]
    scale = fit_scale(predicted, totals)
    error = spread([scale * p for p in predicted], totals)
    given = Given(usual, graph.cost().macs)
    setting = _setting(arguments, divisor, configurations, repeats, seed)
    return LatencyTable(operators, scale, given, error, setting)


@dataclass(frozen=True)
class _Run:
    """Seconds of a resized network, and of the given one right after it."""

    nodes: dict[str, float]
    total: float
    given: float

    def at_speed(self, given: float) -> _Run:
        """What they would have been, had the given network taken ``given`` seconds.

        A machine is not equally fast all the time: what its neighbours do, its clock and its
        temperature change within minutes.
        """
        factor = given / self.given
        nodes = {name: factor * seconds for name, seconds in self.nodes.items()}
        return _Run(nodes, factor * self.total, given)


def _run(given: nn.Module, small: nn.Module, arguments: tuple[Any, ...], repeats: int) -> _Run:
    return _Run(
        time_nodes(small, arguments, repeats),
        time_network(small, arguments, repeats),
        time_network(given, arguments, repeats),
    )


class _Widths:
    """Draws widths of all groups of a graph."""

    def __init__(self, graph: ChannelGraph, most: Copies, divisor: int, seed: int) -> None:
        self._graph, self._most, self._divisor = graph, most, divisor
        self._random = np.random.default_rng(seed)

    def configurations(self, number: int) -> list[Copies]:
        """The multiples next to the given widths, the narrowest, and random ones."""
        shares = [
            lambda most: 1.0,
            lambda most: LEAST,
            *[lambda most: self._random.uniform(LEAST, most)] * (number - 2),
        ]
        return [self._draw(share) for share in shares]

    def _draw(self, share: Callable[[float], float]) -> Copies:
        """Widths that are a ``share`` of the given ones, of at most what it is called with."""
        copies = self._most.copy()
        for group in self._graph.groups:
            if group.prunable:
                width = int(self._most[group.units].sum())
                wanted = group.width * share(min(width / group.width, MOST))
                copies[group.units] = self._cut(copies[group.units], self._rounded(wanted, width))
        return self._graph.completed(copies)

    def _rounded(self, wanted: float, most: int) -> int:
        unit = self._divisor if wanted >= self._divisor / 2 else 1
        return min(max(1, round(wanted / unit)) * unit, most)

    @staticmethod
    def _cut(copies: Copies, width: int) -> Copies:
        """The same copies, from the first unit on, until their number is ``width``."""
        before = np.cumsum(copies) - copies
        cut: Copies = np.clip(width - before, 0, copies)
        return cut


def _setting(
    arguments: tuple[Any, ...], divisor: int, configurations: int, repeats: int, seed: int
) -> Setting:
    tensors = [a for a in arguments if isinstance(a, Tensor)]
    device = tensors[0].device
    images = [t for t in tensors if t.dim() == 4]
    return Setting(
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        threads=torch.get_num_threads(),
        dtype=str(tensors[0].dtype).removeprefix("torch."),
        shapes=tuple(tuple(t.shape) for t in tensors),
        channels_last=any(
            t.is_contiguous(memory_format=torch.channels_last) and not t.is_contiguous()
            for t in images
        ),
        divisor=divisor,
        configurations=configurations,
        repeats=repeats,
        seed=seed,
        versions=versions(),
    )
