"""Do the runs of a plan that are not done yet, in one process or in several."""

from __future__ import annotations

import multiprocessing
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.compare.run import Run, execute
from benchmarks.measure import TimeLimitError, time_limit
from lwdna.training import Machine


@dataclass(frozen=True)
class Place:
    """Where runs are done.

    Attributes:
        data: folder with the data.
        output: folder of the records.
        machine: what each process computes on.
        until: time (of ``time.time``) at which all stops; None for never. What is under way goes on
            from its last epoch when it is started again.
    """

    data: Path
    output: Path
    machine: Machine
    until: float | None = None


def sweep(runs: Sequence[Run], place: Place, jobs: int) -> int:
    """Do all runs that are not done, each in the process that is free first.

    Args:
        runs: in the order in which they are begun.
        place: where.
        jobs: number of processes.

    Returns:
        How many runs failed.
    """
    todo = [run for run in runs if run.found(place.output / "runs") is None]
    print(f"{len(runs) - len(todo)} of {len(runs)} runs are done", flush=True)
    context = multiprocessing.get_context("spawn")
    counter = context.Value("q", 0)  # number of the next run
    jobs = min(jobs, len(todo))
    if jobs <= 1:
        return _work(todo, place, counter)
    workers = [
        context.Process(target=_work_and_exit, args=(todo, place, counter)) for _ in range(jobs)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    # Of a process that was killed nobody knows how many runs failed: one, at least.
    return sum(w.exitcode if w.exitcode and w.exitcode > 0 else bool(w.exitcode) for w in workers)


def _work_and_exit(todo: Sequence[Run], place: Place, counter: Any) -> None:
    sys.exit(min(_work(todo, place, counter), 100))


def _work(todo: Sequence[Run], place: Place, counter: Any) -> int:
    """Take the next run until there is none, or the time is over; how many failed."""
    failed = 0
    left = None if place.until is None else place.until - time.time()
    if left is not None and left <= 0:
        return 0
    try:
        with nullcontext() if left is None else time_limit(left):
            while True:
                with counter.get_lock():
                    number, counter.value = counter.value, counter.value + 1
                if number >= len(todo):
                    return failed
                failed += not _done(todo[number], f"{number + 1}/{len(todo)}", place)
    except TimeLimitError:
        return failed


def _done(run: Run, where: str, place: Place) -> bool:
    started = time.perf_counter()
    try:
        record = execute(run, place.data, place.output, place.machine)
    except Exception:  # the others go on
        print(f"{where} {run.name} FAILED\n{traceback.format_exc()}", flush=True)
        return False
    last = {name: values[-1] for name, values in record["curves"].items()}
    told = ", ".join(f"{name} {value:.4g}" for name, value in last.items() if name != "lr")
    print(f"{where} {run.name} {time.perf_counter() - started:.0f} s: {told}", flush=True)
    return True
