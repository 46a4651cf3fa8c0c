"""Fit: network, protocol, data and seed -> trained network and result."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path
from time import perf_counter
from typing import Any, get_args

import torch
from torch import Tensor, nn
from tqdm import tqdm

from lwdna.errors import TrainingError
from lwdna.files import replace_file
from lwdna.training import checkpoint
from lwdna.training.data import Data
from lwdna.training.logs import Logger, open_logs
from lwdna.training.machine import Machine, device_name, share_buffers, threads
from lwdna.training.metrics import measured
from lwdna.training.networks import Keepsake, keepsake
from lwdna.training.objective import loss_of
from lwdna.training.protocol import Protocol
from lwdna.training.randomness import global_states_kept, seed_network
from lwdna.training.result import Result, all_versions
from lwdna.training.run import Row, Run, prepare, resumed


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
    save_network: bool = True,
) -> Result:
    """Train a network, baseline or shrunk, by one protocol.

    The same data, protocol and seed give the same batches, image by image and pixel by pixel,
    whatever the network. On one device and one version of PyTorch a run that was killed and resumed
    comes to the same weights, to the last bit, as far as the device computes deterministically.

    Args:
        model: the network; trained in place, in the end on the device and in evaluation mode. With
            a moving average in the protocol, it has that in the end.
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
        save_network: write ``network/``, too. Runs whose figures are all that is wanted do without;
            then nothing needs to tell how the network is constructed, and the result has no cost.

    Returns:
        Metrics of all epochs, and what led to them.

    Raises:
        TrainingError: protocol, data, network, teacher or checkpoint do not fit one another, or the
            loss is no longer finite.
        LwdnaError: the network is to be saved, and cannot be captured, which that needs.
    """
    machine = Machine() if machine is None else machine
    _check(protocol, data, teacher, test_every)
    _check_loggers(loggers)
    folder = None if output is None else Path(output)
    if folder is not None and not resume:
        checkpoint.check_free(folder)
    kept = keepsake(model, protocol) if folder is not None and save_network else None
    with ExitStack() as stack:
        stack.enter_context(global_states_kept())
        stack.enter_context(threads(machine))
        run = prepare(model, protocol, data, seed, teacher, machine)
        done = resumed(run, folder)
        logs = [] if folder is None else open_logs(folder, loggers, run)
        bar = stack.enter_context(_bar(run, done))
        for epoch in range(done, protocol.epochs):
            started = perf_counter()
            last = epoch + 1 == protocol.epochs
            row = _trained(run, epoch, bar)
            if last or (epoch + 1) % test_every == 0:
                row.metrics.update(_tested(run))
            row.seconds = perf_counter() - started
            run.rows.append(vars(row))
            for logger in logs:
                logger.log_metrics(row.metrics, epoch)
                logger.save()
            _keep(run, folder, epoch + 1)
        return _finished(run, folder, kept)


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


def _check_loggers(names: Sequence[Logger]) -> None:
    unknown = sorted(set(names) - set(get_args(Logger)))
    if unknown:
        raise TrainingError(f"loggers={unknown}: of {get_args(Logger)}")


def _bar(run: Run, done: int) -> Any:
    each = len(run.batches)
    return tqdm(
        total=run.protocol.epochs * each,
        initial=done * each,
        desc="fit",
        unit="step",
        disable=None if run.fabric.is_global_zero else True,  # None: where there is no terminal
    )


def _trained(run: Run, epoch: int, bar: Any) -> Row:
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
    return Row(metrics, digest)


def _step(run: Run, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """One step of the optimiser; outputs and loss before it."""
    protocol, fabric = run.protocol, run.fabric
    outputs = run.network(x)
    taught = None
    if run.teacher is not None:
        with torch.no_grad(), fabric.autocast():
            taught = run.teacher(x)
    loss = loss_of(protocol, outputs, y, taught, run.data.classes)
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


def _tested(run: Run) -> dict[str, float]:
    found: dict[str, float] = {}
    networks = [("", run.model)] if run.ema is None else [("", run.model), ("ema/", run.ema.module)]
    for prefix, network in networks:
        share_buffers(network, run.fabric)
        for name, batches in run.tests.items():
            with run.fabric.autocast():
                metrics = measured(network, batches, run.protocol, run.place, run.data.classes)
            found.update({f"{prefix}{name}/{key}": value for key, value in metrics.items()})
    return found


def _keep(run: Run, folder: Path | None, done: int) -> None:
    if folder is not None and run.fabric.is_global_zero:
        state = {
            "epoch": done,
            "run": run.identity,
            "network": run.model.state_dict(),
            "optimizer": run.optimizer.state_dict(),
            "scaler": run.fabric.strategy.precision.state_dict(),
            "ema": None if run.ema is None else run.ema.module.state_dict(),
            "rows": run.rows,
        }
        checkpoint.write(folder, state)
    run.fabric.barrier()


def _finished(run: Run, folder: Path | None, kept: Keepsake | None) -> Result:
    if run.ema is not None:
        run.model.load_state_dict(run.ema.module.state_dict())
    share_buffers(run.model, run.fabric)
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
        device=device_name(run.fabric),
        processes=run.fabric.world_size,
        versions=all_versions(),
    )
    if folder is not None and run.fabric.is_global_zero:
        if kept is not None:
            kept.save(run.model, folder / "network")
        replace_file(folder / "result.json", lambda path: path.write_text(result.to_json()))
    run.fabric.barrier()
    return result
