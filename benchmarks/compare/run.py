"""One run: a network made smaller by one method, trained from one seed, and what came of it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import Any

from torch import Tensor, nn

import lwdna
from benchmarks.compare import peers
from benchmarks.compare.data import Split, open_choice
from benchmarks.compare.table import SEEDS, Method, Pair
from benchmarks.record import environment
from lwdna.cost import Cost
from lwdna.errors import TrainingError
from lwdna.files import replace_file
from lwdna.strict_json import digest
from lwdna.training import Data, Machine, Protocol, Result, fit, open_network
from lwdna.training.loading import Batches, load, training_set
from lwdna.training.machine import threads
from lwdna.training.objective import task_loss

FORMAT = 1
_SHOWN = 12  # digits of the hash in a file's name


@dataclass(frozen=True, eq=False)
class Run:
    """What is trained, and how.

    Attributes:
        pair: network, data and protocol.
        method: how the network is made smaller.
        budget: share of MACs and of params; None for a baseline.
        seed: of initial weights, order of images and noise.
        draw: number of the draw, from 0: of what is random in the method.
        split: what is measured on.
    """

    pair: Pair
    method: Method
    budget: float | None
    seed: int
    draw: int
    split: Split

    @cached_property
    def key(self) -> dict[str, Any]:
        """All that decides what a run comes to, in JSON's types; names of tables are none of it."""
        pair = self.pair
        protocol = asdict(pair.protocol)
        for told in ("name", "source"):
            del protocol[told]
        found: dict[str, Any] = {
            "format": FORMAT,
            "network": pair.network,
            "arguments": pair.arguments,
            "data": asdict(pair.data),
            "protocol": protocol,
            "test_every": self.test_every,
            "split": self.split,
            "method": self.method.settings,
            "budget": self.budget,
            "seed": self.seed,
            "draw": self.draw,
        }
        if self.method.kind == "torch-pruning":
            found["ignored"] = pair.ignored
        if pair.teacher is not None:
            found["teacher"] = pair.teacher
        plain: dict[str, Any] = json.loads(json.dumps(found))
        return plain

    @property
    def test_every(self) -> int:
        """Epochs between measurements. On test data there is one, at the end."""
        return self.pair.test_every if self.split == "validation" else self.pair.protocol.epochs

    @cached_property
    def hash(self) -> str:
        """Of the key."""
        return digest(self.key)[:_SHOWN]

    @property
    def name(self) -> str:
        """Of the record: what it is about, and the hash."""
        budget = "" if self.budget is None else f"-{self.budget:g}"
        draw = f"d{self.draw}" if self.method.draws > 1 else ""
        about = f"{self.pair.name}-{self.method.name}{budget}-s{self.seed}{draw}"
        return f"{re.sub(r'[^A-Za-z0-9.]+', '-', about)}-{self.hash}"

    def found(self, folder: Path) -> dict[str, Any] | None:
        """The record of this run, whatever it was called when it was made; None without one."""
        path = next(folder.glob(f"*-{self.hash}.json"), None)
        if path is None:
            return None
        record: dict[str, Any] = json.loads(path.read_text())
        return record


def execute(run: Run, data: Path, output: Path, machine: Machine) -> dict[str, Any]:
    """Make, train and measure the network of a run, and write the record.

    Killed and started again, it goes on from the last epoch, and comes to the same record.

    Args:
        run: what to do.
        data: folder with the data.
        output: gets ``runs/NAME.json`` in the end, and ``unfinished/`` until then; has
            ``teachers/``, if there are any.
        machine: what to compute on.

    Returns:
        The record.

    Raises:
        LwdnaError, ValueError: the budget is out of the method's reach, or training diverges.
    """
    protocol, unfinished = run.pair.protocol, output / "unfinished" / run.hash
    images = open_choice(
        run.pair.data, data, run.split, channels=run.pair.channels, device=machine.device
    )
    started = perf_counter()
    with threads(machine):
        model = open_network(run.pair.network, run.pair.arguments, seed=run.seed)
        net, told = made(run, model, images, protocol, machine.device)
    spent = perf_counter() - started
    teacher = None
    if run.pair.teacher is not None:
        teacher = open_network(str(output / "teachers" / run.pair.teacher), trust=["benchmarks"])
    result = fit(
        net,
        protocol,
        images,
        seed=run.seed,
        output=unfinished,
        resume=True,
        teacher=teacher,
        machine=machine,
        loggers=(),
        test_every=run.test_every,
        save_network=False,
    )
    here = environment()
    record = {
        "pair": run.pair.name,
        "method": run.method.name,
        "key": run.key,
        **told,
        "curves": curves(result),
        "batches": list(result.batches),
        "seconds": {
            "shrink": round(spent, 2),
            "epochs": [round(s, 3) for s in result.seconds],
        },
        "environment": {
            **here,
            "device": result.device,
            "versions": {**result.versions, **here["versions"]},
        },
        "machine": asdict(machine),
    }
    path = output / "runs" / f"{run.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, lambda file: file.write_text(as_text(record)))
    shutil.rmtree(unfinished)
    return record


