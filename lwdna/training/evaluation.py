"""Evaluate: network, protocol and data -> metrics of every test set."""

from __future__ import annotations

from torch import nn

from lwdna.errors import TrainingError
from lwdna.training.data import Data
from lwdna.training.loading import evaluation_batches
from lwdna.training.machine import Machine, launch, placing, threads
from lwdna.training.metrics import measured
from lwdna.training.protocol import Protocol


def evaluate(
    model: nn.Module, protocol: Protocol, data: Data, *, machine: Machine | None = None
) -> dict[str, dict[str, float]]:
    """Measure a network on test sets, in evaluation mode; under torchrun all processes share them.

    Args:
        model: the network; moved to the device, its modes are put back.
        protocol: how images are prepared, and in which precision the network computes.
        data: the test sets.
        machine: device, threads, worker processes.

    Returns:
        name of the test set -> metrics: of classifiers ``loss``, ``top1`` and, for more than five
        classes, ``top5``, as shares; of pictures ``psnr`` in dB and ``ssim`` (see
        :func:`lwdna.training.metrics.picture_metrics`), means over pictures.

    Raises:
        TrainingError: there is no test set, or network, protocol and data do not fit.
    """
    if not data.tests:
        raise TrainingError(f"data {data.name!r} has no test set")
    machine = Machine() if machine is None else machine
    with threads(machine):
        fabric = launch(machine, protocol)
        fabric.to_device(model)
        place = placing(fabric, machine, protocol)
        found = {}
        for name, source in data.tests.items():
            batches = evaluation_batches(
                source,
                protocol,
                rank=fabric.global_rank,
                ranks=fabric.world_size,
                workers=machine.workers,
            )
            with fabric.autocast():
                found[name] = measured(model, batches, protocol, place, data.classes)
    return found
