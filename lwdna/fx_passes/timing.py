"""Seconds of every node of a graph, and of the whole network, on the device it is on."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import median
from typing import Any

import torch
import torch.fx
from torch import nn
from torch.fx import Node

from lwdna.fx_passes.interpreter import NodeRunner


class _Stopwatch(NodeRunner):
    """Runs a graph and notes when each node begins and the last one ends."""

    def __init__(self, gm: torch.fx.GraphModule, mark: Callable[[], Any]) -> None:
        super().__init__(gm, gm.graph)
        self.marks: list[Any] = []
        self._mark = mark

    def run_node(self, n: Node) -> Any:
        self.marks.append(self._mark())
        return super().run_node(n)


def time_nodes(gm: nn.Module, arguments: Sequence[Any], repeats: int) -> dict[str, float]:
    """Seconds of each node in a forward pass without gradients: medians.

    Operators run one after the other as they do in the network, so that each finds in the caches
    what it would find there. On a GPU the times are those of the device.

    Args:
        gm: a captured network that is one graph, in the mode to run it in.
        arguments: positional arguments of its forward, on its device.
        repeats: number of passes; one more comes before and is not counted.

    Returns:
        Node name -> seconds.
    """
    assert isinstance(gm, torch.fx.GraphModule)
    mark, finish = _clock(device_of(arguments))
    names = [node.name for node in gm.graph.nodes]
    runs = []
    with torch.inference_mode():
        for _ in range(repeats + 1):
            watch = _Stopwatch(gm, mark)
            watch.run(*arguments)
            runs.append(finish([*watch.marks, mark()]))
    return {name: median(run[k] for run in runs[1:]) for k, name in enumerate(names)}


def time_network(network: nn.Module, arguments: Sequence[Any], repeats: int) -> float:
    """Seconds of a forward pass without gradients: the median.

    Args:
        network: any module, in the mode to run it in.
        arguments: as for :func:`time_nodes`.
        repeats: as for :func:`time_nodes`.
    """
    device = device_of(arguments)
    with torch.inference_mode():
        seconds = [seconds_of(lambda: network(*arguments), device) for _ in range(repeats + 1)]
    return median(seconds[1:])


def seconds_of(step: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, on the device that it works on."""
    mark, finish = _clock(device)
    start = mark()
    step()
    return finish([start, mark()])[0]


def device_of(arguments: Sequence[Any]) -> torch.device:
    """Where the first tensor among a network's arguments is; the CPU without one."""
    tensors = (a for a in arguments if isinstance(a, torch.Tensor))
    return next((t.device for t in tensors), torch.device("cpu"))


def _clock(device: torch.device) -> tuple[Callable[[], Any], Callable[[list[Any]], list[float]]]:
    """(what to call at a moment, what gives the seconds between the moments)."""
    if device.type == "cuda":
        return _event, _between_events
    return time.perf_counter, _between


def _between(moments: list[float]) -> list[float]:
    return [b - a for a, b in pairwise(moments)]


def _event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _between_events(events: list[torch.cuda.Event]) -> list[float]:
    torch.cuda.synchronize()
    return [a.elapsed_time(b) / 1e3 for a, b in pairwise(events)]