def made(
    run: Run, model: nn.Module, images: Data, protocol: Protocol, device: str
) -> tuple[nn.Module, dict[str, Any]]:
    """The network to train, and what is known of it: costs, widths, the arguments that made it.

    Args:
        run: with the method and the budget.
        model: the baseline.
        images: channels are scored on batches of the training set.
        protocol: prepares the batches, and names the loss.
        device: where channels are scored.

    Raises:
        LwdnaError, ValueError: the budget is out of the method's reach.
    """
    method, seed = run.method, run.seed + SEEDS * run.draw
    options = method.arguments if method.kind == "shrink" else {}
    count = (options["scoring"] if options else lwdna.Scoring()).batches
    batches = scoring_batches(images, protocol, seed, method.batch or protocol.batch, count)
    if method.kind == "baseline":
        image = batches[0][0][:1]
        cost = lwdna.analyse(lwdna.capture(model, image), image).cost()
        return model, _told(cost, cost, {})
    assert run.budget is not None
    loss_fn = partial(task_loss, protocol)
    options = {"budget": lwdna.Budget(macs=run.budget, params=run.budget), **options}
    if method.kind == "torch-pruning":
        options = peers.arguments(
            model, options["budget"], batches, loss_fn,
            criterion=method.shrink["criterion"], ignored=run.pair.ignored, seed=seed,
        )  # fmt: skip
    net = lwdna.shrink(
        model, data=batches, loss_fn=loss_fn, seed=seed, device=device, progress=False, **options
    )
    dna: lwdna.Dna = net.meta["lwdna"]  # type: ignore[assignment,index,union-attr]
    assert dna.after.params == sum(p.numel() for p in net.parameters())
    widths = {g.name: [g.baseline, g.width] for g in dna.groups if g.prunable}
    return net, _told(dna.before, dna.after, widths, weights=dna.settings["weights"], note=dna.note)


def scoring_batches(
    images: Data, protocol: Protocol, seed: int, size: int, count: int
) -> list[tuple[Tensor, Tensor]]:
    """The first batches that training with this seed and batch size would see, on the CPU.

    Args:
        images: the training set counts, and nothing else.
        protocol: prepares the images.
        seed: of order and changes.
        size: images in a batch.
        count: number of batches.

    Raises:
        TrainingError: there are fewer images than so many batches have.
    """
    assert images.train is not None
    dataset = training_set(images.train, protocol)
    order = Batches(len(dataset), size, seed=seed, rank=0, ranks=1)  # type: ignore[arg-type]
    if len(order) < count:
        raise TrainingError(f"{count} batches of {size} images to score on, of {images.name}")
    return [(x.cpu(), y.cpu()) for x, y in islice(load(dataset, order, 0), count)]


def curves(result: Result) -> dict[str, list[float | None]]:
    """Metrics by epoch; None where an epoch was not measured."""
    names = dict.fromkeys(name for row in result.epochs for name in row)
    return {
        name: [round(row[name], 6) if name in row else None for row in result.epochs]
        for name in names
    }


def as_text(record: Mapping[str, Any]) -> str:
    """JSON with a line for each entry."""
    lines = (f"{json.dumps(key)}: {json.dumps(value)}" for key, value in record.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _told(before: Cost, after: Cost, widths: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    cost = {"before": before.as_dict(), "after": after.as_dict()}
    return {"cost": cost, "widths": dict(widths), **more}
