"""A run under way: all its parts, made or put back where a checkpoint left them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn

from lwdna.errors import TrainingError
from lwdna.training import checkpoint
from lwdna.training.data import Data
from lwdna.training.loading import Batches, evaluation_batches, load, training_set
from lwdna.training.machine import Machine, launch, placing
from lwdna.training.objective import mixing
from lwdna.training.protocol import Protocol


@dataclass
class Row:
    """What is known of one epoch."""

    metrics: dict[str, float]
    batch: str
    seconds: float = 0.0


@dataclass
class Run:
    """A run under way."""

    model: nn.Module
    network: Any
    optimizer: Any
    scheduler: Any
    ema: Any
    teacher: nn.Module | None
    fabric: Fabric
    protocol: Protocol
    data: Data
    seed: int
    batches: Batches
    loader: Any
    tests: Mapping[str, Any]
    place: Any
    mix: Any
    rows: list[dict[str, Any]] = field(default_factory=list)

    @property
    def identity(self) -> dict[str, Any]:
        """See :func:`lwdna.training.checkpoint.identity`."""
        processes = self.fabric.world_size
        return checkpoint.identity(self.protocol, self.seed, self.data.name, processes)


def prepare(
    model: nn.Module,
    protocol: Protocol,
    data: Data,
    seed: int,
    teacher: nn.Module | None,
    machine: Machine,
) -> Run:
    """All parts of a run, on the machine's device.

    Args:
        model: the network.
        protocol: how it is trained.
        data: on what.
        seed: of the run.
        teacher: of a protocol with distillation.
        machine: what to compute on.

    Raises:
        TrainingError: they do not fit one another.
    """
    assert data.train is not None
    fabric = launch(machine, protocol)
    rank, ranks = fabric.global_rank, fabric.world_size
    dataset = training_set(data.train, protocol)
    size = len(dataset)  # type: ignore[arg-type]
    batches = Batches(size, protocol.batch, seed=seed, rank=rank, ranks=ranks)
    tests = {
        name: evaluation_batches(source, protocol, rank=rank, ranks=ranks, workers=machine.workers)
        for name, source in data.tests.items()
    }
    mix = mixing(protocol, data.classes)
    if machine.channels_last:
        model.to(memory_format=torch.channels_last)
    optimizer, scheduler = optimizer_of(model, protocol)
    network: Any = torch.compile(model) if machine.compile else model
    network, optimizer = fabric.setup(network, optimizer)
    ema: Any = None
    if protocol.ema is not None:
        from timm.utils import ModelEmaV3

        ema = ModelEmaV3(model, decay=protocol.ema)
    if teacher is not None:
        teacher = fabric.strategy.precision.convert_module(teacher)
        teacher = fabric.to_device(teacher).eval()
    loader = load(dataset, batches, machine.workers)
    place = placing(fabric, machine, protocol)
    return Run(
        model, network, optimizer, scheduler, ema, teacher, fabric, protocol, data, seed,
        batches, loader, tests, place, mix,
    )  # fmt: skip


def optimizer_of(model: nn.Module, protocol: Protocol) -> tuple[Any, Any]:
    """Optimiser and schedule of timm; the schedule is a function of the epoch's number.

    Args:
        model: the network.
        protocol: the settings.

    Raises:
        TrainingError: timm has no such optimiser.
    """
    from timm.optim import create_optimizer_v2
    from timm.scheduler import create_scheduler_v2

    try:
        optimizer = create_optimizer_v2(
            model,
            opt=protocol.optimizer,
            lr=protocol.lr,
            weight_decay=protocol.weight_decay,
            momentum=protocol.momentum,
            filter_bias_and_bn=not protocol.decay_all,
        )
    except ValueError as e:
        raise TrainingError(f"optimizer={protocol.optimizer!r}: {e}") from e
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched="cosine" if protocol.schedule == "cosine" else "multistep",
        num_epochs=protocol.epochs,
        # timm compares milestones with the number of the epoch plus one, PyTorch with the number.
        decay_milestones=[milestone + 1 for milestone in protocol.milestones],
        decay_rate=protocol.gamma,
        min_lr=protocol.min_lr,
        warmup_epochs=protocol.warmup_epochs,
        warmup_lr=protocol.warmup_lr,
    )
    return optimizer, scheduler


def resumed(run: Run, folder: Path | None) -> int:
    """Put a run where its checkpoint was written.

    Args:
        run: the run, at its start.
        folder: with the checkpoint, if there is one.

    Returns:
        The number of epochs that are done.

    Raises:
        TrainingError: there is a checkpoint that is damaged, or of another run.
    """
    if folder is None:
        return 0
    state = checkpoint.read(folder, run.identity)
    if state is None:
        return 0
    try:
        run.model.load_state_dict(state["network"])
    except RuntimeError as e:
        raise TrainingError(f"the checkpoint in {folder} is of another network: {e}") from e
    run.optimizer.load_state_dict(state["optimizer"])
    run.fabric.strategy.precision.load_state_dict(state["scaler"])
    if run.ema is not None:
        run.ema.module.load_state_dict(state["ema"])
    run.rows.extend(state["rows"])
    return int(state["epoch"])
