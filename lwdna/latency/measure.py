"""Measure a network's operators at several widths, and fit the table."""

from __future__ import annotations

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
from lwdna.fx_passes.resize import resize
from lwdna.fx_passes.state import untouched
from lwdna.fx_passes.timing import device_of, time_network, time_nodes
from lwdna.fx_passes.widen import Multiplier, widen_copies
from lwdna.graph import ChannelGraph, Copies
from lwdna.inputs import as_arguments
from lwdna.latency.fit import fit_operator, fit_scale, predicted_seconds, spread
from lwdna.latency.kernels import preferred_divisor
from lwdna.latency.sizes import amounts, one_graph, operator_sizes
from lwdna.latency.table import LatencyTable, Setting

#: Narrowest width that is measured, as a fraction of the widened one.
LEAST = 0.2


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
        widen: the range of widths goes up to this multiple; as for :func:`lwdna.shrink`.
        divisor: widths are multiples of it where that is at least half of the width, as kernels
            like them; by default that of the device (:func:`lwdna.preferred_divisor`). It is what
            :func:`lwdna.shrink` takes with the table, if it is given no constraints.
        configurations: number of random widths of the whole network.
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
    if divisor is None:
        divisor = preferred_divisor(device_of(arguments))
    with untouched(model), torch.random.fork_rng():
        gm = capture(model, arguments)
        one_graph(gm)
        gm.eval()
        graph = analyse(gm, arguments, policy=policy)
        drawn = _Widths(graph, widen_copies(graph, widen), divisor, seed)
        sizes = operator_sizes(gm, graph)
        nodes: list[dict[str, float]] = []
        totals: list[float] = []
        found: list[dict[str, tuple[float, float, float]]] = []
        widths = drawn.configurations(configurations)
        for copies in tqdm(widths, desc="measuring", delay=1, disable=None, leave=False):
            small = resize(gm, graph, copies, seed=seed)
            nodes.append(time_nodes(small, arguments, repeats))
            totals.append(time_network(small, arguments, repeats))
            found.append({name: amounts(size, copies) for name, size in sizes.items()})
    operators = {
        name: fit_operator([f[name] for f in found], [n[name] for n in nodes]) for name in sizes
    }
    predicted = [predicted_seconds(operators, f) for f in found]
    scale = fit_scale(predicted, totals)
    error = spread([scale * p for p in predicted], totals)
    setting = _setting(arguments, divisor, configurations, repeats, seed)
    return LatencyTable(operators, scale, error, setting)


class _Widths:
    """Draws widths of all groups of a graph."""

    def __init__(self, graph: ChannelGraph, most: Copies, divisor: int, seed: int) -> None:
        self._graph, self._most, self._divisor = graph, most, divisor
        self._random = np.random.default_rng(seed)

    def configurations(self, number: int) -> list[Copies]:
        """The widest, the narrowest, and random ones between them."""
        fractions = [1.0, LEAST, *[None] * (number - 2)]
        return [self._draw(fraction) for fraction in fractions]

    def _draw(self, fraction: float | None) -> Copies:
        copies = self._most.copy()
        for group in self._graph.groups:
            if group.prunable:
                width = int(self._most[group.units].sum())
                share = self._random.uniform(LEAST, 1) if fraction is None else fraction
                copies[group.units] = self._cut(copies[group.units], self._rounded(width, share))
        return self._graph.completed(copies)

    def _rounded(self, width: int, share: float) -> int:
        wanted = max(1, round(width * share))
        if self._divisor > 1 and wanted >= self._divisor / 2:
            wanted = max(1, round(wanted / self._divisor)) * self._divisor
        return min(wanted, width)

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
