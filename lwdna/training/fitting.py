"""Fit: network, protocol, data and seed -> trained network and result."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from tqdm import tqdm

from lwdna.errors import TrainingError
from lwdna.files import replace_file
from lwdna.training import checkpoint
from lwdna.training.data import Data
from lwdna.training.loading import Batches, load, evaluation_batches, training_set
from lwdna.training.machine import Machine, launch, placing, share_buffers, threads
from lwdna.training.metrics import measured
from lwdna.training.networks import Keepsake, keepsake
from lwdna.training.objective import loss_of, mixing
from lwdna.training.protocol import Protocol
from lwdna.training.randomness import global_states_kept, seed_network
from lwdna.training.result import Result, all_versions

Logger = Literal["csv", "tensorboard"]
LOGS = "logs"


def fit(
    model: nn.Module,
    protocol: Protocol,
    data: Data,
    *,
    seed: int = 0,
    output: str | Path | None = None,
    resume: bool = False,
    teacher: nn.Module | None = None,
    machine: Machine | None = None,
    loggers: Sequence[Logger] = ("csv",),
    test_every: int = 1,
) -> Result:
    """Train a network, baseline or shrunk, by one protocol.

    The same data, protocol and seed give the same batches, image by image and pixel by pixel,
    whatever the network. On one device and one version of PyTorch a run that was killed and resumed
    comes to the same weights, to the last bit, as far as the device computes deterministically.

    Args:
        model: the network; trained in place, in the end on the device and in evaluation mode. With a
            moving average in the protocol, its weights are put there.
        protocol: how it is trained.
        data: on what.
        seed: of order and changes of the images, and of dropout; not of the weights.
        output: directory for ``checkpoint.pt`` (each epoch), ``logs/``, ``result.json`` and
            ``network/`` (see :func:`lwdna.save`); None for none of them.
        resume: go on with what ``output`` holds, or start if it holds nothing.
        teacher: for a protocol with distillation; put into evaluation mode.
        machine: device, threads, worker processes.
        loggers: ``"csv"`` and ``"tensorboard"``, in ``output``.
        test_every: epochs between tests; the last one is always tested.

    Returns:
        Metrics of all epochs, and what led to them.

    Raises:
        TrainingError: protocol, data, network, teacher or checkpoint do not fit one another, or the
            loss is no longer finite.
        LwdnaError: ``output`` is given, and the network cannot be captured, which saving it needs.
    """
    machine = Machine() if machine is None else machine
    _check(protocol, data, teacher, test_every)
    folder = None if output is None else Path(output)
    kept = None if folder is None else keepsake(model, protocol)
    with ExitStack() as stack:
        stack.enter_context(global_states_kept())
        stack.enter_context(threads(machine))
        run = _prepare(model, protocol, data, seed, teacher, machine)
        done = _resumed(run, folder, resume)
        loggings = [] if folder is None else _loggers(folder, loggers, run)
        bar = stack.enter_context(_bar(run, done))
        for epoch in range(done, protocol.epochs):
            started = perf_counter()
            last = epoch + 1 == protocol.epochs
            row = _trained(run, epoch, bar)
            if last or (epoch + 1) % test_every == 0:
                row.metrics.update(_tested(run))
            row.seconds = perf_counter() - started
            run.rows.append(vars(row))
            for logger in loggings:
                logger.log_metrics(row.metrics, epoch)
                logger.save()
            _keep(run, folder, epoch + 1)
        return _finished(run, folder, kept)


@dataclass
class _Row:
    """What is known of one epoch."""

    metrics: dict[str, float]
    batch: str
    seconds: float = 0.0


@dataclass
class _Run:
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


def _check(protocol: Protocol, data: Data, teacher: nn.Module | None, test_every: int) -> None:
    if data.train is None:
        raise TrainingError(f"data {data.name!r} has no training set")
    if (teacher is None) != (protocol.distillation is None):
        raise TrainingError(
            f"protocol {protocol.name!r} needs a teacher: pass one, or set distillation=null"
            if teacher is None
            else f"a teacher, and protocol {protocol.name!r} has distillation=null"
        )
    if test_every < 1:
        raise TrainingError(f"test_every={test_every}: 1 or more")


def _prepare(
    model: nn.Module,
    protocol: Protocol,
    data: Data,
    seed: int,
    teacher: nn.Module | None,
    machine: Machine,
) -> _Run:
    assert data.train is not None
    fabric = launch(machine, protocol)
    rank, ranks = fabric.global_rank, fabric.world_size
    dataset = training_set(data.train, protocol)
    size = len(dataset)  # type: ignore[arg-type]
    batches = Batches(size, protocol.batch, seed=seed, rank=rank, ranks=ranks)
    tests = {
        name: evaluation_batches(
            source, protocol, rank=rank, ranks=ranks, workers=machine.workers
        )
        for name, source in data.tests.items()
    }
    mix = mixing(protocol, data.classes)
    if machine.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer, scheduler = _optimizer(model, protocol)
    network: Any = torch.compile(model) if machine.compile else model
    network, optimizer = fabric.setup(network, optimizer)
    ema: Any = None
    if protocol.ema is not None:
        from timm.utils import ModelEmaV3

        ema = ModelEmaV3(model, decay=protocol.ema)
    if teacher is not None:
        teacher = fabric.to_device(teacher).eval()
    loader = load(dataset, batches, machine.workers)
    place = placing(fabric, machine, protocol)
    return _Run(
        model, network, optimizer, scheduler, ema, teacher, fabric, protocol, data, seed,
        batches, loader, tests, place, mix,
    )  # fmt: skip


def _optimizer(model: nn.Module, protocol: Protocol) -> tuple[Any, Any]:
    """timm's optimiser, and its schedule as a function of the epoch."""
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


