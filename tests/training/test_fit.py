"""fit: learns, repeats itself, shows every network the same, resumes, refuses what does not fit."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lwdna
from lwdna.recipes import Distillation
from lwdna.training import (
    PRESETS,
    Data,
    Machine,
    Pictures,
    evaluate,
    fit,
    open_network,
    read_result,
)
from lwdna.training.metrics import luma, picture_metrics
from lwdna.training.objective import distilled, loss_of
from tests.training.runs import (
    CPU,
    Normed,
    Plain,
    labelled,
    pictures,
    protocol,
    restoration,
    seeded,
)


def states_equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, b.state_dict()[name]) for name, x in a.state_dict().items())


def test_a_network_learns_and_a_run_repeats_itself() -> None:
    first, second = seeded(Normed), seeded(Normed)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    result = fit(first, protocol("epochs=8", "milestones=[6]"), labelled(), machine=CPU)
    assert torch.equal(before, torch.get_rng_state())
    assert result.metrics["test/top1"] > 0.9 and not first.training
    assert [row["lr"] for row in result.epochs] == pytest.approx([0.05] * 6 + [0.005] * 2)
    torch.manual_seed(2)
    again = fit(second, protocol("epochs=8", "milestones=[6]"), labelled(), machine=CPU)
    assert again.epochs == result.epochs and states_equal(first, second)
    other = fit(seeded(Normed), protocol(), labelled(), seed=1, machine=CPU)
    assert other.batches[0] != result.batches[0]


def test_one_epoch_is_what_a_plain_loop_computes() -> None:
    """The oracle: PyTorch's SGD on the batches in the order that the seed gives."""
    from lwdna.training.loading import Batches, training_set

    settings = protocol("epochs=2", "milestones=[1]", "weight_decay=0.01", "clip=0.5")
    data = labelled()
    ours, theirs = seeded(Plain), seeded(Plain)
    fit(ours, settings, data, seed=4, machine=CPU)
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
    batches = Batches(64, 16, seed=4, rank=0, ranks=1)
    dataset = training_set(data.train, settings)  # type: ignore[arg-type]
    for epoch in range(2):
        optimizer.param_groups[0]["lr"] = 0.05 * 0.1**epoch
        batches.set_epoch(epoch)
        for wanted in batches:
            x, y = dataset.__getitems__(wanted)  # type: ignore[attr-defined]
            optimizer.zero_grad()
            F.cross_entropy(theirs(x), y).backward()
            nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
            optimizer.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_data_do_not_depend_on_the_network() -> None:
    """Widths, dropout and batch norm draw random numbers; images and their order do not care."""
    networks = [seeded(Plain), seeded(Plain, 5, width=3), seeded(Plain, drop=0.5), seeded(Normed)]
    found = [fit(net, protocol("epochs=2", "milestones=[1]"), labelled(), machine=CPU).batches
             for net in networks]  # fmt: skip
    assert found[1:] == found[:-1] and len(set(found[0])) == 2
    mixed = protocol("epochs=2", "milestones=[1]", "images.mixup=0.8", "images.cutmix=1")
    assert fit(networks[0], mixed, labelled(), machine=CPU).batches == found[0]


