"""A process for every model, forked from a parent that is warm but has run no operator.

A fork of a process that has imported everything is as fresh as a new one (no thread, cache or
operator was ever used) and starts in milliseconds. The parent enforces the limits and outlives
whatever happens to a child.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch

Record = dict[str, Any]
#: Examines one model and sends its growing record; the last one has the stage "done".
Examine = Callable[[str, Callable[[Mapping[str, Any]], None]], None]

_POLL_S = 0.5


@dataclass
class _Running:
    process: BaseProcess
    pipe: Connection
    started: float
    record: Record = field(default_factory=dict)


def run_all(
    names: Sequence[str], examine: Examine, *, jobs: int, limit_s: float, memory_gb: float
) -> Iterator[Record]:
    """Examine every model in a process of its own; yields the records as they end.

    A process that dies or runs into a limit leaves the record that it had sent, with its failure.

    Args:
        names: ``"library:model"``.
        examine: runs in the child.
        jobs: number of processes at a time.
        limit_s: seconds for one model.
        memory_gb: private memory for one model; what is beyond it cannot be allocated (Linux).
    """
    waiting, running = list(reversed(names)), dict[str, _Running]()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                name = waiting.pop()
                running[name] = _start(name, examine, memory_gb)
            wait([r.pipe for r in running.values()], timeout=_POLL_S)
            for name, child in list(running.items()):
                if _listen(child, limit_s):
                    del running[name]
                    child.record.pop("stage")
                    yield child.record | {"wall_s": round(time.monotonic() - child.started, 2)}
    finally:
        for child in running.values():
            _stop(child)


def _start(name: str, examine: Examine, memory_gb: float) -> _Running:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(name, examine, theirs, memory_gb), daemon=True)
    process.start()
    theirs.close()
    return _Running(process, ours, time.monotonic(), {"name": name, "stage": "start"})


def _child(name: str, examine: Examine, pipe: Connection, memory_gb: float) -> None:
    """Run in the child: one thread, limited memory."""
    gc.freeze()  # what the parent imported is no garbage: collections do not look at it again
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    if sys.platform == "linux":  # elsewhere the kernel does not enforce it
        used, most = _private_bytes(), int(memory_gb * 2**30)
        resource.setrlimit(resource.RLIMIT_DATA, (used + most, used + most))
    examine(name, pipe.send)
    pipe.close()


def _private_bytes() -> int:
    """What RLIMIT_DATA counts: private writable memory, as it is after the fork."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[5]) * resource.getpagesize()


def _listen(child: _Running, limit_s: float) -> bool:
    """Take in what the child sent; whether it has ended."""
    with contextlib.suppress(EOFError, OSError):
        while child.pipe.poll():
            child.record = child.pipe.recv()
    if child.record["stage"] == "done":
        child.process.join()
        return True
    if time.monotonic() - child.started > limit_s:
        _stop(child)
        return _failed(child, f"stopped after {limit_s:g} s")
    if not child.process.is_alive():
        code = child.process.exitcode or 0
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return _failed(child, f"the process died: {how}")
    return False


def _failed(child: _Running, error: str) -> bool:
    """Put the failure on the record; what the peer does to its process is the peer's failure."""
    stage = child.record["stage"]
    if stage == "peer":
        child.record["peer"] = {"failure": error}
    else:
        child.record["failure"] = {"stage": stage, "error": f"{stage}: {error}"}
    return True


def _stop(child: _Running) -> None:
    child.process.kill()
    child.process.join()