def _resumed(run: _Run, folder: Path | None, resume: bool) -> int:
    """Put the run where its checkpoint was written; the number of epochs that are done."""
    if folder is None:
        return 0
    state = checkpoint.read(folder, checkpoint.identity(run.protocol, run.seed, run.data.name))
    if state is None:
        return 0
    if not resume:
        raise TrainingError(f"{folder} holds a run: resume it, or name another directory")
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


def _loggers(folder: Path, names: Sequence[Logger], run: _Run) -> list[Any]:
    """The library's loggers, with the rows of the epochs that are done: of a killed run, too,
    the log holds each epoch once."""
    from lightning_fabric.loggers import CSVLogger, TensorBoardLogger

    if not run.fabric.is_global_zero:
        return []
    kinds: dict[str, Any] = {
        "csv": lambda: CSVLogger(folder, name=LOGS, version="csv", flush_logs_every_n_steps=1),
        "tensorboard": lambda: TensorBoardLogger(folder, name=LOGS, version="tensorboard"),
    }
    unknown = sorted(set(names) - set(kinds))
    if unknown:
        raise TrainingError(f"loggers={unknown}: of {sorted(kinds)}")
    found = []
    for name in names:
        shutil.rmtree(folder / LOGS / name, ignore_errors=True)
        logger = kinds[name]()
        for epoch, row in enumerate(run.rows):
            logger.log_metrics(row["metrics"], epoch)
        logger.save()
        found.append(logger)
    return found


def _bar(run: _Run, done: int) -> Any:
    each = len(run.batches)
    return tqdm(
        total=run.protocol.epochs * each,
        initial=done * each,
        desc="fit",
        unit="step",
        disable=None if run.fabric.is_global_zero else True,  # None: where there is no terminal
    )


