"""Random numbers that depend on nothing but what they are for.

What an image of an epoch looks like follows from seed, epoch and the image's number alone: not from
the network, the batch, the number of processes or workers, or from where a run was resumed.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch


class Draw(NamedTuple):
    """What is asked of a data set: the image ``number`` as it is in ``epoch`` under ``seed``."""

    seed: int
    epoch: int
    number: int


def mixed(*numbers: int) -> int:
    """One seed from several, for other seeds another.

    Args:
        numbers: non-negative.

    Source: NumPy's SeedSequence, made for this.
    """
    state = np.random.SeedSequence(numbers).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))  # generators of torch take 63 bits everywhere


def generator(*numbers: int) -> torch.Generator:
    """A generator of its own, on the CPU."""
    return torch.Generator().manual_seed(mixed(*numbers))


@contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Seed the global generators of Python, NumPy and torch (CPU), and put them back.

    For libraries that draw from them: torchvision's and timm's transforms.
    """
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        _seed(mixed(*numbers))
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


@contextmanager
def global_states_kept() -> Iterator[None]:
    """Put the global generators of Python, NumPy and torch (every device) back in the end."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def seed_network(seed: int, epoch: int, rank: int) -> None:
    """Seed what the network draws in an epoch: dropout, drop path.

    Set anew for each epoch, so that a resumed run needs no state of generators.
    """
    number = mixed(seed, epoch, rank, 1)
    _seed(number)
    torch.cuda.manual_seed_all(number)


def _seed(number: int) -> None:
    random.seed(number)
    np.random.seed(number % 2**32)
    torch.default_generator.manual_seed(number)
