"""Runs: equal budgets and batches for all methods, and no run is done twice or lost."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import lwdna
from benchmarks.compare import __main__ as command
from benchmarks.compare import sweep as sweeping
from benchmarks.compare.data import open_choice
from benchmarks.compare.peers import arguments
from benchmarks.compare.plan import plan
from benchmarks.compare.run import Run, execute, made, scoring_batches
from benchmarks.compare.summary import summarise
from benchmarks.compare.sweep import Place, sweep
from benchmarks.compare.table import Method, Table
from benchmarks.restoration import edsr
from lwdna.training import Machine, open_network
from lwdna.training.images import TensorSet
from tests.compare.made_up import IMAGES, TABLE, VALIDATION, fashion, read, table

CPU = Machine(device="cpu", threads=1)
PEERS = """
[[methods]]
name = "group taylor"
kind = "torch-pruning"
criterion = "group-taylor"

[[methods]]
name = "group norm"
kind = "torch-pruning"
criterion = "group-norm"
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    fashion(folder, "train", 200)
    return folder  # without test images: validation runs do not need them


@pytest.fixture(scope="module")
def swept(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Table, Path]:
    """All runs of a table."""
    pytest.importorskip("torch_pruning")
    output = tmp_path_factory.mktemp("swept")
    found = table(output, TABLE + PEERS)
    assert sweep(plan([found], "validation"), Place(data, output, CPU), 1) == 0
    return found, output


def test_every_run_has_a_record(swept: tuple[Table, Path]) -> None:
    found, output = swept
    runs = plan([found], "validation")
    records = read(output / "runs")
    assert len(records) == len(runs) == 3 * 7
    assert not list((output / "unfinished").iterdir())
    for run in runs:
        record = run.found(output / "runs")
        assert record is not None and record["key"] == run.key
        assert len(record["curves"]["validation/top1"]) == 2
        assert record["environment"]["versions"]["torch"] == torch.__version__.partition("+")[0]


def test_no_method_exceeds_the_budget(swept: tuple[Table, Path]) -> None:
    for record in read(swept[1] / "runs"):
        before, after = record["cost"]["before"], record["cost"]["after"]
        share = 1.0 if record["method"] == "baseline" else 0.8
        used = [after[metric] / (share * before[metric]) for metric in ("macs", "params")]
        assert max(used) <= 1, record["method"]
        assert max(used) > 0.9, record["method"]  # and none gives much of it away


def test_all_methods_see_the_same_batches(swept: tuple[Table, Path]) -> None:
    seen: dict[int, set[tuple[str, ...]]] = {}
    for record in read(swept[1] / "runs"):
        seen.setdefault(record["key"]["seed"], set()).add(tuple(record["batches"]))
    assert {len(found) for found in seen.values()} == {1}
    assert len(set.union(*seen.values())) == 3  # one for each seed


def test_draws_differ_and_seeds_repeat_them(swept: tuple[Table, Path]) -> None:
    _, output = swept
    random = [r["widths"] for r in read(output / "runs") if r["method"] == "random"]
    uniform = [r["widths"] for r in read(output / "runs") if r["method"] == "uniform"]
    assert len({json.dumps(w) for w in random}) >= 5  # of six, two may be alike
    assert len({json.dumps(w) for w in uniform}) == 1
    (group,) = {tuple(w["0"]) for w in uniform}
    assert group[0] == 8 and 0.8**0.5 - 0.13 < group[1] / 8 < 1


def test_a_summary_has_every_method_and_the_differences(swept: tuple[Table, Path]) -> None:
    found, output = swept
    summary = summarise([found], "validation", output / "runs")
    rows = summary["pairs"]["small"]["budgets"]["0.8"]
    assert list(rows) == [method.name for method in found.methods]
    by_hand: dict[str, dict[int, list[float]]] = {}
    for record in read(output / "runs"):
        seeds = by_hand.setdefault(record["method"], {})
        top1 = record["curves"]["validation/top1"][-1]
        seeds.setdefault(record["key"]["seed"], []).append(100 * top1)
    for name, row in rows.items():
        means = {seed: sum(draws) / len(draws) for seed, draws in by_hand[name].items()}
        assert row["score"]["mean"] == pytest.approx(sum(means.values()) / 3)
        for reference, difference in row["against"].items():
            other = by_hand[reference]
            each = [means[s] - sum(other[s]) / len(other[s]) for s in means]
            assert difference["mean"] == pytest.approx(sum(each) / 3)
    assert rows["default"]["macs"] <= 0.8 and rows["baseline"]["macs"] == 1