def _trained(run: _Run, epoch: int, bar: Any) -> _Row:
    """One epoch."""
    seed_network(run.seed, epoch, run.fabric.global_rank)
    run.batches.set_epoch(epoch)
    run.scheduler.step(epoch)
    run.network.train()
    losses: list[Tensor] = []
    right: list[Tensor] = []
    digest = ""
    for step, (inputs, targets) in enumerate(run.loader):
        digest = digest or _digest(inputs, targets)
        x, y = run.place(inputs), run.place(targets)
        if run.mix is not None:
            x, y = run.mix(x, y, (run.seed, epoch, step, run.fabric.global_rank))
        outputs, loss = _step(run, x, y)
        losses.append(loss)
        if run.data.classes is not None and y.dim() == 1:
            right.append((outputs.argmax(1) == y).float().mean())
        bar.update()
    metrics = {"lr": float(run.optimizer.param_groups[0]["lr"])}
    for name, values in (("loss", losses), ("top1", right)):
        if values:
            mean = run.fabric.all_reduce(torch.stack(values).mean(), reduce_op="mean")
            metrics[f"train/{name}"] = float(mean)  # type: ignore[arg-type]
    if not torch.tensor(metrics["train/loss"]).isfinite():
        raise TrainingError(
            f"the loss of epoch {epoch} is {metrics['train/loss']}: take a smaller lr, a warm-up, "
            "or clip the gradient"
        )
    return _Row(metrics, digest)


def _step(run: _Run, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """One step of the optimiser; outputs and loss before it."""
    protocol, fabric = run.protocol, run.fabric
    outputs = run.network(x)
    taught = None
    if run.teacher is not None:
        with torch.no_grad(), fabric.autocast():
            taught = run.teacher(x)
    loss = loss_of(protocol, outputs, y, taught)
    fabric.backward(loss)
    if protocol.clip is not None:
        fabric.clip_gradients(
            run.network, run.optimizer, max_norm=protocol.clip, error_if_nonfinite=False
        )
    run.optimizer.step()
    run.optimizer.zero_grad()
    if run.ema is not None:
        run.ema.update(run.model)
    return outputs.detach(), loss.detach()


def _digest(inputs: Tensor, targets: Tensor) -> str:
    """Tells batches apart; of what the network is shown, before anything is mixed."""
    values = (t.contiguous().cpu().numpy().tobytes() for t in (inputs, targets))
    return sha256(b"".join(values)).hexdigest()[:16]


def _tested(run: _Run) -> dict[str, float]:
    share_buffers(run.model, run.fabric)
    found: dict[str, float] = {}
    networks = [("", run.model)] if run.ema is None else [("", run.model), ("ema/", run.ema.module)]
    for prefix, network in networks:
        for name, batches in run.tests.items():
            with run.fabric.autocast():
                metrics = measured(network, batches, run.protocol, run.place)
            found.update({f"{prefix}{name}/{key}": value for key, value in metrics.items()})
    return found


def _keep(run: _Run, folder: Path | None, done: int) -> None:
    if folder is not None and run.fabric.is_global_zero:
        state = {
            "epoch": done,
            "run": checkpoint.identity(run.protocol, run.seed, run.data.name),
            "network": run.model.state_dict(),
            "optimizer": run.optimizer.state_dict(),
            "scaler": run.fabric.strategy.precision.state_dict(),
            "ema": None if run.ema is None else run.ema.module.state_dict(),
            "rows": run.rows,
        }
        checkpoint.write(folder, state)
    run.fabric.barrier()


def _finished(run: _Run, folder: Path | None, kept: Keepsake | None) -> Result:
    share_buffers(run.model, run.fabric)
    if run.ema is not None:
        run.model.load_state_dict(run.ema.module.state_dict())
    run.model.eval()
    result = Result(
        protocol=run.protocol,
        seed=run.seed,
        data=run.data.name,
        network=type(run.model).__name__ if kept is None else kept.name,
        cost=None if kept is None else kept.cost,
        epochs=tuple(row["metrics"] for row in run.rows),
        batches=tuple(row["batch"] for row in run.rows),
        seconds=tuple(row["seconds"] for row in run.rows),
        device=run.fabric.device.type,
        processes=run.fabric.world_size,
        versions=all_versions(),
    )
    if folder is not None and kept is not None and run.fabric.is_global_zero:
        kept.save(run.model, folder / "network")
        replace_file(folder / "result.json", lambda path: path.write_text(result.to_json()))
    run.fabric.barrier()
    return result
