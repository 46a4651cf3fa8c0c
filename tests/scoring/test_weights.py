from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from lwdna.constraints import Constraints, Floors
from lwdna.errors import ScoringError
from lwdna.scoring import get, score
from lwdna.selection import select
from tests.scoring.networks import (
    Concatenated,
    Depthwise,
    Net,
    Residual,
    Tokens,
    Transposed,
    context_of,
    made,
)


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_magnitude_by_hand(norm: str) -> None:
    context = context_of(Residual(), [])
    one, two, three = (
        context.network.get_parameter(f"{n}.0.weight") for n in ("one", "two", "three")
    )
    with torch.no_grad():
        for w in (one, two, three):
            w.zero_()
        one[0, 0, 0, :2] = torch.tensor([3.0, -4.0])  # squares 25, moduli 7
        two[0, 1, 2, 2] = -5.0  # 25 and 5: the means over two filters are 25 and 6
        two[1, 0, 0, 0] = 4.0  # filter 1: (0 + 16) / 2 and (0 + 4) / 2
        three[5] = 1.0  # 8·9 ones
    saliency = score(context, get("magnitude", norm=norm))
    units = context.graph.tensors
    stage, last = units["one.0.weight"][0], units["three.0.weight"][0]
    first, second, full = (6, 2, 72) if norm == "l1" else (5, np.sqrt(8), np.sqrt(72))
    np.testing.assert_allclose(saliency[stage], [first, second, 0, 0, 0, 0, 0, 0])
    np.testing.assert_allclose(saliency[last], [0, 0, 0, 0, 0, full, 0, 0])
    image = units["one.0.weight"][1]
    assert image is not None and not saliency[image].any()  # produced by no layer


def test_magnitude_is_l2_by_default_and_knows_no_other() -> None:
    context = context_of(made(Residual), [])
    default, l2, l1 = (
        score(context, get("magnitude", **options))
        for options in ({}, {"norm": "l2"}, {"norm": "l1"})
    )
    np.testing.assert_array_equal(default, l2)
    assert (l1 != l2).any()
    with pytest.raises(ValueError, match="norm='l3': 'l1' or 'l2'"):
        score(context, get("magnitude", norm="l3"))


def test_magnitude_of_depthwise_filters() -> None:
    context = context_of(Depthwise(), [])
    one, two = (context.network.get_parameter(f"{n}.0.weight") for n in ("one", "two"))
    units = context.graph.tensors["one.0.weight"][0]
    expected = ((one.flatten(1).square().sum(1) + two.flatten(1).square().sum(1)) / 2).sqrt()
    np.testing.assert_allclose(score(context, "magnitude")[units], expected.detach(), rtol=1e-12)


@pytest.mark.parametrize("model", [Residual, Concatenated, Transposed, Tokens])
def test_fpgm_pair_by_pair(model: type[nn.Module]) -> None:
    context = context_of(made(model), [])
    distances: dict[int, list[float]] = {}
    for name, module in context.network.named_modules():
        if not isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            continue
        dim = 1 if isinstance(module, nn.ConvTranspose2d) else 0
        units = context.graph.tensors[f"{name}.weight"][dim]
        filters = module.weight.detach().movedim(dim, 0)
        for i, unit in enumerate(units):
            others = [j for j in range(len(filters)) if j != i]
            mean = np.mean([(filters[i] - filters[j]).square().sum().sqrt() for j in others])
            distances.setdefault(unit, []).append(float(mean))
    expected = np.zeros(context.graph.units)
    for unit, values in distances.items():
        expected[unit] = np.mean(values)
    np.testing.assert_allclose(score(context, "fpgm"), expected, rtol=1e-12)


def test_fpgm_of_equal_filters() -> None:
    context = context_of(made(Net), [])
    with torch.no_grad():
        context.network.get_parameter("two.0.weight").fill_(0.3)
    with pytest.warns(UserWarning, match=r"'fpgm' gives zero .* 1 groups \(two\.0\)"):
        saliency = score(context, "fpgm")
    units = context.graph.tensors
    assert not saliency[units["two.0.weight"][0]].any()
    assert saliency[units["three.0.weight"][0]].all()


