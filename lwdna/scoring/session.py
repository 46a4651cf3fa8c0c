"""One guarded computation of several processes: nobody waits for a rank that will not come.

A session has a process group of its own (a failure leaves collectives behind that would be matched
with later ones), and keys in the default group's store, which work whatever the ranks wait for::

    passed/<rank>      how many sessions this rank has entered: numbers the sessions
    <n>/here/<rank>    the rank is at the entry of session n
    <n>/error          the first failure; whoever waits reads it at least every LOOK seconds
    <n>/roll           somebody asks who is still there
    <n>/alive/<rank>   the answer: what the rank is waiting in
    <n>/seen/<rank>    the rank knows of the failure
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import textwrap
import time
import zlib
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor

from lwdna.errors import ScoringError

#: Seconds: between two looks at the store; that a roll call, and the farewell after a failure, last
LOOK, ROLL_CALL, FAREWELL = 0.25, 1.5, 2.0
#: A pause while waiting: this part of the wait so far, so that short collectives stay short, and at
#: most so many seconds
PAUSE, LONGEST_PAUSE = 1 / 8, 5e-3


class Session:
    """The ranks of the default process group, from the entry into a guard to its exit.

    Args:
        timeout: longest wait for the other ranks, in one collective or at the entry.

    Attributes:
        rank: of this process.
        size: number of processes.
        device: where a tensor must be for :meth:`all_reduce`, unless ``takes`` says it may stay.

    Raises:
        ScoringError: some rank did not enter within ``timeout``, or failed there.
    """

    def __init__(self, timeout: timedelta) -> None:
        _release_completed()
        world = dist.group.WORLD
        assert world is not None, "Ranks.current() looked whether there is a default group"
        self.rank, self.size = world.rank(), world.size()
        self._timeout = timeout.total_seconds()
        self._verdict: str | None = None  # why the session failed, once it is known here
        self._collectives = 0
        self._last: tuple[dist.Work, Tensor] | None = None  # the last collective and its tensor
        self._at = "entering the guard"
        self._agreements = 0
        shared = _prefixed("lwdna.scoring", world.get_group_store())
        passed = f"passed/{self.rank}"
        self._store = _prefixed(str(shared.add(passed, 0)), shared)
        self._store.set(f"here/{self.rank}", "")
        try:
            self._until(lambda: self._all("here"), give_up=self._withdraw)
            group = _connected(timeout)
        except _NotAllHereError as error:
            raise ScoringError(str(error)) from None
        except BaseException as error:
            shared.add(passed, 1)
            self.fail(error)
            raise
        shared.add(passed, 1)
        self._group = group
        backends = dist.get_backend_config(self._group).split(",")
        self._types = [entry.split(":")[0] for entry in backends]
        self.device = torch.device("cpu" if "cpu" in self._types else self._types[0])

    def takes(self, tensor: Tensor) -> bool:
        """Whether the group's backend can reduce ``tensor`` where it is."""
        return tensor.device.type in self._types

    def all_reduce(self, tensor: Tensor) -> None:
        """Sum ``tensor`` (contiguous, on a device that the group takes) over the ranks, in place.

        Raises:
            ScoringError: another rank failed, died, or does not answer.
        """
        what = f"{tensor.numel()} values of {tensor.dtype}"
        self._run(dist.all_reduce, tensor, what)

    def broadcast(self, tensor: Tensor) -> None:
        """Overwrite ``tensor`` with rank 0's; as :meth:`all_reduce` otherwise."""
        what = f"{tensor.numel()} values of {tensor.dtype} from rank 0"
        self._run(partial(dist.broadcast, src=0), tensor, what)

    def barrier(self, what: str) -> None:
        """Return when every rank is at the barrier called ``what``.

        Raises:
            ScoringError: a rank failed, died, does not answer, or is at another collective.
        """
        # The sum of the names' checksums tells a barrier from any other collective.
        token = zlib.crc32(what.encode())
        tensor = torch.tensor([token], device=self.device)
        self._run(dist.all_reduce, tensor, what)
        if tensor.item() != token * self.size:
            self._roll_call(f"the ranks are at different collectives while rank {self.rank} is")

    def exchange(self, text: str) -> list[str]:
        """``text`` of every rank, in the order of the ranks."""
        n = self._agreements
        self._agreements += 1
        with self._store_errors():
            self._store.set(f"text{n}/{self.rank}", text)
        self.barrier(f"agreement {n}")
        with self._store_errors():
            texts = [self._store.get(key).decode() for key in self._keys(f"text{n}")]
        self.barrier(f"end of agreement {n}")
        with self._store_errors():
            self._store.delete_key(f"text{n}/{self.rank}")
        return texts

    def fail(self, error: BaseException) -> None:
        """Tell the others that this rank ends with ``error``, and wait until they know.

        The wait is short and bounded; it is for the rank whose process holds the store.
        """
        name = type(error).__name__
        text = f"rank {self.rank} failed: {name}" + (f": {error}" if str(error) else "")
        # Without the store there is no way to tell.
        with contextlib.suppress(RuntimeError, ScoringError):
            self._store.compare_set("error", "", text)
            self._store.set(f"seen/{self.rank}", "")
            end = time.monotonic() + (FAREWELL if isinstance(error, Exception) else 0)
            while time.monotonic() < end and not self._all("seen"):
                time.sleep(LONGEST_PAUSE)

    def close(self, failed: bool) -> None:
        """Free the process group; after a failure with the collectives that are under way."""
        if failed:
            # NCCL would wait for them. An abort that fails must not hide the first error.
            with contextlib.suppress(RuntimeError):
                self._group.abort()
        dist.destroy_process_group(self._group)
        if self._last is not None and not self._last[0].is_completed():
            _abandoned.append((self._group, *self._last))

    def _keys(self, prefix: str) -> list[str]:
        return [f"{prefix}/{rank}" for rank in range(self.size)]

    def _all(self, prefix: str) -> bool:
        with self._store_errors():
            return bool(self._store.check(self._keys(prefix)))

    def _run(self, launch: Callable[..., dist.Work | None], tensor: Tensor, what: str) -> None:
        if self._verdict is not None:  # someone caught the error and went on
            raise ScoringError(self._verdict)
        self._collectives += 1
        self._at = f"collective {self._collectives} ({what})"
        work = launch(tensor, group=self._group, async_op=True)
        assert work is not None, "this process is a member of the group"
        self._last = work, tensor
        self._until(work.is_completed)
        try:
            work.wait()
        except RuntimeError as error:
            reason = textwrap.shorten(str(error), 160)
            self._roll_call(f"a connection broke ({reason}) while rank {self.rank} was", error)

    def _until(
        self, done: Callable[[], bool], give_up: Callable[[], NoReturn] | None = None
    ) -> None:
        start = look = time.monotonic()
        while not done():
            now = time.monotonic()
            if now - look > LOOK:
                self._look()
                look = time.monotonic()
            if now - start > self._timeout:
                if give_up is not None:
                    give_up()
                self._roll_call(f"no answer in {self._timeout:g} s while rank {self.rank} was")
            time.sleep(min((now - start) * PAUSE, LONGEST_PAUSE))

    def _look(self) -> None:
        """Raise what another rank has reported, and answer a roll call."""
        with self._store_errors():
            if self._store.check(["error"]):
                self._end(self._store.get("error").decode())
            if self._store.check(["roll"]):
                self._store.set(f"alive/{self.rank}", self._at)

    def _roll_call(self, reason: str, cause: Exception | None = None) -> NoReturn:
        """Find out who is still there, and fail with ``reason`` and what was found."""
        with self._store_errors():
            self._store.set("roll", "")
            end = time.monotonic() + ROLL_CALL
            while time.monotonic() < end and not self._all("alive"):
                self._look()
                time.sleep(LONGEST_PAUSE)
            self._look()
            answers = {
                rank: self._store.get(key).decode() if self._store.check([key]) else None
                for rank, key in enumerate(self._keys("alive"))
            }
        text = f"{reason} at {self._at}"
        if silent := [str(rank) for rank, at in answers.items() if at is None]:
            text += (
                f"; rank {', '.join(silent)} gives no sign of life: it died, or has been busy for "
                f"over {ROLL_CALL} s. Look at its log"
            )
        elif len(set(answers.values())) > 1:
            text += f"; the ranks do different things: {answers}. Is the model the same on all?"
        with self._store_errors():
            text = self._store.compare_set("error", "", text).decode()
        self._end(text, cause)

    def _end(self, text: str, cause: Exception | None = None) -> NoReturn:
        self._verdict = text
        raise ScoringError(text) from cause

    def _withdraw(self) -> NoReturn:
        """Leave the entry as if never arrived, so that a later attempt finds all ranks there."""
        missing = [key for key in self._keys("here") if not self._store.check([key])]
        self._store.delete_key(f"here/{self.rank}")
        ranks = ", ".join(key.removeprefix("here/") for key in missing)
        raise _NotAllHereError(
            f"rank {ranks} did not come to scoring within {self._timeout:g} s: it failed before, "
            "or does not call lwdna. Look at its log"
        )

    @contextlib.contextmanager
    def _store_errors(self) -> Iterator[None]:
        """Say what it means when the store does not answer."""
        try:
            yield
        except RuntimeError as error:
            self._verdict = (
                f"the process group's store is gone, seen by rank {self.rank} at {self._at}: the "
                "process that holds it (rank 0, or the launcher) has ended. Look at its log"
            )
            raise ScoringError(self._verdict) from error


