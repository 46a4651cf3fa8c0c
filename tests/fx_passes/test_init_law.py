"""Initialisation laws: read from draws of torch.nn.init, of modules and of whole networks."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from lwdna.fx_passes.init_law import Fans, InitLaw, detect, draw, fans_of, laws
from lwdna.fx_passes.init_sample import _KURTOSIS, CUT_STD, orthogonal, sample


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network_laws(network: nn.Module) -> dict[str, InitLaw | None]:
    return laws(dict(network.named_parameters()), fans_of(network))


def kinds(network: nn.Module) -> set[tuple[str, str]]:
    """(kind, scale) of all laws that are no constants."""
    found = network_laws(network)
    assert None not in found.values(), [n for n, law in found.items() if law is None]
    return {(law.kind, law.scale) for law in found.values() if law and law.kind != "constant"}


# --- fans ---


def test_fans_are_those_of_torch() -> None:
    modules = [
        nn.Conv2d(6, 10, 3),
        nn.Conv2d(6, 12, (3, 5), groups=3),
        nn.ConvTranspose2d(6, 10, 2),
        nn.Linear(7, 5),
        nn.Conv1d(4, 4, 3, groups=4),
    ]
    for module in modules:
        fans = fans_of(nn.Sequential(module))
        expected = nn.init._calculate_fan_in_and_fan_out(module.weight)
        assert (fans["0.weight"].fan_in, fans["0.weight"].fan_out) == expected
        assert fans["0.bias"] == Fans(expected[0])
        # torch's default bias is bounded by its weight's fan-in
        assert float(module.bias.detach().abs().max()) <= fans["0.bias"].fan_in ** -0.5
    grouped = fans_of(nn.Sequential(modules[1]))["0.weight"]
    assert grouped.of("fan_group") == 12 * 15 / 3
    assert grouped.of("fan_avg") == (2 * 15 + 12 * 15) / 2
    assert grouped.of("fan_max") == 30  # of the (12, 30) matrix
    assert grouped.of("fixed") == 1


def test_norms_have_no_fans_and_recurrent_layers_their_hidden_size() -> None:
    fans = fans_of(nn.ModuleDict({"norm": nn.BatchNorm2d(4), "rnn": nn.LSTM(3, 6)}))
    assert fans == {f"rnn.{n}": Fans(6) for n, _ in nn.LSTM(3, 6).named_parameters()}


# --- families ---


@pytest.mark.parametrize(
    ("init", "family"),
    [
        (lambda t: nn.init.normal_(t, std=0.3, generator=seeded()), "normal"),
        (lambda t: nn.init.uniform_(t, -0.3, 0.3, generator=seeded()), "uniform"),
        (
            lambda t: nn.init.trunc_normal_(t, std=0.3, a=-0.6, b=0.6, generator=seeded()),
            "truncated",
        ),
        (lambda t: nn.init.orthogonal_(t, gain=2.0, generator=seeded()), "orthogonal"),
    ],
)
@pytest.mark.parametrize("shape", [(64, 96), (128, 32, 3, 3), (300, 7)])
def test_a_family_is_told_from_the_others(
    init: Callable[[Tensor], Tensor], family: str, shape: tuple[int, ...]
) -> None:
    assert sample(init(torch.empty(shape))).families == {family}


def test_the_cut_normal_law_has_the_constants_of_its_integral() -> None:
    x = np.linspace(-2, 2, 2_000_001)
    density = np.exp(-(x**2) / 2)
    square, fourth = ((x**k * density).sum() / density.sum() for k in (2, 4))
    assert pytest.approx(square**0.5, rel=1e-5) == CUT_STD
    assert _KURTOSIS["truncated"] == pytest.approx(fourth / square**2, rel=1e-4)


@pytest.mark.parametrize(
    "values",
    [
        torch.eye(40) + 0.1 * torch.eye(40).roll(3, 0),
        torch.randn(2000, generator=seeded()).pow(3),
        torch.cat([torch.zeros(50, 100), torch.randn(50, 100, generator=seeded())]),
    ],
    ids=["diagonal", "heavy tails", "half zero"],
)
def test_entries_of_no_family_have_no_law(values: Tensor) -> None:
    assert laws({"t": values}, {}) == {"t": None}


def test_the_stray_entry_of_a_cut_normal_law_is_no_outlier() -> None:
    # float32 draws of trunc_normal_(std=0.02) return the cut -2, a hundred deviations out.
    weight = nn.init.normal_(torch.empty(400, 400), std=0.02, generator=seeded())
    weight[3, 5] = -2.0
    assert detect(weight, 400, 400).kind == "normal"
    weight[3, 5] = -1.9
    assert laws({"w": weight}, {})["w"] is None


def test_rows_of_a_random_matrix_are_not_orthogonal() -> None:
    assert orthogonal(nn.init.orthogonal_(torch.empty(90, 5, 3, 3)))
    assert orthogonal(nn.init.orthogonal_(torch.empty(20, 50)))
    assert not orthogonal(torch.randn(20, 5000, generator=seeded()))
    assert not orthogonal(torch.ones(1, 8))


# --- one network's tensors are read together ---


def plain(widths: list[int], init: Callable[[Tensor], Any]) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(*(nn.Conv2d(i, o, 3) for i, o in pairwise(widths)))
    for conv in net:
        init(conv.weight)
        nn.init.zeros_(conv.bias)
    return net


@pytest.mark.parametrize(
    ("init", "law"),
    [
        (lambda w: nn.init.kaiming_normal_(w, mode="fan_out"), ("normal", "fan_out")),
        (lambda w: nn.init.kaiming_normal_(w, mode="fan_in"), ("normal", "fan_in")),
        (lambda w: nn.init.xavier_uniform_(w), ("uniform", "fan_avg")),
        (lambda w: nn.init.kaiming_normal_(w, a=0.7, mode="fan_out"), ("normal", "fan_out")),
        (lambda w: nn.init.trunc_normal_(w, std=0.03, a=-0.06, b=0.06), ("truncated", "fixed")),
        (lambda w: nn.init.orthogonal_(w), ("orthogonal", "fan_max")),
    ],
    ids=["fan_out", "fan_in", "xavier", "a gain of its own", "cut", "orthogonal"],
)
def test_equal_fans_are_decided_by_the_other_layers(
    init: Callable[[Tensor], Any], law: tuple[str, str]
) -> None:
    net = plain([3, 64, 64, 64, 64, 96, 32], init)  # three layers fit fan_in and fan_out alike
    found = network_laws(net)
    for n, p in net.named_parameters():
        if p.dim() > 1:
            one = found[n]
            assert one is not None
            assert (one.kind, one.scale) == law
            assert one.usual
            assert one.std == pytest.approx(float(p.detach().std()), rel=0.05)


def test_a_fixed_deviation_that_meets_a_fan_by_chance_stays_fixed() -> None:
    # 0.02² · 2500 = 1: the middle layer alone would be LeCun's law of its fan-in.
    torch.manual_seed(0)
    net = nn.Sequential(*(nn.Linear(i, o) for i, o in ((300, 2500), (2500, 700), (700, 400))))
    for layer in net:
        nn.init.trunc_normal_(layer.weight, std=0.02)
    found = network_laws(net)
    assert [found[f"{i}.weight"].scale for i in range(3)] == ["fixed"] * 3  # type: ignore[union-attr]
    assert detect(net[1].weight, 2500, 700).scale == "fan_in"


@pytest.mark.parametrize("seed", range(8))
def test_a_short_bias_does_not_follow_the_law_of_the_weights(seed: int) -> None:
    torch.manual_seed(seed)
    net = nn.Sequential(*(nn.Conv2d(32, 32, 3, bias=False) for _ in range(12)), nn.Linear(32, 10))
    for conv in net[:-1]:
        nn.init.kaiming_normal_(conv.weight)
    found = laws(dict(net.named_parameters()), fans_of(net))
    bias, weight = found["12.bias"], found["0.weight"]
    assert bias is not None and weight is not None
    assert (weight.kind, weight.scale) == ("normal", "fan_in")
    assert (bias.kind, bias.scale) == ("uniform", "fan_in")
    assert bias.std == pytest.approx((1 / 3 / 32) ** 0.5)  # torch's default


def test_default_biases_follow_the_fan_in_of_their_weight() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.Conv2d(16, 40, 3, groups=4), nn.Flatten(), nn.Linear(360, 10)
    )
    found = network_laws(net)
    for i, fan in ((0, 27), (1, 36), (3, 360)):
        assert found[f"{i}.bias"] == InitLaw("uniform", 0.0, (1 / 3 / fan) ** 0.5, "fan_in")
        assert found[f"{i}.weight"] == found[f"{i}.bias"]
    assert network_laws(nn.Sequential(nn.Conv2d(8, 1, 3)))["0.bias"].scale == "fan_in"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: timm.create_model("resnet18"), {("normal", "fan_out"), ("uniform", "fan_in")}),
        (lambda: timm.create_model("regnetx_002"), {("normal", "fan_group"), ("normal", "fixed")}),
        (
            lambda: timm.create_model("mobilenetv2_050"),
            {("normal", "fan_group"), ("uniform", "fan_out")},
        ),
        (
            lambda: torchvision.models.mobilenet_v2(),
            {("normal", "fan_out"), ("normal", "fixed")},
        ),
        (lambda: torchvision.models.densenet121(), {("normal", "fan_in"), ("uniform", "fan_in")}),
        (
            lambda: timm.create_model("vit_tiny_patch16_224"),
            {("normal", "fixed"), ("uniform", "fan_in")},
        ),
        (lambda: torchvision.models.shufflenet_v2_x0_5(), {("uniform", "fan_in")}),
    ],
)
def test_the_laws_of_real_networks(make: Any, expected: set[tuple[str, str]]) -> None:
    """The sources: the models' own initialisation functions in timm and torchvision."""
    torch.manual_seed(0)
    assert kinds(make()) == expected


# --- drawing ---


@pytest.mark.parametrize("kind", ["normal", "uniform", "truncated", "orthogonal"])
@pytest.mark.parametrize("ratio", [1.0, 4.0])
def test_draws_have_the_deviation_and_family_of_the_law(kind: Any, ratio: float) -> None:
    law = InitLaw(kind, 0.0, 0.3, "fan_in")
    drawn = draw(law, torch.empty(200, 20, 3, 3), ratio, seeded())
    found = sample(drawn)
    assert found.families == {kind}
    assert found.std == pytest.approx(0.3 / ratio**0.5, rel=0.02)
    bound = {"uniform": 3**0.5, "truncated": 2 / CUT_STD}.get(kind, math.inf) * 0.3 / ratio**0.5
    assert found.largest <= bound * (1 + 1e-6)


def test_draws_do_not_depend_on_the_defaults_of_torch() -> None:
    law, like = InitLaw("normal", 0.0, 1.0, "fixed"), torch.empty(5, dtype=torch.float64)
    expected = draw(law, like, 1.0, seeded())
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(draw(law, like, 1.0, seeded()), expected)
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.device("meta"):
        assert torch.equal(draw(law, like, 1.0, seeded()), expected)
