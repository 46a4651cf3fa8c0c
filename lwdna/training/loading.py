"""From data and protocol to batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Sampler

from lwdna.errors import TrainingError
from lwdna.training.data import Pictures, Source, TensorImages
from lwdna.training.images import FileSet, TensorSet
from lwdna.training.pictures import PatchSet, PictureSet
from lwdna.training.protocol import Protocol
from lwdna.training.randomness import Draw


class Batches(Sampler[list[Draw]]):
    """The batches of one process and one epoch.

    Batch k of all processes together is batch k of a single one.

    Args:
        size: of the data set.
        batch: images per step, over all processes.
        seed: of the run.
        rank: of this process.
        ranks: number of processes.

    Raises:
        TrainingError: the batch is larger than the data set, or no multiple of ``ranks``.
    """

    def __init__(self, size: int, batch: int, *, seed: int, rank: int, ranks: int) -> None:
        if batch > size:
            raise TrainingError(
                f"batch={batch}, and the training set has {size} images: take a smaller batch"
            )
        if batch % ranks:
            raise TrainingError(f"batch={batch} is over all processes: a multiple of {ranks}")
        self._seed, self._each, self._length = seed, batch // ranks, size // batch
        self._order: DistributedSampler[Any] = DistributedSampler(
            range(size),  # type: ignore[arg-type]
            num_replicas=ranks,
            rank=rank,
            seed=seed,
            drop_last=True,
        )

    def set_epoch(self, epoch: int) -> None:
        """Shuffle for an epoch."""
        self._order.set_epoch(epoch)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[list[Draw]]:
        epoch, order = self._order.epoch, list(self._order)
        for n in range(self._length):
            mine = order[n * self._each : (n + 1) * self._each]
            yield [Draw(self._seed, epoch, index) for index in mine]


def training_set(source: Source, protocol: Protocol) -> Dataset[Any]:
    """What a protocol makes of the training set; it is asked for :class:`Draw`."""
    return _prepared(source, protocol, training=True)


def evaluation_batches(
    source: Source, protocol: Protocol, *, rank: int = 0, ranks: int = 1, workers: int = 0
) -> DataLoader[Any]:
    """The batches of a test set, each image once over all processes.

    Args:
        source: the test set.
        protocol: how it is prepared.
        rank: of this process.
        ranks: number of processes.
        workers: processes that load.

    Raises:
        TrainingError: fewer images than processes.
    """
    if len(source) < ranks:
        raise TrainingError(f"a test set of {len(source)} images for {ranks} processes")
    dataset = _prepared(source, protocol, training=False)
    # Pictures differ in size, so they come one by one.
    each = 1 if isinstance(source, Pictures) else max(protocol.batch // ranks, 1)
    draws = [Draw(0, 0, index) for index in range(rank, len(source), ranks)]
    batches = [draws[start : start + each] for start in range(0, len(draws), each)]
    return load(dataset, batches, workers)


def load(dataset: Dataset[Any], batches: Any, workers: int) -> DataLoader[Any]:
    """A loader that leaves torch's global generator alone.

    Args:
        dataset: what is loaded.
        batches: yields lists of :class:`Draw`.
        workers: processes that load; 0 for this one.
    """
    whole = {"collate_fn": _as_it_is} if isinstance(dataset, TensorSet) else {}
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=0 if whole else workers,  # a batch from memory is one indexing
        persistent_workers=bool(workers and not whole),
        pin_memory=torch.cuda.is_available() and not whole,
        generator=torch.Generator(),
        **whole,  # type: ignore[arg-type]
    )


def _as_it_is(batch: Any) -> Any:
    return batch


def _prepared(source: Source, protocol: Protocol, *, training: bool) -> Dataset[Any]:
    if isinstance(source, Pictures) != (protocol.patches is not None):
        wanted = "Pictures" if protocol.patches else "labelled images"
        raise TrainingError(
            f"protocol {protocol.name!r} is for {protocol.task}: it takes {wanted}, and no "
            f"{type(source).__name__}"
        )
    if isinstance(source, Pictures):
        assert protocol.patches is not None
        return (PatchSet if training else PictureSet)(source, protocol.patches)
    assert protocol.images is not None
    if isinstance(source, TensorImages):
        return TensorSet(source, protocol.images, training=training)
    return FileSet(source, protocol.images, training=training)