def test_bn_scale_by_hand() -> None:
    context = context_of(made(Residual), [])
    gains = {n: torch.linspace(-1, 2, 8).roll(k) for k, n in enumerate(("one", "two", "three"))}
    with torch.no_grad():
        for name, gain in gains.items():
            context.network.get_parameter(f"{name}.1.weight").copy_(gain)
    saliency = score(context, "bn-scale")
    units = context.graph.tensors
    stage = (gains["one"].abs() + gains["two"].abs()) / 2  # both norms of the residual stage
    np.testing.assert_allclose(saliency[units["one.0.weight"][0]], stage, rtol=1e-6)
    np.testing.assert_allclose(
        saliency[units["three.0.weight"][0]], gains["three"].abs(), rtol=1e-6
    )


def test_bn_scale_of_concatenated_channels() -> None:
    class Joint(Concatenated):
        def __init__(self) -> None:
            super().__init__()
            self.three = nn.Sequential(nn.BatchNorm2d(14), nn.ReLU(), nn.Conv2d(14, 8, 1))

    context = context_of(made(Joint), [])
    network, units = context.network, context.graph.tensors
    one, two, joint = (
        network.get_parameter(f"{n}.weight").detach().abs() for n in ("one.1", "two.1", "three.0")
    )
    with pytest.warns(UserWarning, match=r"groups \(three\.2\)"):
        saliency = score(context, "bn-scale")
    np.testing.assert_allclose(saliency[units["one.0.weight"][0]], (one + joint[:6]) / 2)
    np.testing.assert_allclose(saliency[units["two.0.weight"][0]], (two + joint[6:]) / 2)
    assert not saliency[units["three.2.weight"][0]].any()  # no norm follows


def test_bn_scale_needs_batch_norms() -> None:
    with pytest.raises(ScoringError, match=r"needs batch norms with gains.*'magnitude' or 'fpgm'"):
        score(context_of(made(Tokens), []), "bn-scale")  # a layer norm is none


def test_random_follows_the_seed() -> None:
    context = context_of(Net(), [])
    a, b, c = (score(replace(context, seed=s), "random") for s in (0, 0, 1))
    np.testing.assert_array_equal(a, b)
    assert len(np.unique(a)) == len(a) and (a != c).any()
    assert a.min() >= 0 and a.max() < 1
    expected = torch.rand(len(a), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    np.testing.assert_array_equal(c, expected)


@pytest.mark.parametrize("fraction", [0.3, 0.5, 0.8])
def test_uniform_gives_uniform_widths(fraction: float) -> None:
    context = context_of(Net((40, 80, 60)), [])
    graph, saliency = context.graph, score(context, "uniform")
    limits = {"macs": int(graph.cost().macs * fraction)}
    selection = select(graph, saliency, limits, constraints=Constraints(Floors(0, 1, 0)))
    kept = graph.widths_of(selection.copies) / graph.widths
    kept = kept[graph.prunable]
    # The threshold keeps the same fraction to within a channel; what is given back is one more.
    assert np.ptp(kept) <= 2 / 40
    assert kept.mean() == pytest.approx(np.sqrt(fraction), abs=0.05)


def test_uniform_by_hand() -> None:
    context = context_of(Net(), [])
    saliency = score(context, "uniform")
    for group in context.graph.groups:
        expected = 1 - (np.arange(group.width) + 0.5) / group.width
        np.testing.assert_allclose(saliency[group.units], expected)


def test_weights_of_any_dtype_are_scored_in_float64() -> None:
    half, full = made(Residual).bfloat16(), made(Residual).bfloat16().double()
    for name in ("magnitude", "fpgm", "bn-scale", "synflow"):
        a, b = (
            score(context_of(model, [], dtype=dtype), name)
            for model, dtype in ((half, torch.bfloat16), (full, torch.float64))
        )
        np.testing.assert_array_equal(a, b)
