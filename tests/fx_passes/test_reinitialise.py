"""Shrunk networks with newly drawn weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.fx import GraphModule

import lwdna
from benchmarks.bm_initialisation import STRESS, Ratio, compare, measure
from benchmarks.synthetic import CASES
from lwdna import recipes
from lwdna.fx_passes import verify
from lwdna.fx_passes.init_law import InitLaw, fans_of, laws
from lwdna.fx_passes.init_sample import sample
from lwdna.fx_passes.reinitialise import looks_trained, reinitialise
from lwdna.graph import ChannelGraph

X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class Mixed(nn.Module):
    """One of everything: default biases, norms, groups, a transposed kernel, a table, gates."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3)
        self.norm = nn.BatchNorm2d(32)
        self.grouped = nn.Conv2d(32, 64, 3, groups=2)
        self.lift = nn.ConvTranspose2d(64, 48, 2, 2)
        self.gate = nn.Parameter(torch.full((48,), 1e-6))
        self.table = nn.Parameter(torch.randn(1, 48, 28, 28) * 0.02)
        self.head = nn.Linear(48, 10)
        nn.init.kaiming_normal_(self.grouped.weight, mode="fan_out")
        nn.init.trunc_normal_(self.head.weight, std=0.05, a=-0.1, b=0.1)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.grouped(self.norm(self.stem(x)).relu()).relu()
        x = self.gate[:, None, None] * self.lift(x[:, :, :14, :14]) + self.table
        out: Tensor = self.head(x.mean((2, 3)))
        return out


def shrunk(
    model: nn.Module, x: Tensor = X, keep: float = 0.75
) -> tuple[GraphModule, ChannelGraph, GraphModule]:
    """(captured, its graph, random configuration of the widened network)."""
    gm = lwdna.capture(model, x)
    graph = lwdna.analyse(gm, x)
    wide, wide_graph = lwdna.widen(gm, graph, 2.0)
    copies = verify.random_copies(wide_graph, keep, np.random.default_rng(0))
    return gm, graph, lwdna.shrink_graph(wide, wide_graph, copies)