def test_runs_that_saw_other_batches_are_not_compared(
    swept: tuple[Table, Path], tmp_path: Path
) -> None:
    found, output = swept
    shutil.copytree(output / "runs", tmp_path / "runs")
    path = next((tmp_path / "runs").glob("small-default-0.8-s1-*.json"))
    record = json.loads(path.read_text())
    record["batches"][1] = "0" * 16
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match="seed 1: 'default' saw other batches"):
        summarise([found], "validation", tmp_path / "runs")


def without_times(record: dict[str, Any]) -> dict[str, Any]:
    environment = {"date", "load_average_before", "commit"}
    kept = {k: v for k, v in record["environment"].items() if k not in environment}
    return {**record, "environment": kept, "seconds": None}


@pytest.mark.parametrize("method", [0, 3])
def test_a_stopped_run_goes_on_and_leaves_the_same_record(
    method: int,
    swept: tuple[Table, Path],
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found, output = swept
    run = Run(found.pairs[0], found.methods[method], 0.8 if method else None, 1, 0, "validation")
    whole = TensorSet.__getitems__

    def stopped(self: TensorSet, draws: Any) -> Any:
        if draws[0].epoch == 1 and self.training:
            raise KeyboardInterrupt
        return whole(self, draws)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(TensorSet, "__getitems__", stopped)
        execute(run, data, tmp_path, CPU)
    assert not (tmp_path / "runs").exists() and (tmp_path / "unfinished" / run.hash).is_dir()
    trained = []
    monkeypatch.setattr(
        TensorSet, "__getitems__",
        lambda self, draws: trained.append(draws[0].epoch) or whole(self, draws),
    )  # fmt: skip
    record = execute(run, data, tmp_path, CPU)
    assert without_times(record) == without_times(run.found(output / "runs") or {})
    assert read(tmp_path / "runs") == [json.loads(json.dumps(record))]
    assert trained.count(1) > 0 and not list((tmp_path / "unfinished").iterdir())


def test_what_is_done_is_not_done_again_whatever_it_is_called(
    swept: tuple[Table, Path], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, output = swept
    monkeypatch.setattr(sweeping, "execute", pytest.fail)
    place = Place(data, output, CPU)
    assert sweep(plan([found], "validation"), place, 1) == 0
    methods = tuple(replace(m, name=f"{m.name}!") for m in found.methods)
    renamed = replace(found, name="other", methods=methods, references=("baseline!",))
    assert sweep(plan([renamed], "validation"), place, 1) == 0


def test_a_run_that_fails_stops_no_other(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = table(tmp_path)
    bad = Method("too small", budget=0.01, shrink={"criterion": "uniform"})
    runs = [
        Run(found.pairs[0], method, budget, 0, 0, "validation")
        for method, budget in ((bad, 0.01), (found.methods[0], None))
    ]
    assert sweep(runs, Place(data, tmp_path, CPU), 1) == 1
    assert "FAILED" in capsys.readouterr().out
    assert [record["method"] for record in read(tmp_path / "runs")] == ["baseline"]


def test_a_time_limit_stops_within_a_run(data: Path, tmp_path: Path) -> None:
    found = table(tmp_path, TABLE.replace("epochs=2", "epochs=5000"))
    runs = plan([found], "validation")[:2]
    started = sweeping.time.time()
    place = Place(data, tmp_path, CPU, until=started + 3)
    assert sweep(runs, place, 1) == 0
    assert sweeping.time.time() - started < 10
    assert not (tmp_path / "runs").exists()
    assert (tmp_path / "unfinished" / runs[0].hash / "checkpoint.pt").exists()


def test_channels_are_scored_on_images_to_train_on(data: Path, tmp_path: Path) -> None:
    pair = table(tmp_path).pairs[0]
    protocol = pair.protocol.but(["images.crop=whole", "images.flip=0"])
    images = open_choice(pair.data, data, "validation", channels=3)
    size = IMAGES - VALIDATION
    ((x, _),) = scoring_batches(images, protocol, 5, size, 1)
    drawn = (x * 0.5 + 0.5).mul(255).round().byte()
    known = {image.numpy().tobytes() for image in images.train.images}  # type: ignore[union-attr]
    assert {image.numpy().tobytes() for image in drawn} == known
    again, other = (scoring_batches(images, protocol, seed, 16, 1)[0] for seed in (5, 6))
    assert torch.equal(again[0], x[:16]) and not torch.equal(other[0], again[0])
    with pytest.raises(lwdna.TrainingError, match="5 batches of 16 images"):
        scoring_batches(images, protocol, 5, 16, 5)


def test_the_default_is_a_plain_call_of_shrink(
    swept: tuple[Table, Path], data: Path, tmp_path: Path
) -> None:
    found, output = swept
    pair = found.pairs[0]
    images = open_choice(pair.data, data, "validation", channels=3)
    model = open_network(pair.network, pair.arguments, seed=2)
    batches = scoring_batches(images, pair.protocol, 2, pair.protocol.batch, 2)
    net = lwdna.shrink(model, lwdna.Budget(macs=0.8, params=0.8), data=batches, seed=2)
    run = Run(pair, found.methods[3], 0.8, 2, 0, "validation")
    own, told = made(run, model, images, pair.protocol, "cpu")
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, own.state_dict()[name]), name
    record = run.found(output / "runs")
    assert record is not None and record["widths"] == told["widths"]


def test_torch_pruning_keeps_its_widths(data: Path, tmp_path: Path) -> None:
    """Against the shapes that it leaves itself."""
    tp = pytest.importorskip("torch_pruning")
    images = [(torch.randn(4, 3, 8, 8), torch.randn(4, 3, 16, 16))]
    model = edsr(2, 8, scale=2)
    budget = lwdna.Budget(macs=0.7, params=0.7)

    def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).abs().mean()

    options = arguments(
        model, budget, images, loss_fn, criterion="group-norm", ignored=("upsample.0",), seed=0
    )
    net = lwdna.shrink(model, data=images, loss_fn=loss_fn, progress=False, **options)
    pruner = tp.pruner.BasePruner(
        model,
        images[0][0][:1],
        importance=tp.importance.GroupMagnitudeImportance(),
        global_pruning=True,
        pruning_ratio=1.0,
        iterative_steps=400,
        ignored_layers=[model.tail, model.upsample[0]],
    )
    image = images[0][0][:1]
    whole = lwdna.analyse(lwdna.capture(model, image), image).cost()
    for _ in range(400):
        cost = lwdna.analyse(lwdna.capture(model, image), image).cost()
        if cost.macs <= 0.7 * whole.macs and cost.params <= 0.7 * whole.params:
            break
        pruner.step()
    theirs = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert {name: tuple(p.shape) for name, p in net.named_parameters()} == theirs
    assert net(images[0][0]).shape == (4, 3, 16, 16)


def test_without_being_told_of_a_pixel_shuffle_torch_pruning_is_refused() -> None:
    pytest.importorskip("torch_pruning")
    images = [(torch.randn(4, 3, 8, 8), torch.randn(4, 3, 16, 16))]
    budget = lwdna.Budget(macs=0.5, params=0.5)
    with pytest.raises(Exception, match=r"ignored|size|shape|index"):
        arguments(
            edsr(1, 8, scale=2), budget, images, partial(torch.nn.functional.l1_loss),
            criterion="group-norm", seed=0,
        )  # fmt: skip


def test_the_command_end_to_end(
    swept: tuple[Table, Path], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, output = swept
    shutil.copytree(output / "runs", tmp_path / "runs")
    options = [str(output / "table.toml"), "--data", str(data), "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["compare", *options])
    assert command.main() == 0
    summary = json.loads((tmp_path / "made_up_validation.json").read_text())
    assert summary["split"] == "validation" and len(summary["bars"]) == 5
    text = (tmp_path / "made_up_validation.md").read_text()
    assert "Measured on the validation images" in text and "| default" in text
    monkeypatch.setattr(
        sys, "argv", ["compare", *options, "--split", "test", "--limit-minutes", "0"]
    )
    assert command.main() == 1  # no bar is met by runs that are not there


@pytest.mark.slow
def test_two_processes_share_the_runs(
    swept: tuple[Table, Path], data: Path, tmp_path: Path
) -> None:
    found, output = swept
    runs = plan([found], "validation", ["baseline", "uniform"])
    assert sweep(runs, Place(data, tmp_path, CPU), 2) == 0
    for run in runs:
        both = (run.found(folder / "runs") or {} for folder in (tmp_path, output))
        one, other = map(without_times, both)
        assert one == other
