"""Where a run computes: Lightning Fabric, set up deliberately.

Fabric, and not accelerate: it wraps network and optimiser and leaves loaders and random numbers
alone, which here must not depend on the number of processes; it knows torchrun, and has loggers.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from lwdna.errors import TrainingError
from lwdna.training.protocol import Protocol


@dataclass(frozen=True)
class Machine:
    """What a run computes on, none of which is part of the protocol.

    Attributes:
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``. Under torchrun every
            process takes the device of its number.
        workers: processes that read and change images of files.
        threads: of the CPU; None leaves them as they are.
        channels_last: keep images and kernels in channels-last order, which convolutions of many
            devices prefer.
        compile: pass the network through ``torch.compile``.

    Raises:
        TrainingError: numbers that make no sense.
    """

    device: str = "auto"
    workers: int = 0
    threads: int | None = None
    channels_last: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        if self.workers < 0 or (self.threads is not None and self.threads < 1):
            raise TrainingError(f"workers={self.workers}, threads={self.threads}: 0, 1 or more")


def launch(machine: Machine, protocol: Protocol, loggers: list[Any] | None = None) -> Fabric:
    """Fabric for a machine; under torchrun the processes find each other.

    Args:
        machine: what to compute on.
        protocol: names the precision.
        loggers: of Fabric.

    Raises:
        TrainingError: there is no such device, or it has not got the precision.
    """
    kind, _, number = machine.device.partition(":")
    processes = int(os.environ.get("WORLD_SIZE", 1))
    here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    devices: Any = [int(number)] if number else 1
    if processes > 1:
        if number:
            raise TrainingError(f"device={machine.device!r} under torchrun: leave out the number")
        devices = here
    try:
        fabric = Fabric(
            accelerator=kind,
            devices=devices,
            num_nodes=processes // here,
            strategy="ddp" if processes > 1 else "auto",
            precision=protocol.precision,
            loggers=loggers,
        )
    except (ValueError, RuntimeError) as e:  # of Fabric: unknown or missing devices
        raise TrainingError(f"device={machine.device!r}: {e}") from e
    if protocol.precision == "16-mixed" and fabric.device.type == "cpu":
        raise TrainingError("precision='16-mixed' needs a GPU: take 'bf16-mixed' on a CPU")
    fabric.launch()
    return fabric


@contextmanager
def one_first(machine: Machine, protocol: Protocol) -> Iterator[None]:
    """What is inside is done by the first process of each machine, and then by the others.

    Args:
        machine: what to compute on.
        protocol: see :func:`launch`.

    Raises:
        TrainingError: see :func:`launch`.
    """
    with launch(machine, protocol).rank_zero_first(local=True):
        yield


@contextmanager
def threads(machine: Machine) -> Iterator[None]:
    """The machine's number of CPU threads, put back in the end."""
    before = torch.get_num_threads()
    if machine.threads is not None:
        torch.set_num_threads(machine.threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def placed(values: Tensor, device: torch.device, dtype: torch.dtype, last: bool) -> Tensor:
    """A tensor on the device; floats in ``dtype``, images in channels-last order if wanted."""
    kind = dtype if values.is_floating_point() else values.dtype
    order = torch.channels_last if last and values.dim() == 4 else torch.preserve_format
    return values.to(device, kind, non_blocking=True, memory_format=order)


def placing(fabric: Fabric, machine: Machine, protocol: Protocol) -> partial[Tensor]:
    """:func:`placed` for a run."""
    dtype = torch.float64 if protocol.precision == "64-true" else torch.float32
    return partial(placed, device=fabric.device, dtype=dtype, last=machine.channels_last)


def share_buffers(network: nn.Module, fabric: Fabric) -> None:
    """Give every process the buffers (batch norm's statistics) of the first one."""
    if fabric.world_size > 1:
        for buffer in network.buffers():
            torch.distributed.broadcast(buffer, 0)


def device_name(fabric: Fabric) -> str:
    """``"cpu"``, or ``"cuda: NVIDIA ..."``."""
    kind = fabric.device.type
    return f"cuda: {torch.cuda.get_device_name(fabric.device)}" if kind == "cuda" else kind


def leave() -> None:
    """Leave the other processes of a run, if there are any."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
