"""Seconds, memory and limits of one step: what the benchmarks' workers share."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import re
import resource
import signal
import sys
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import torch

from lwdna.fx_passes.timing import seconds_of

_MB = 2**20

Seconds = dict[str, float]
Timer = Callable[[], float]
Key = TypeVar("Key", bound=Hashable)


class TimeLimitError(BaseException):
    """A step ran into its limit; no ``except Exception`` of the step's may swallow it."""


class Clock:
    """Seconds of each stage; garbage of the stage before is not on the bill.

    Args:
        timer: gives seconds; ``time.process_time`` does not count what other work on the machine
            takes.
    """

    def __init__(self, timer: Timer = time.perf_counter) -> None:
        self.seconds: Seconds = {}
        self.timer = timer

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        gc.collect()
        start = self.timer()
        yield
        self.seconds[name] = self.timer() - start


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Stop the block after ``seconds`` with :class:`TimeLimitError` (main thread only)."""

    def stop(*_: Any) -> None:
        raise TimeLimitError(f"stopped after {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)  # again, should a bare except swallow it
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def in_turn(
    steps: Mapping[Key, Callable[[], object]], repeats: int, device: torch.device
) -> dict[Key, float]:
    """Median seconds of each step: all run in turn, ``repeats`` times.

    Args:
        steps: what to time; they are warm.
        repeats: number of rounds.
        device: what the steps work on.
    """
    runs: dict[Key, list[float]] = {key: [] for key in steps}
    for _ in range(repeats):
        for key, step in steps.items():
            runs[key].append(seconds_of(step, device))
    return {key: median(found) for key, found in runs.items()}


def device_name(device: str) -> str:
    """The name of a GPU; else the device's own."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


def described(stage: str, error: BaseException) -> str:
    """Stage, type and first line of an error.

    Paths start at the package they are in: nothing names the machine.
    """
    lines = str(error).strip().splitlines() or [""]
    text = re.sub(r"(?<![\w.])(?:/[\w.@+-]+)+/site-packages/", "", lines[0])
    text = re.sub(r"(?<![\w.])(?:/[\w.@+-]+)+/", "", text)
    return f"{stage}: {type(error).__name__.strip('_')}: {text[:300]}"


def _resident() -> tuple[float, float]:
    """(MB in use, MB in use at most so far)."""
    status = Path("/proc/self/status")
    if status.exists():
        kb = dict(re.findall(r"(VmRSS|VmHWM):\s+(\d+) kB", status.read_text()))
        return int(kb["VmRSS"]) / 1024, int(kb["VmHWM"]) / 1024
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / _MB
    return peak, peak


def resident_mb() -> float:
    """MB that the process holds."""
    return _resident()[0]


def peak_memory(step: Callable[[], object], above: float | None = None) -> float:
    """MB by which ``step`` raises the resident memory at most.

    Free heap pages go back to the system first and the kernel's high-water mark is reset, so that
    neither hides what the step needs. Where there is no /proc, the increase of ``ru_maxrss`` is a
    lower bound.

    Args:
        step: what to run.
        above: :func:`resident_mb` of an earlier moment, to count from there.
    """
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    before = resident_mb() if above is None else above
    step()
    return _resident()[1] - before
