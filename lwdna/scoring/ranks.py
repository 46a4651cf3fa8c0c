"""The processes that score together, each with its share of every batch (torchrun)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lwdna.errors import ScoringError
from lwdna.scoring.session import Session

#: Bytes that are flattened into one all-reduce by sum_: as DistributedDataParallel's default.
BUCKET = 25 * 2**20

_guarded: ContextVar[Ranks | None] = ContextVar("ranks inside their guard", default=None)


class Ranks:
    """The processes that score together; one process is the trivial case.

    The loss on the concatenated batch is L = Σ_r L_r, where L_r is the mean loss of rank r times
    ``share(n_r)``. Each rank runs backward on its own L_r only: :meth:`sum` hands the gradients of
    all L_r to each rank's summands. So a rank's gradient is ∂L/∂(its copy of a parameter), and
    :meth:`sum_` over the ranks' copies gives ∂L/∂parameter, exactly; second derivatives likewise.

    All ranks must issue the same collectives in the same order, backward included. Identical
    models guarantee it: autograd runs nodes in the reverse order of their creation. So which
    modules run, and what requires a gradient, must not depend on the rank's data.

    Args:
        size: number of processes. 1: no method calls torch.distributed.
        rank: of this process.
        timeout: longest wait for the other ranks, in a collective or at the entry of the guard.

    >>> ranks = Ranks.current()
    >>> with ranks.guard():
    ...     ranks.agree({"seed": 0})
    ...     print(ranks.size, ranks.share(5), ranks.sum(torch.ones(2)))
    1 1.0 tensor([1., 1.])
    """

    def __init__(self, size: int = 1, rank: int = 0, timeout: timedelta | None = None) -> None:
        if not 0 <= rank < size:
            raise ValueError(f"rank={rank}, size={size}: a rank is at least 0 and below size")
        self.size, self.rank, self._timeout = size, rank, timeout
        self._session: Session | None = None

    @classmethod
    def current(cls, timeout: timedelta | None = None) -> Ranks:
        """The processes of the default process group; this one alone where there is none.

        Inside a guard these are the guarded ranks, so that nested guards are one.

        Args:
            timeout: see :class:`Ranks`. ``None``: the default group's.
        """
        if (ranks := _guarded.get()) is not None:
            return ranks
        world = dist.group.WORLD if dist.is_available() and dist.is_initialized() else None
        if world is None or world.size() == 1:
            return cls()
        store_timeout: timedelta = world.get_group_store().timeout  # type: ignore[attr-defined]
        return cls(world.size(), world.rank(), timeout or store_timeout)

    @contextmanager
    def guard(self) -> Iterator[None]:
        """End all ranks when one fails inside, instead of leaving the others waiting.

        What a rank raises is raised there unchanged; the others raise
        ``ScoringError("rank 2 failed: ValueError: ...")`` at their next, or in their present,
        collective. No rank leaves the guard normally unless all come to its end. After a failure
        that every rank caught, the next guard starts afresh. A guard inside a guard is part of it.

        Raises:
            ScoringError: another rank failed, died, or did not answer within the timeout.
        """
        if self.size == 1 or self._session is not None:
            yield
            return
        assert self._timeout is not None, "Ranks.current() gives several ranks a timeout"
        session = Session(self._timeout)
        self._session, token = session, _guarded.set(self)
        failed = True
        try:
            yield
            session.barrier("leaving the guard")
            failed = False
        except BaseException as error:
            session.fail(error)
            raise
        finally:
            self._session = None
            _guarded.reset(token)
            session.close(failed)

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over the ranks, differentiable any number of times.

        Args:
            tensor: any shape, the same on all ranks; floating point. Not changed.

        Returns:
            New tensor of the same shape, dtype and device, equal on all ranks.

        Raises:
            ScoringError: another rank failed, died, or does not answer.
        """
        return tensor.clone() if self.size == 1 else _Sum.apply(self, tensor)

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors (gradients) by their sums over the ranks, outside of autograd.

        Args:
            tensors: any shapes, dtypes and devices; the same on all ranks.

        Raises:
            ScoringError: another rank failed, died, or does not answer.
        """
        if self.size > 1:
            _in_buckets(tensors, self._all_reduced)

    def broadcast_(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite tensors with rank 0's, outside of autograd.

        Args:
            tensors: any shapes, dtypes and devices; the same on all ranks.

        Raises:
            ScoringError: another rank failed, died, or does not answer.
        """
        if self.size > 1:
            _in_buckets(tensors, self._broadcast)

    def share(self, n: int) -> float:
        """``n`` divided by its sum over the ranks.

        Args:
            n: number of samples that this rank has.

        Returns:
            The weight of this rank's mean in the mean over the concatenated batch.

        Raises:
            ValueError: ``n`` is negative.
            ScoringError: no rank has a sample; or another rank failed, died, does not answer.
        """
        if n < 0:
            raise ValueError(f"n={n}: the number of this rank's samples")
        total = n if self.size == 1 else int(self._all_reduced(torch.tensor([n])).item())
        if not total:
            raise ScoringError("the batch is empty on every rank")
        return n / total

    def agree(self, what: Mapping[str, Any]) -> None:
        """Refuse what is not the same on all ranks.

        Args:
            what: name -> plain data (numbers, strings, shapes, dtypes, nested mappings of such),
                compared by ``repr``.

        Raises:
            ScoringError: a value differs; names the key and two ranks with their values. The same
                error on every rank. Or another rank failed, died, or does not answer.
        """
        if self.size == 1:
            return
        texts = self._open().exchange(json.dumps(dict(_flattened(what))))
        first, *others = (json.loads(text) for text in texts)
        for rank, other in enumerate(others, 1):
            for key in dict.fromkeys((*first, *other)):
                a, b = first.get(key, "nothing"), other.get(key, "nothing")
                if a != b:
                    raise ScoringError(
                        f"the ranks differ in {key}: {a} on rank 0, {b} on rank {rank}. Give every "
                        "rank the same arguments; only the data may differ"
                    )

    def _open(self) -> Session:
        if self._session is None:
            raise RuntimeError("several ranks work together inside `with ranks.guard():` only")
        return self._session

    def _all_reduced(self, tensor: Tensor) -> Tensor:
        return self._carried(tensor, self._open().all_reduce)

    def _broadcast(self, tensor: Tensor) -> Tensor:
        return self._carried(tensor, self._open().broadcast)

    def _carried(self, tensor: Tensor, collective: Callable[[Tensor], None]) -> Tensor:
        """New tensor; CPU tensors go through the GPU where the backend asks for it (NCCL)."""
        session = self._open()
        place = tensor.device if session.takes(tensor) else session.device
        carrier = tensor.detach().to(place, copy=True, memory_format=torch.contiguous_format)
        collective(carrier)
        return carrier.to(tensor.device)