def test_layout_and_compile_are_no_part_of_the_result() -> None:
    settings = protocol("epochs=1", "milestones=[]", "schedule=constant")
    plain, last = seeded(Plain), seeded(Plain)
    fit(plain, settings, labelled(), machine=CPU)
    fit(last, settings, labelled(), machine=Machine("cpu", threads=1, channels_last=True))
    for a, b in zip(plain.parameters(), last.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    assert last.conv2.weight.is_contiguous(memory_format=torch.channels_last)


def test_the_moving_average_is_the_result() -> None:
    net = seeded(Plain)
    settings = protocol("epochs=1", "milestones=[]", "schedule=constant", "ema=0.5", "batch=32")
    result = fit(net, settings, labelled(), machine=CPU)
    steps = seeded(Plain)
    average = copy.deepcopy(steps)
    plain = settings.but(["ema=null"])
    from lwdna.training.loading import Batches, training_set

    batches = Batches(64, 32, seed=0, rank=0, ranks=1)
    dataset = training_set(labelled().train, plain)  # type: ignore[arg-type]
    optimizer = torch.optim.SGD(steps.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    batches.set_epoch(0)
    for wanted in batches:
        x, y = dataset.__getitems__(wanted)  # type: ignore[attr-defined]
        optimizer.zero_grad()
        F.cross_entropy(steps(x), y).backward()
        optimizer.step()
        with torch.no_grad():
            for a, p in zip(average.parameters(), steps.parameters(), strict=True):
                a.lerp_(p, 0.5)
    for a, b in zip(net.parameters(), average.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    tested = evaluate(net, settings, labelled(), machine=CPU)["test"]
    assert tested == pytest.approx({k: result.metrics[f"ema/test/{k}"] for k in tested})
    assert result.metrics["test/loss"] != result.metrics["ema/test/loss"]


def test_distillation_is_the_published_sum() -> None:
    g = torch.Generator().manual_seed(0)
    ours, theirs = (torch.randn(5, 4, generator=g, dtype=torch.float64) for _ in range(2))
    labels = torch.tensor([0, 1, 2, 3, 0])
    p, q = (theirs / 4).softmax(1), (ours / 4).softmax(1)
    divergence = (p * (p / q).log()).sum(1).mean()
    cross = -(ours.softmax(1)[range(5), labels]).log().mean()
    settings = protocol('distillation={"weight": 0.4, "temperature": 4}')
    found = loss_of(settings, ours, labels, theirs)
    torch.testing.assert_close(found, 0.4 * 16 * divergence + 0.6 * cross)
    assert distilled(ours, ours, Distillation(0.4, 4.0)).abs() < 1e-12


def test_a_teacher_is_followed_and_left_as_it_is() -> None:
    teacher = seeded(Normed, 3)
    fit(teacher, protocol("epochs=8", "milestones=[6]"), labelled(), machine=CPU)
    before = copy.deepcopy(teacher)
    settings = protocol(
        'distillation={"weight": 1, "temperature": 2}', "epochs=8", "milestones=[6]"
    )
    wrong = labelled()
    wrong.train.labels.zero_()  # type: ignore[union-attr]
    net = seeded(Normed)
    fit(net, settings, wrong, teacher=teacher, machine=CPU)
    assert evaluate(net, settings, labelled(), machine=CPU)["test"]["top1"] > 0.9
    assert states_equal(teacher, before)


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_precisions(precision: str) -> None:
    net = seeded(Normed)
    settings = protocol(f"precision={precision}", "epochs=8", "milestones=[6]")
    result = fit(net, settings, labelled(), machine=CPU)
    assert result.metrics["test/top1"] > 0.9
    kind = torch.float64 if precision == "64-true" else torch.float32
    assert {p.dtype for p in net.parameters()} == {kind}
    with pytest.raises(lwdna.TrainingError, match="needs a GPU"):
        fit(net, protocol("precision=16-mixed"), labelled(), machine=CPU)


class Upscaler(nn.Module):
    def __init__(self, scale: int = 2) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 3 * scale**2, 3, padding=1)
        self.scale = scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        base = F.interpolate(x, scale_factor=self.scale)
        return base + 255 * F.pixel_shuffle(self.body(x / 255), self.scale)


class Denoiser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(1, 1, 5, padding=2)
        nn.init.dirac_(self.body.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.shape[2] % 4 == x.shape[3] % 4 == 0
        return self.body(x / 255) * 255


def test_pictures_are_enlarged_and_denoised() -> None:
    sharp = Data("p", pictures(4, 32, 32), {"test": pictures(2, 46, 38)})
    net, settings = seeded(Upscaler), restoration("super-resolution", scale=2).but(["lr=0.01"])
    start = evaluate(net, settings, sharp, machine=CPU)["test"]
    result = fit(net, settings.but(["epochs=6"]), sharp, machine=CPU)
    assert result.metrics["test/psnr"] > start["psnr"] + 1
    grey = Data("g", pictures(4, 32, 32, 1), {"test": pictures(2, 46, 38, 1)})
    settings = restoration("denoising", channels=1, sigma=40.0, multiple=4)
    found = fit(seeded(Denoiser), settings.but(["lr=0.01", "epochs=12"]), grey, machine=CPU)
    assert found.metrics["test/psnr"] > 20 * math.log10(255 / 40) + 1
    assert 0 < found.metrics["test/ssim"] < 1


def test_psnr_is_of_luma_without_the_border() -> None:
    settings = restoration("super-resolution", scale=2).patches
    assert settings is not None
    target = torch.full((1, 3, 20, 20), 100.0)
    output = target + 10.2
    output[..., :2, :] = 255  # the border does not count
    found = picture_metrics(output, target, settings)["psnr"]
    error = 10 * (65.481 + 128.553 + 24.966) / 255  # outputs are rounded to 8 bits
    assert float(found) == pytest.approx(20 * math.log10(255 / error), abs=1e-3)
    white = torch.full((1, 3, 1, 1), 255.0)
    assert float(luma(white)) == pytest.approx(235) and float(luma(0 * white)) == 16
    assert picture_metrics(target, target, settings)["psnr"] == 100
    small = torch.zeros(1, 3, 14, 14)
    with pytest.raises(lwdna.TrainingError, match="SSIM needs 11"):
        picture_metrics(small, small, settings)


def test_noise_alone_has_the_psnr_of_its_deviation() -> None:
    settings = restoration("denoising", channels=1, sigma=25.0, size=64)
    middle = Pictures([torch.full((1, 128, 128), 128, dtype=torch.uint8)], 1)
    found = evaluate(nn.Identity(), settings, Data("d", None, {"t": middle}), machine=CPU)
    assert found["t"]["psnr"] == pytest.approx(20 * math.log10(255 / 25), abs=0.1)


def test_what_a_run_leaves_is_enough_to_use_it(tmp_path: Path) -> None:
    settings = protocol("epochs=2", "milestones=[1]", "images.size=16")
    data = open_small(settings)
    baseline = open_network("timm:test_resnet", {"num_classes": 10}, seed=2)
    result = fit(baseline, settings, data, output=tmp_path / "b", machine=CPU,
                 loggers=("csv", "tensorboard"))  # fmt: skip
    assert read_result(tmp_path / "b") == result and result.network.startswith("timm:test_resnet")
    again = open_network(str(tmp_path / "b"))
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(again(x), baseline(x)) and not again.training
    assert result.cost["params"] == sum(p.numel() for p in baseline.parameters())  # type: ignore[index]
    assert list((tmp_path / "b/logs/tensorboard").glob("events*"))
    rows = (tmp_path / "b/logs/csv/metrics.csv").read_text().splitlines()
    assert len(rows) == 3 and "test/top5" in rows[0]

    batch = torch.rand(8, 3, 16, 16), torch.arange(8)
    small = lwdna.shrink(open_network("timm:test_resnet", {"num_classes": 10}), 0.5, data=batch)
    shrunk = fit(small, settings, data, output=tmp_path / "s", machine=CPU)
    assert shrunk.batches == result.batches
    assert shrunk.cost["macs"] < 0.51 * result.cost["macs"]  # type: ignore[index]
    assert torch.equal(open_network(str(tmp_path / "s"))(x), small(x))
    fresh = [open_network(str(tmp_path / "s/network/dna.json"), seed=n) for n in (0, 0, 1)]
    assert states_equal(fresh[0], fresh[1]) and not states_equal(fresh[0], fresh[2])
    assert fresh[0].meta["lwdna"].groups == small.meta["lwdna"].groups
    with pytest.raises(lwdna.TrainingError, match=r"images\.size was 16, is 8"):
        fit(baseline, protocol(), data, output=tmp_path / "b", resume=True, machine=CPU)


def test_a_seed_fixes_the_weights_of_a_network_that_is_named() -> None:
    before = torch.get_rng_state()
    nets = [open_network("timm:test_resnet", {"num_classes": 3}, seed=n) for n in (4, 4, 5)]
    assert torch.equal(before, torch.get_rng_state())
    assert states_equal(nets[0], nets[1]) and not states_equal(nets[0], nets[2])


def open_small(settings):
    from lwdna.training import open_data

    return open_data("fake:32", settings)


def test_what_does_not_fit_is_refused_before_training(tmp_path: Path) -> None:
    data, taught = labelled(), PRESETS["tiny-imagenet-mobilenet"].but([f"images.size={8}"])
    cases = [
        ("needs a teacher", lambda: fit(seeded(Plain), taught, data, machine=CPU)),
        ("a teacher, and", lambda: fit(seeded(Plain), protocol(), data, teacher=Plain())),
        ("no training set", lambda: fit(Plain(), protocol(), Data("d", None))),
        ("no test set", lambda: evaluate(Plain(), protocol(), Data("d", None))),
        ("device='tpu9'", lambda: fit(Plain(), protocol(), data, machine=Machine("tpu9"))),
        ("returns a tuple", lambda: fit(Pair(), protocol(), data, machine=CPU)),
        ("4 outputs, and the data 5", lambda: fit(Plain(), protocol(), replace(data, classes=5))),
        (
            "4 outputs, and the data 3",
            lambda: evaluate(Plain(), protocol(), replace(data, classes=3)),
        ),
        ("loggers=", lambda: fit(Plain(), protocol(), data, loggers=["wandb"])),  # type: ignore[list-item]
        ("test_every=0", lambda: fit(Plain(), protocol(), data, test_every=0)),
        ("take a smaller lr", lambda: fit(Plain(), protocol("lr=1e30"), data, machine=CPU)),
    ]
    for said, run in cases:
        with pytest.raises(lwdna.TrainingError, match=said):
            run()
    with pytest.raises(lwdna.SourceError, match=r"lwdna\.create"):
        fit(Plain(), protocol(), data, output=tmp_path / "x", machine=CPU)
    assert not (tmp_path / "x").exists()


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = Plain()

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.net(x)
        return y, y


class LateNan(Plain):
    """Finite outputs for the first batch alone."""

    calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return super().forward(x) + (float("nan") if self.calls > 1 else 0.0)


def test_no_metric_is_the_mean_of_what_is_finite() -> None:
    with pytest.raises(lwdna.TrainingError, match="loss of a test set is nan"):
        evaluate(LateNan(), protocol(), labelled(), machine=CPU)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_result_that_could_not_be_read_back_is_none(value: float) -> None:
    result = fit(
        seeded(Plain),
        protocol("epochs=1", "milestones=[]", "schedule=constant"),
        labelled(),
        machine=CPU,
    )
    epochs = (*result.epochs, {**result.metrics, "test/top1": value})
    with pytest.raises(lwdna.TrainingError, match=f"test/top1 of epoch 1 is {value}"):
        replace(result, epochs=epochs)


def test_measuring_leaves_every_modules_mode() -> None:
    net = seeded(Normed)
    net.drop.eval()
    evaluate(net, protocol(), labelled(), machine=CPU)
    assert net.training and net.norm.training and not net.drop.training


def test_only_some_epochs_are_tested_and_training_does_not_notice() -> None:
    often, seldom = seeded(Normed), seeded(Normed)
    a = fit(often, protocol(), labelled(), machine=CPU)
    b = fit(seldom, protocol(), labelled(), machine=CPU, test_every=3)
    assert states_equal(often, seldom) and a.metrics == b.metrics
    assert ["test/top1" in row for row in b.epochs] == [False, False, True, True]


def test_a_network_that_is_not_kept_needs_no_source(tmp_path: Path) -> None:
    settings = protocol("epochs=1", "milestones=[]", "schedule=constant")
    with pytest.raises(lwdna.SourceError):
        fit(seeded(Plain), settings, labelled(), output=tmp_path / "kept", machine=CPU)
    folder = tmp_path / "figures"
    first, again = (
        fit(seeded(Plain), settings, labelled(), output=folder, resume=True, machine=CPU,
            loggers=(), save_network=False)
        for _ in range(2)
    )  # fmt: skip
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint.pt", "result.json"]
    assert first == again == read_result(folder) and first.cost is None
