"""The table of operator latencies: data, its JSON file, and the cost terms it becomes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from torch import nn

from lwdna.cost import Cost, Term
from lwdna.errors import LatencyError
from lwdna.graph import ChannelGraph
from lwdna.latency.sizes import OperatorSizes, Size, operator_sizes

_PICO = 1e12


@dataclass(frozen=True)
class OperatorLatency:
    """Seconds of one operator, linear in what it writes, reads and multiplies.

    Attributes:
        fixed: seconds that no width changes.
        per_written: seconds per element of its outputs, for one input's share of the batch.
        per_read: seconds per element of its inputs.
        per_mac: seconds per multiply-accumulate.
    """

    fixed: float
    per_written: float
    per_read: float
    per_mac: float

    def seconds(self, written: float, read: float, macs: float) -> float:
        """The prediction for these amounts."""
        return self.fixed + self.per_written * written + self.per_read * read + self.per_mac * macs


@dataclass(frozen=True)
class Setting:
    """Where and how the latencies were measured.

    Attributes:
        device: ``"cpu"``, or the name of the GPU.
        threads: of the CPU.
        dtype: of the inputs.
        shapes: of the inputs, with the batch.
        channels_last: whether images are stored channels last.
        divisor: of the widths that were measured.
        configurations: number of width configurations.
        repeats: passes per configuration, of which the median counts.
        seed: of the configurations.
        versions: of the packages.
    """

    device: str
    threads: int
    dtype: str
    shapes: tuple[tuple[int, ...], ...]
    channels_last: bool
    divisor: int
    configurations: int
    repeats: int
    seed: int
    versions: Mapping[str, str]


@dataclass(frozen=True)
class Given:
    """The network at its own widths, which kernels need not like as much as a divisor's multiples.

    Attributes:
        seconds: of a forward pass, measured.
        macs: multiply-accumulates of one input, by which it is known again.
    """

    seconds: float
    macs: int


@dataclass(frozen=True)
class LatencyTable:
    """Latencies of a network's operators on one device.

    Attributes:
        operators: graph node -> its model.
        scale: measured seconds of the whole network over the sum of its operators'.
        given: the network that was measured, at its own widths.
        error: largest relative error of the prediction on the measured configurations.
        setting: where and how it was measured.
    """

    operators: Mapping[str, OperatorLatency]
    scale: float
    given: Given
    error: float
    setting: Setting

    def timed(self, gm: nn.Module, graph: ChannelGraph) -> ChannelGraph:
        """The graph with latency among its costs.

        Args:
            gm: the captured network that was measured, at any widths.
            graph: its channel graph.

        Raises:
            LatencyError: the table is another network's; names a node.
        """
        sizes = operator_sizes(gm, graph)
        for one, other, what in (
            (self.operators, sizes, "the network lacks"),
            (sizes, self.operators, "the table lacks"),
        ):
            missing = next((name for name in one if name not in other), None)
            if missing is not None:
                raise LatencyError(
                    f"the latency table is of another network: {what} the node {missing!r}; "
                    "measure this one with lwdna.measure_latency"
                )
        return graph.with_terms(self._terms(sizes))

    def before(self, cost: Cost) -> Cost:
        """The cost of a network that is to be shrunk: as measured, if it is the given one.

        Args:
            cost: of the graph that :meth:`timed` returned.
        """
        if cost.macs != self.given.macs:
            return cost
        return replace(cost, latency=round(self.given.seconds * _PICO))

    def _terms(self, sizes: Mapping[str, OperatorSizes]) -> Iterator[Term]:
        for name, operator in self.operators.items():
            for seconds, (times, vectors) in _parts(operator, sizes[name]):
                picoseconds = round(seconds * times * self.scale * _PICO)
                if picoseconds:
                    yield Term("latency", picoseconds, vectors, name)

    def save(self, path: str | Path) -> None:
        """Write the table as JSON."""
        Path(path).write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> LatencyTable:
        """Read a table that :meth:`save` wrote.

        Raises:
            LatencyError: the file is no such table.
        """
        try:
            data = json.loads(Path(path).read_text())
            setting = data["setting"]
            shapes = tuple(tuple(shape) for shape in setting["shapes"])
            return cls(
                {name: OperatorLatency(**found) for name, found in data["operators"].items()},
                data["scale"],
                Given(**data["given"]),
                data["error"],
                Setting(**{**setting, "shapes": shapes}),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise LatencyError(
                f"{path} is no latency table: measure again with lwdna.measure_latency"
            ) from error


def _parts(operator: OperatorLatency, sizes: OperatorSizes) -> Iterator[tuple[float, Size]]:
    """(seconds per element, elements) whose products add up to the operator's seconds."""
    yield operator.fixed, (1, ())
    for seconds, found in (
        (operator.per_written, sizes.written),
        (operator.per_read, sizes.read),
        (operator.per_mac, sizes.macs),
    ):
        yield from ((seconds, size) for size in found)