class _Sum(torch.autograd.Function):
    """y = Σ_r x_r on every rank. With L = Σ_r L_r(y): ∂L/∂x_r = Σ_s ∂L_s/∂y, again a sum."""

    @staticmethod
    def forward(ranks: Ranks, tensor: Tensor) -> Tensor:
        return ranks._all_reduced(tensor)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Ranks, Tensor], output: Tensor) -> None:
        ctx.ranks, _ = inputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        return None, ctx.ranks.sum(grads[0])


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Runs of at most BUCKET bytes of one dtype and device; the same on all ranks."""
    kinds: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        if tensor.numel():
            kinds.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    for kind in kinds.values():
        bucket: list[Tensor] = []
        size = 0
        for tensor in kind:
            if bucket and size + tensor.nbytes > BUCKET:
                yield bucket
                bucket, size = [], 0
            bucket.append(tensor)
            size += tensor.nbytes
        yield bucket


def _in_buckets(tensors: Sequence[Tensor], collective: Callable[[Tensor], Tensor]) -> None:
    """Overwrite tensors with what ``collective`` makes of them, many at a time."""
    for bucket in _buckets(tensors):
        flat = torch.cat([tensor.detach().reshape(-1) for tensor in bucket])
        values = collective(flat).split([tensor.numel() for tensor in bucket])
        with torch.no_grad():
            for tensor, value in zip(bucket, values, strict=True):
                tensor.copy_(value.view_as(tensor))


def _flattened(what: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in what.items():
        name = f"{prefix}[{key!r}]" if prefix else str(key)
        if isinstance(value, Mapping):
            yield from _flattened(value, name)
        else:
            yield name, repr(value)