def make(model: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return model()


def test_every_parameter_follows_its_law_at_the_new_width() -> None:
    gm, graph, small = shrunk(make(Mixed))
    new = reinitialise(small, gm, graph, seed=0)
    p = {name: t.detach().double() for name, t in new.named_parameters()}
    assert p["stem.weight"].shape == (48, 3, 3, 3)
    assert p["grouped.weight"].shape == (96, 24, 3, 3)
    assert p["lift.weight"].shape == (96, 72, 2, 2)

    def bound(name: str, limit: float) -> None:  # uniform: never beyond, and nearly reached
        assert 0.9 * limit < float(p[name].abs().max()) <= limit * (1 + 1e-6), name

    bound("stem.weight", 27**-0.5)
    bound("stem.bias", 27**-0.5)
    bound("grouped.bias", (16 * 9) ** -0.5)  # as it was: fan-in 16 -> 24 does not scale a bias
    # torch's fan-in of a transposed kernel counts outputs; what is summed over grew 64 -> 96
    bound("lift.weight", (48 * 4) ** -0.5 * (64 / 96) ** 0.5)
    bound("lift.bias", (48 * 4) ** -0.5)
    # fan_out law 2 / (64 · 9) at the baseline, kept per fan-in (16 -> 24 per group)
    assert float(p["grouped.weight"].std()) == pytest.approx(
        (2 / (64 * 9) * 16 / 24) ** 0.5, rel=0.02
    )
    head = sample(p["head.weight"])
    assert "truncated" in head.families
    # 480 entries give the deviation, and so the cut, up to some per cent
    assert head.largest <= 1.05 * 0.1 * (48 / 72) ** 0.5
    assert float(p["table"].std()) == pytest.approx(0.02, rel=0.01)
    for name, value in (("norm.weight", 1), ("norm.bias", 0), ("gate", 1e-6), ("head.bias", 0)):
        assert (p[name] == torch.tensor(value, dtype=torch.float32)).all()


def test_biases_keep_their_deviation_whatever_their_width_chose() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lift, self.rnn = nn.Linear(8, 16), nn.LSTM(16, 64, batch_first=True)
            self.out = nn.Linear(64, 100)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.out(self.rnn(self.lift(x))[0])
            return out

    x = torch.randn(2, 5, 8)
    gm = lwdna.capture(make(Recurrent), x)
    graph = lwdna.analyse(gm, x)
    copies = graph.keep_all()
    for group in graph.groups:
        if group.prunable:  # lift 16 -> 4, hidden 64 -> 16
            copies[group.units[group.width // 4 :]] = 0
    new = reinitialise(lwdna.shrink_graph(gm, graph, copies), gm, graph, seed=0)
    for name, limit in (
        ("rnn.weight_ih_l0", 64**-0.5 * 2),  # a quarter of the inputs, each twice as strong
        ("rnn.weight_hh_l0", 64**-0.5 * 2),
        ("rnn.bias_ih_l0", 64**-0.5),  # torch would draw it by the hidden size, 16
        ("out.weight", 64**-0.5 * 2),
        ("out.bias", 64**-0.5),
    ):
        largest = float(new.get_parameter(name).detach().abs().max())
        assert 0.9 * limit < largest <= limit * (1 + 1e-6), name


def test_widening_draws_biases_by_the_family_and_deviation_of_their_own() -> None:
    for seed in range(5):  # 64 entries alone fit a normal law as well
        torch.manual_seed(seed)
        gm = lwdna.capture(Mixed(), X)
        wide, _ = lwdna.widen(gm, lwdna.analyse(gm, X), 4.0)
        for name, fan_in in (("grouped.bias", 16 * 9), ("lift.bias", 48 * 4)):
            old, new = gm.get_parameter(name).detach(), wide.get_parameter(name).detach()
            added = new[~torch.isin(new, old)]
            assert len(added) == 3 * len(old)
            limit = float(old.std(correction=0)) * 3**0.5  # fourfold fans would halve it
            assert limit == pytest.approx(fan_in**-0.5, rel=0.25)
            assert 0.9 * limit < float(added.abs().max()) <= limit * (1 + 1e-6)


def test_nothing_of_the_old_values_is_left_and_nothing_else_changes() -> None:
    gm, graph, small = shrunk(make(Mixed))
    small.train()(X)  # moves the statistics
    small.head.weight.requires_grad_(False)  # type: ignore[union-attr]
    state = torch.get_rng_state()
    with verify.untouched(small), verify.untouched(gm):
        new = reinitialise(small, gm, graph, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    buffers = dict(new.named_buffers())
    assert (buffers["norm.running_mean"] == 0).all()
    assert (buffers["norm.running_var"] == 1).all()
    assert buffers["norm.num_batches_tracked"] == 0
    old = dict(small.named_parameters())
    for name, p in new.named_parameters():
        assert p.shape == old[name].shape
        assert p.requires_grad == (name != "head.weight")
        if not bool((p == p.flatten()[0]).all()):
            assert not (p == old[name]).any(), name
    assert new.training
    assert new.stem.out_channels == 48  # type: ignore[union-attr]
    verify.trains(new, X)
    verify.restriction(graph, graph.keep_all(), reinitialise(gm, gm, graph, seed=0))


def test_the_seed_decides_everything() -> None:
    gm, graph, small = shrunk(make(Mixed))
    a, b, c = (reinitialise(small, gm, graph, seed=s).state_dict() for s in (5, 5, 6))
    torch.randn(7)
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not torch.equal(a["stem.weight"], c["stem.weight"])


def test_tied_weights_stay_tied() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(8, 8)
            self.b = nn.Linear(8, 8)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.b(self.a(x))
            return out

    gm = lwdna.capture(make(Tied), torch.randn(2, 8))
    graph = lwdna.analyse(gm, torch.randn(2, 8))
    new = reinitialise(gm, gm, graph, seed=0)
    assert new.a.weight is new.b.weight  # type: ignore[union-attr]
    assert not torch.equal(new.a.weight, gm.a.weight)  # type: ignore[union-attr,arg-type]


@pytest.mark.parametrize(
    "name", ["resnet18", "regnetx_002", "mobilenetv3_small_050", "vit_tiny_patch16_224"]
)
def test_a_reinitialised_baseline_has_the_laws_of_the_baseline(name: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name)
    x = torch.randn(1, *model.default_cfg["input_size"])
    gm = lwdna.capture(model, x)
    new = reinitialise(gm, gm, lwdna.analyse(gm, x), seed=0)

    def read(network: nn.Module) -> dict[str, Any]:
        found = laws(dict(network.named_parameters()), fans_of(network))
        assert None not in found.values()
        return {n: (law.kind, law.mean, law.std) for n, law in found.items() if law}

    old, again = read(gm), read(new)
    for key, (kind, mean, std) in old.items():
        assert again[key][:2] == (kind, mean), key
        assert again[key][2] == pytest.approx(std, rel=0.05), key
    assert not looks_trained(new)


def test_the_same_widths_keep_even_fixed_and_fan_out_laws_to_the_letter() -> None:
    torch.manual_seed(0)
    model = torchvision.models.mobilenet_v2()
    gm = lwdna.capture(model, X)
    new = reinitialise(gm, gm, lwdna.analyse(gm, X), seed=0)
    p = dict(new.named_parameters())
    for conv in ("features.0.0", "features.18.0"):
        w = p[f"{conv}.weight"].detach()
        assert float(w.std()) == pytest.approx((2 / (len(w) * w[0, 0].numel())) ** 0.5, rel=0.05)
    assert float(p["classifier.1.weight"].detach().std()) == pytest.approx(0.01, rel=0.01)


# --- activation variances ---


#: The recipes' networks with fewer blocks, channels and levels.
SMALL: dict[str, tuple[tuple[str, int], ...]] = {
    "srresnet-x4": (("blocks", 2), ("width", 32)),
    "edsr-x4": (("blocks", 2), ("width", 32)),
    "dncnn-denoising": (("blocks", 4), ("width", 32)),
    "unet-denoising": (("width", 16), ("levels", 3)),
}


@pytest.mark.parametrize("name", SMALL)
def test_variances_stay_those_of_the_baseline(name: str) -> None:
    recipe = replace(recipes.get(name), options=SMALL[name])
    case = replace(CASES[name], side=24, seeds=9)
    found = measure(recipe, case, ways={"kept": reinitialise})
    assert len(found) == 5
    assert {widths: ways["kept"].missed for widths, ways in found.items()} == dict.fromkeys(
        found, ()
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_variances_of_the_papers_networks_stay_those_of_the_baseline(name: str) -> None:
    found = measure(recipes.get(name), CASES[name], ways={"kept": reinitialise})
    for widths, ways in found.items():
        assert widths == STRESS or not ways["kept"].missed, (widths, ways["kept"])


def test_a_median_that_leaves_the_factor_has_missed_however_noisy_it_is() -> None:
    baseline = {"a": [1.0, 2.0, 3.0], "b": [1.0, 1.0, 1.0], "c": [1.0, 5.0, 6.0], "d": [0.0] * 3}
    fresh = {"a": [0.1, 4.0, 99.0], "b": [2.0, 2.1, 9.9], "c": [2.4, 0.1, 99.0], "d": [1.0] * 3}
    found = compare(fresh, baseline)
    assert found.layers == 3  # d is silent in the baseline
    assert (found.lowest.layer, found.lowest.ratio) == ("c", 0.48)
    assert (found.highest.layer, found.highest.ratio) == ("b", 2.1)
    assert [r.layer for r in found.missed] == ["b", "c"]
    assert found.lowest.low < 0.48 < 1 < found.lowest.high  # chance could explain it; missed still
    exact = Ratio("x", 2.0, 2.0, 2.0)
    assert exact.within and replace(exact, ratio=0.5).within


# --- refusals ---


def test_entries_of_no_law_are_refused_by_name_unless_their_shape_stays() -> None:
    model = make(Mixed)
    with torch.no_grad():
        model.grouped.weight.pow_(3)  # type: ignore[operator,union-attr]
    gm, graph, small = shrunk(model)
    with pytest.raises(lwdna.UnsupportedModelError, match=r"'grouped.weight' follows no init"):
        reinitialise(small, gm, graph, seed=0)
    same = reinitialise(gm, gm, graph, seed=0)
    assert torch.equal(same.grouped.weight, gm.grouped.weight)  # type: ignore[union-attr,arg-type]
    small.grouped.weight.requires_grad_(False)  # type: ignore[union-attr]
    kept = reinitialise(small, gm, graph, seed=0)
    assert torch.equal(kept.grouped.weight, small.grouped.weight)  # type: ignore[union-attr,arg-type]


def test_networks_that_do_not_belong_together_are_refused() -> None:
    gm, graph, small = shrunk(make(Mixed))
    other = lwdna.capture(nn.Sequential(nn.Conv2d(3, 4, 3)), X)
    with pytest.raises(ValueError, match="not the network that gm was shrunk from"):
        reinitialise(small, other, lwdna.analyse(other, X), seed=0)
    with pytest.raises(ValueError, match="the channel graph is not this module's"):
        reinitialise(small, gm, lwdna.analyse(small, X), seed=0)
    with pytest.raises(TypeError, match="not captured"):
        reinitialise(small, make(Mixed), graph, seed=0)  # type: ignore[arg-type]


# --- looks_trained ---

FRESH: dict[str, Callable[[], nn.Module]] = {
    **{
        f"timm:{name}": (lambda name=name: timm.create_model(name))
        for name in (
            "resnet18",
            "regnetx_002",
            "mobilenetv3_small_050",
            "vit_tiny_patch16_224",
            "convnext_atto",
            "efficientnet_b0",
            "densenet121",
            "swin_tiny_patch4_window7_224",
            "mixer_s32_224",
        )
    },
    "torchvision:vgg11": torchvision.models.vgg11,
    "torchvision:vit_b_16": torchvision.models.vit_b_16,
    "torchvision:squeezenet1_1": torchvision.models.squeezenet1_1,
    "mixed": Mixed,
    "recurrent": lambda: nn.LSTM(5, 30, num_layers=2),
    "resnet18, cloned": lambda: lwdna.capture(timm.create_model("resnet18"), X),
}


@pytest.mark.parametrize("name", FRESH)
@pytest.mark.parametrize("seed", [0, 1])
def test_fresh_networks_do_not_look_trained(name: str, seed: int) -> None:
    torch.manual_seed(seed)
    with verify.untouched(model := FRESH[name]()):
        assert not looks_trained(model)


def no_norm() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 2), nn.ReLU(), nn.Conv2d(16, 32, 3, 2), nn.ReLU(), nn.Flatten(),
        nn.Linear(32 * 49, 1000),
    )  # fmt: skip


@pytest.mark.parametrize(
    "build",
    [
        lambda: timm.create_model("resnet18"),
        lambda: timm.create_model("mobilenetv3_small_050"),
        lambda: timm.create_model("convnext_atto"),
        no_norm,
    ],
    ids=["resnet18", "mobilenetv3", "convnext", "no norm"],
)
def test_three_steps_of_training_show(build: Callable[[], nn.Module]) -> None:
    model = make(build).train()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(X), torch.tensor([1, 2])).backward()
        optimiser.step()
    for module in model.modules():  # the parameters alone have to show it
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
    assert looks_trained(model)


def test_moved_statistics_alone_show() -> None:
    model = make(lambda: timm.create_model("resnet18"))
    with torch.no_grad():
        model.train()(X)
    assert looks_trained(model)
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.num_batches_tracked.zero_()  # type: ignore[union-attr,operator]
    assert looks_trained(model)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.norm.weight[3].add_(0.01),
        lambda m: m.head.bias[0].add_(1e-4),
        lambda m: m.grouped.weight.mul_(1.1),
        lambda m: m.stem.bias[0].fill_(0.2),  # 1/sqrt(27) is 0.192
        lambda m: m.table.add_(0.01),
        lambda m: m.lift.weight.pow_(3),
    ],
    ids=["gain", "bias", "deviation", "bound", "mean", "family"],
)
def test_a_small_change_of_one_tensor_shows(change: Callable[[Any], Any]) -> None:
    model = make(Mixed)
    assert not looks_trained(model)
    with torch.no_grad():
        change(model)
    assert looks_trained(model)


def test_the_law_of_an_odd_deviation_cannot_be_told_from_training() -> None:
    model = make(lambda: nn.Sequential(nn.Linear(100, 100, bias=False)))
    nn.init.normal_(model[0].weight, std=0.0537)  # type: ignore[index,arg-type]
    assert looks_trained(model)
    law = laws(dict(model.named_parameters()), fans_of(model))["0.weight"]
    assert isinstance(law, InitLaw)
    assert not law.usual
