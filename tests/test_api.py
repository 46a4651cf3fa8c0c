"""``lwdna.shrink`` as a user meets it: results, determinism, and every bad input."""

from __future__ import annotations

import copy
import io
import socket
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

import lwdna
from lwdna.fx_passes import verify


class Net(nn.Module):
    """A residual network with a side branch, small enough for every test."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        self.conv1 = nn.Conv2d(16, 24, 3, padding=1)
        self.conv2 = nn.Conv2d(24, 16, 3, padding=1)
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.stem(x)))
        x = x + self.conv2(F.relu(self.conv1(x)))
        return self.fc(x.mean((2, 3)))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


def batch(n: int = 8, channels: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(n, channels, 12, 12, generator=generator)
    return images, torch.arange(n) % 10


def test_result_knows_what_it_is(net: Net) -> None:
    small = lwdna.shrink(net, 0.6, data=batch(), seed=3)
    dna = small.meta["lwdna"]
    assert isinstance(small, torch.fx.GraphModule)
    assert list(small.state_dict()) == list(net.state_dict())
    assert (dna.seed, dna.criterion, dna.widen, dna.model) == (3, "latent-grad", 2.0, "Net")
    assert dna.limits == {"macs": int(dna.before.macs * 0.6)}
    assert dna.used["macs"] == dna.after.macs / dna.limits["macs"] <= 1
    assert dna.used["macs"] >= 0.995 or dna.note
    assert dna.versions["torch"] == torch.__version__.split("+")[0]
    measured = verify.measured_cost(small, batch()[0])
    assert measured == (dna.after.macs, dna.after.params)
    widths = {g.name: g.width for g in dna.groups}
    assert widths["stem"] == small.stem.out_channels == small.bn.num_features
    assert widths["conv1"] == small.conv1.out_channels == small.conv2.in_channels
    assert lwdna.Dna.from_json(dna.to_json()) == dna


@pytest.mark.parametrize("criterion", ["latent-grad", "magnitude", "random", "uniform"])
def test_same_seed_same_network_and_the_model_is_untouched(net: Net, criterion: str) -> None:
    net(batch()[0]).sum().backward()  # the caller may have gradients and statistics
    net.conv1.eval()
    with verify.untouched(net):
        first, again, other = (
            lwdna.shrink(net, 0.7, data=batch(), criterion=criterion, seed=s) for s in (0, 0, 1)
        )
    for key, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[key])
    if criterion != "uniform":
        kept = [[g.kept for g in n.meta["lwdna"].groups] for n in (first, other)]
        assert kept[0] != kept[1]
    assert not first.conv1.training
    assert first.conv2.training


def test_uniform_scales_every_group_alike() -> None:
    torch.manual_seed(0)
    model = timm.create_model("resnet18")
    net = lwdna.shrink(model, 0.5, widen=1.0, criterion="uniform")
    ratios = [g.width / g.baseline for g in net.meta["lwdna"].groups if g.prunable]
    assert max(ratios) - min(ratios) < 0.02


def test_budgets_in_every_metric(net: Net) -> None:
    baseline = lwdna.analyse(lwdna.capture(net, batch()[0]), batch()[0]).cost()
    budget = lwdna.Budget(macs=0.8, params=0.7, flops_paper=int(baseline.flops_paper * 0.9))
    after = lwdna.shrink(net, budget, data=batch()).meta["lwdna"].after
    assert after.macs <= 0.8 * baseline.macs
    assert after.params <= 0.7 * baseline.params
    assert after.flops_paper <= 0.9 * baseline.flops_paper


def test_divisor_and_floors_hold(net: Net) -> None:
    floors = lwdna.Floors(fraction=0.25, absolute=4, classifier=0.5)
    dna = lwdna.shrink(net, 0.8, data=batch(), constraints=lwdna.Constraints(floors, 4)).meta[
        "lwdna"
    ]
    for g in dna.groups:
        if g.prunable:
            assert g.width % 4 == 0
            assert g.width >= g.widened // 4
            assert g.width >= g.widened // 2 or g.name != "stem"  # the stem feeds the classifier


def test_a_full_budget_without_widening_is_the_identity(net: Net) -> None:
    same = lwdna.shrink(net, 1.0, widen=1.0, data=batch(), weights="inherit")
    verify.identity(net, same, batch()[0])


def test_a_result_can_be_shrunk_again(net: Net) -> None:
    once = lwdna.shrink(net, 0.8, data=batch(), widen=1.0)
    twice = lwdna.shrink(once, 0.8, data=batch(), widen=1.0)
    assert twice.meta["lwdna"].before == once.meta["lwdna"].after
    assert twice.meta["lwdna"].after.macs <= 0.64 * once.meta["lwdna"].before.macs


def test_any_source_of_batches_is_taken_as_it_comes(net: Net) -> None:
    drawn: list[int] = []

    def stream() -> Iterator[tuple[Tensor, Tensor]]:
        for k in range(100):
            drawn.append(k)
            yield batch()

    dataset = torch.utils.data.TensorDataset(*batch(8))
    loader = torch.utils.data.DataLoader(dataset, batch_size=4)
    for data in (batch(), [batch(), batch()], stream(), loader):
        lwdna.shrink(net, 0.7, data=data, scoring=lwdna.Scoring(batches=2))
    assert drawn == [0, 1]


def test_own_criterion_and_own_loss(net: Net) -> None:
    def first_units_first(context: lwdna.ScoringContext) -> Any:
        return -np.arange(context.graph.units, dtype=float)

    dna = lwdna.shrink(net, 0.7, widen=1.0, criterion=first_units_first).meta["lwdna"]
    assert dna.criterion == "first_units_first"
    assert all(g.kept == tuple(range(g.width)) for g in dna.groups)
    regression = (batch()[0], torch.randn(8, 10))
    lwdna.shrink(net, 0.7, data=regression, loss_fn=F.mse_loss)


def test_without_data_noise_is_scored_with_a_warning(net: Net) -> None:
    with pytest.warns(UserWarning, match="synthetic noise"):
        lwdna.shrink(net, 0.7, example_inputs=batch()[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lwdna.shrink(net, 0.7, example_inputs=batch()[0], criterion="magnitude")


def test_segmentation_without_data() -> None:
    model = torchvision.models.segmentation.lraspp_mobilenet_v3_large(
        weights=None, weights_backbone=None
    )
    with pytest.warns(UserWarning, match="synthetic noise"):
        net = lwdna.shrink(model, 0.8, widen=1.0, example_inputs=torch.empty(2, 3, 64, 64))
    assert net.eval()(torch.randn(1, 3, 64, 64))["out"].shape == (1, 21, 64, 64)


def test_frozen_parameters_may_be_pruned_and_stay_frozen(net: Net) -> None:
    net.conv1.requires_grad_(False)
    small = lwdna.shrink(net, 0.5, data=batch(), widen=1.0)
    assert small.conv1.out_channels < 24
    assert not small.conv1.weight.requires_grad
    assert small.conv2.weight.requires_grad


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = (nn.Conv2d(i, 16, 3, padding=1) for i in (3, 16, 16))
        self.b.weight = self.a.weight
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(F.relu(self.a(F.relu(self.stem(x))))).mean((2, 3)))


def test_tied_weights_stay_tied_and_count_once() -> None:
    torch.manual_seed(0)
    model = Tied()
    small = lwdna.shrink(model, 0.8, data=batch())
    assert small.a.weight is small.b.weight
    assert small.meta["lwdna"].after.params == sum(p.numel() for p in small.parameters())
    verify.verify(model, batch()[0])


def test_explain_prints_what_it_returns(net: Net, capsys: pytest.CaptureFixture[str]) -> None:
    explanation = lwdna.explain(net, batch()[0])
    assert capsys.readouterr().out == f"{explanation}\n"
    rows = {row.group: row for row in explanation.rows}
    assert rows["stem"].prunable
    assert rows["stem"].width == 16
    assert "conv2.weight[0]" in rows["stem"].lives
    assert "network output" in rows["fc"].why[0]
    assert "network input" in rows["stem.weight[1]"].why[0]
    # without the residual stage nothing but the biases of conv1 and fc and fc's outputs remain
    assert rows["stem"].macs == 1.0


@pytest.mark.parametrize("size", [24, 40])
def test_print_reads_like_the_original(size: int) -> None:
    model = torchvision.models.resnet18(weights=None)
    net = lwdna.shrink(
        model, 0.9, widen=1.0, criterion="random", example_inputs=torch.empty(2, 3, size, size)
    )
    text = repr(copy.deepcopy(net))
    assert text == repr(net)
    assert text.startswith("ResNet(")
    assert "(layer1): Sequential(" in text
    assert "(0): BasicBlock(" in text
    assert "(fc): Linear(" in text


class OnValues(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if y.mean() > 0:  # the line that the error quotes
            y = y * 2
        return y.mean((2, 3))


class Elsewhere(nn.Parameter):
    """Says that it is on a GPU, wherever the tests run."""

    device = property(lambda self: torch.device("cuda:1"))  # type: ignore[assignment]


class TwoDevices(nn.Module):
    def __init__(self, second: str = "cpu") -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 10, device=second)
        if second == "cpu":
            self.b.weight = Elsewhere(self.b.weight.data)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x))


def nan_batch() -> tuple[Tensor, Tensor]:
    images, labels = batch()
    images[3, 1, 2, 2] = float("nan")
    return images, labels


BAD = {
    "zero budget": (Net, {"budget": 0.0}, ValueError, "positive"),
    "negative budget": (Net, {"budget": -0.5}, ValueError, "positive"),
    "unreadable budget": (Net, {"budget": "half"}, ValueError, "not a limit"),
    "budget above what widening reaches": (
        Net,
        {"budget": 9.0},
        lwdna.BudgetError,
        r"above what this network reaches: .* \(900.0%\) macs wanted",
    ),
    "budget above 1 without widening": (
        Net,
        {"budget": 1.5, "widen": 1.0},
        lwdna.BudgetError,
        "Widen it more",
    ),
    "unattainable budget": (Net, {"budget": 0.01}, lwdna.BudgetError, r"below the least .* floors"),
    "shrinking by widening": (Net, {"widen": 0.5}, ValueError, "factor >= 1"),
    "widening nothing": (Net, {"widen": {"nowhere.*": 2.0}}, ValueError, "matches no group"),
    "unknown criterion": (Net, {"criterion": "best"}, ValueError, "latent-grad"),
    "unknown policy": (Net, {"policy": "best"}, ValueError, "inner"),
    "bad constraints": (Net, {"constraints": 8}, TypeError, r"lwdna.Constraints\(divisor=8"),
    "control flow on values": (OnValues, {}, lwdna.CaptureError, r"if y\.mean\(\) > 0"),
    "wrong channels": (Net, {"data": batch(channels=4)}, lwdna.ScoringError, r"\(8, 4, 12, 12\)"),
    "wrong rank": (
        Net,
        {"data": (torch.randn(8, 3), torch.zeros(8).long())},
        lwdna.ScoringError,
        r"\(8, 3\)",
    ),
    "wrong targets": (
        Net,
        {"data": (batch()[0], torch.full((8,), 99))},
        lwdna.ScoringError,
        "loss refuses",
    ),
    "empty batch": (
        Net,
        {"data": (torch.zeros(0, 3, 12, 12), torch.zeros(0).long())},
        lwdna.ScoringError,
        "empty",
    ),
    "no batch": (Net, {"data": []}, lwdna.ScoringError, "no batch"),
    "NaN in the batch": (Net, {"data": nan_batch()}, lwdna.ScoringError, "NaN"),
    "loss without the parameters": (
        Net,
        {"loss_fn": lambda out, target: target.float().mean()},
        lwdna.ScoringError,
        "depends on no parameter",
    ),
    "loss that is no scalar": (
        Net,
        {"loss_fn": lambda out, target: out},
        lwdna.ScoringError,
        "scalar",
    ),
    "two devices": (
        TwoDevices,
        {},
        lwdna.UnsupportedModelError,
        r"several devices \('a.weight' on cpu, 'b.weight' on cuda:1\): move it to one",
    ),
    "partly on the meta device": (
        lambda: TwoDevices("meta"),
        {},
        lwdna.UnsupportedModelError,
        r"'b.weight' is on the meta device, .*to_empty\(device=\.\.\.\) and load a state_dict",
    ),
    "lazy modules": (
        lambda: nn.Sequential(nn.LazyConv2d(8, 3), nn.Flatten(), nn.LazyLinear(10)),
        {},
        lwdna.UnsupportedModelError,
        "lazy",
    ),
    "half precision": (lambda: Net().half(), {}, lwdna.UnsupportedModelError, r"model\.float\(\)"),
    "bfloat16": (lambda: Net().bfloat16(), {}, lwdna.UnsupportedModelError, "half precision"),
    "no parameters": (nn.ReLU, {}, lwdna.UnsupportedModelError, "no parameters"),
    "meta device": (lambda: Net().to("meta"), {}, lwdna.UnsupportedModelError, "meta device"),
    "parallel wrapper": (
        lambda: nn.DataParallel(Net()),
        {},
        lwdna.UnsupportedModelError,
        r"model\.module",
    ),
    "compiled": (
        lambda: torch.compile(Net(), backend="eager"),
        {},
        lwdna.UnsupportedModelError,
        r"before torch\.compile",
    ),
    "seed that is no number": (Net, {"seed": "0"}, TypeError, "seed"),
    "unknown weights": (Net, {"weights": "new"}, ValueError, "weights=.new.: one of None, .hyper."),
    "no module": (lambda: "resnet50", {}, TypeError, "nn.Module"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_by_its_own_error_and_changes_nothing(case: str) -> None:
    make, arguments, error, message = BAD[case]
    torch.manual_seed(0)
    model = make()
    arguments = {"budget": 0.7, "data": batch(), **arguments}

    def attempt() -> None:
        with pytest.raises(error, match=message):
            lwdna.shrink(model, arguments.pop("budget"), **arguments)

    if (
        isinstance(model, nn.Module)
        and not any(isinstance(p, nn.parameter.UninitializedParameter) for p in model.parameters())
        and case not in ("two devices", "meta device", "partly on the meta device")
    ):
        with verify.untouched(model):
            attempt()
    else:
        attempt()


def test_unattainable_budgets_say_what_is_attainable(net: Net) -> None:
    with pytest.raises(lwdna.BudgetError) as caught:
        lwdna.shrink(net, 0.01, data=batch())
    least, most = caught.value.attainable["macs"]
    assert f"{least:,}" in str(caught.value)
    before = lwdna.analyse(lwdna.capture(net, batch()[0]), batch()[0]).cost()
    lwdna.shrink(net, least, data=batch())
    with pytest.raises(lwdna.BudgetError):
        lwdna.shrink(net, least - 1, data=batch())
    assert most > before.macs


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_callers_grad_mode_does_not_matter(net: Net, mode: Callable[[], Any]) -> None:
    expected = lwdna.shrink(net, 0.6, data=batch())
    with mode():
        small = lwdna.shrink(net, 0.6, data=batch())
    assert small.meta["lwdna"] == expected.meta["lwdna"]
    small(batch()[0]).sum().backward()


def test_memory_format_and_pickling(net: Net) -> None:
    x = batch(3)[0]
    small = lwdna.shrink(net.to(memory_format=torch.channels_last), 0.6, data=batch()).eval()
    assert small.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    file = io.BytesIO()
    torch.save(small, file)
    file.seek(0)
    again = torch.load(file, weights_only=False).eval()
    assert torch.equal(again(x), small(x))
    assert list(again.state_dict()) == list(small.state_dict())


def test_works_with_deepcopy_compile_and_export(net: Net) -> None:
    small = lwdna.shrink(net, 0.6, data=batch()).eval()
    x = batch(3)[0]
    expected = small(x)
    assert torch.equal(copy.deepcopy(small)(x), expected)
    assert copy.deepcopy(small).meta["lwdna"] == small.meta["lwdna"]
    compiled = torch.compile(small, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected)
    exported = torch.export.export(small, (x,)).module()
    torch.testing.assert_close(exported(x), expected)
    fresh = lwdna.shrink(Net(), 0.6, data=batch())
    assert set(fresh.state_dict()) == set(small.state_dict())


def _ddp(rank: int, make: Callable[[], nn.Module], port: int) -> None:
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=1)
    wrapped = nn.parallel.DistributedDataParallel(make())
    wrapped(batch()[0]).sum().backward()
    assert all(p.grad is not None for p in wrapped.parameters())
    dist.destroy_process_group()


def test_works_with_ddp(net: Net) -> None:
    small = lwdna.shrink(net, 0.6, data=batch())
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    _ddp(0, lambda: small, port)
