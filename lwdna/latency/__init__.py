"""Latency as a budget: measured per operator, predicted in closed form for any widths."""

from lwdna.latency.kernels import preferred_divisor
from lwdna.latency.measure import measure_latency
from lwdna.latency.table import Given, LatencyTable, OperatorLatency, Setting

__all__ = [
    "Given",
    "LatencyTable",
    "OperatorLatency",
    "Setting",
    "measure_latency",
    "preferred_divisor",
]