class _NotAllHereError(Exception):
    """Some rank did not come to the entry in time; the ranks that did may try again."""


def _connected(timeout: timedelta) -> dist.ProcessGroup:
    """New group of all ranks; they have arrived, so this waits only for one that died since."""
    try:
        # Longer than our own timeout, which ends with a better message.
        group = dist.new_group(timeout=timeout + timedelta(seconds=60))
    except RuntimeError as error:
        raise ScoringError(f"the ranks could not be connected: {error}") from error
    assert isinstance(group, dist.ProcessGroup), "the group has all ranks"
    return group


#: Groups whose last collective had not ended when their session failed, with that collective and
#: its tensor. Gloo's destructor would wait for the collective, holding the interpreter's lock.
_abandoned: list[tuple[dist.ProcessGroup, dist.Work, Tensor]] = []


def _release_completed() -> None:
    """Free the abandoned groups whose collective has ended by now."""
    _abandoned[:] = [entry for entry in _abandoned if not entry[1].is_completed()]


@atexit.register
def _outlive_interpreter() -> None:
    """Never free what is still pending at the end.

    A thread that needs the interpreter's lock once the interpreter is being torn down (gloo's own
    when it drops the last reference to a tensor, or ours in gloo's destructor) aborts the process.
    """
    _release_completed()
    for entry in _abandoned:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(entry))


def _prefixed(prefix: str, store: Any) -> Any:  # torch does not export the types of its stores
    return dist.PrefixStore(prefix, store)  # type: ignore[attr-defined]
