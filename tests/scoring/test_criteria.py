from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lwdna.scoring
from lwdna.constraints import Constraints, Floors
from lwdna.errors import ScoringError
from lwdna.scoring import ScoringContext, as_batches, criteria, criterion, get, score
from lwdna.scoring.criteria import _CRITERIA
from lwdna.selection import select
from tests.scoring.networks import NETWORKS, Depthwise, Net, Residual, analysed


@pytest.fixture
def registry() -> Iterator[None]:
    before = dict(_CRITERIA)
    yield
    _CRITERIA.clear()
    _CRITERIA.update(before)


def make_context(model: type[Net] = Net, **kwargs: int) -> ScoringContext:
    gm, graph = analysed(model())
    batch = (torch.randn(4, 3, 8, 8), torch.randint(5, (4,)))
    return ScoringContext(gm, graph, as_batches(batch, network=gm), **kwargs)


def first_come(context: ScoringContext) -> np.ndarray:
    return -np.arange(context.graph.units)


def test_names() -> None:
    assert set(criteria()) == {"magnitude", "random", "uniform", "latent-grad"}


@pytest.mark.parametrize("name", ["magnitude", "random", "uniform", "latent-grad"])
@pytest.mark.parametrize("model", NETWORKS)
def test_one_finite_number_per_unit_and_the_same_again(name: str, model: type[Net]) -> None:
    context = make_context(model)
    saliency = score(context, name)
    assert saliency.shape == (context.graph.units,) and saliency.dtype == np.float64
    assert np.isfinite(saliency).all()
    np.testing.assert_array_equal(saliency, score(context, name))


def test_registered_by_the_user(registry: None) -> None:
    assert criterion("first-come")(first_come) is first_come
    assert criteria()[-1] == "first-come" and get("first-come") is first_come
    context = make_context()
    np.testing.assert_array_equal(score(context, "first-come"), first_come(context))


def test_a_duplicate_is_refused(registry: None) -> None:
    with pytest.raises(ValueError, match="'magnitude' is registered already"):
        criterion("magnitude")(first_come)
    assert get("magnitude") is not first_come


def test_a_callable_needs_no_name() -> None:
    context = make_context()
    np.testing.assert_array_equal(score(context, first_come), first_come(context))
    assert score(context, first_come).dtype == np.float64


def test_unknown() -> None:
    with pytest.raises(ValueError, match="'l1': one of magnitude, random"):
        get("l1")
    with pytest.raises(TypeError, match="a name or a callable, not int"):
        get(3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda n: np.zeros(3), r"'wrong' returned shape \(3,\)"),
        (lambda n: None, "'wrong' returned shape"),
        (lambda n: np.array(["a"] * n), "of <U1"),
        (lambda n: np.full(n, np.nan), "NaN or infinite"),
        (lambda n: np.full(n, np.inf), "NaN or infinite"),
    ],
)
def test_wrong_results(result: Callable[[int], Any], message: str) -> None:
    def wrong(context: ScoringContext) -> Any:
        return result(context.graph.units)

    with pytest.raises(ScoringError, match=message):
        score(make_context(), wrong)


def test_magnitude_by_hand() -> None:
    context = make_context(Residual)
    one, two, three = (
        context.network.get_parameter(f"{n}.0.weight") for n in ("one", "two", "three")
    )
    with torch.no_grad():
        for w in (one, two, three):
            w.zero_()
        one[0, 0, 0, :2] = torch.tensor([3.0, 4.0])  # ‖·‖² = 25
        two[0, 1, 2, 2] = -5.0  # 25: the mean over two filters is 25
        two[1, 0, 0, 0] = 4.0  # filter 1: (0 + 16) / 2
        three[5] = 1.0  # 8·9 ones
    saliency = score(context, "magnitude")
    v = context.graph.tensors
    stage, last = v["one.0.weight"][0], v["three.0.weight"][0]
    assert stage is not None and last is not None
    np.testing.assert_allclose(saliency[stage], [5, np.sqrt(8), 0, 0, 0, 0, 0, 0])
    np.testing.assert_allclose(saliency[last], [0, 0, 0, 0, 0, np.sqrt(72), 0, 0])
    image = v["one.0.weight"][1]
    assert image is not None and not saliency[image].any()  # produced by no layer


def test_magnitude_of_depthwise_filters() -> None:
    context = make_context(Depthwise)
    one, two = (context.network.get_parameter(f"{n}.0.weight") for n in ("one", "two"))
    units = context.graph.tensors["one.0.weight"][0]
    expected = ((one.flatten(1).square().sum(1) + two.flatten(1).square().sum(1)) / 2).sqrt()
    np.testing.assert_allclose(score(context, "magnitude")[units], expected.detach(), rtol=1e-6)


def test_random_follows_the_seed() -> None:
    a, b, c = (score(make_context(seed=s), "random") for s in (0, 0, 1))
    np.testing.assert_array_equal(a, b)
    assert len(np.unique(a)) == len(a) and (a != c).any()
    assert a.min() >= 0 and a.max() < 1


@pytest.mark.parametrize("fraction", [0.3, 0.5, 0.8])
def test_uniform_gives_uniform_widths(fraction: float) -> None:
    gm, graph = analysed(Net((40, 80, 60)))
    saliency = score(ScoringContext(gm, graph), "uniform")
    limits = {"macs": int(graph.cost().macs * fraction)}
    selection = select(graph, saliency, limits, constraints=Constraints(Floors(0, 1, 0)))
    kept = graph.widths_of(selection.copies) / graph.widths
    kept = kept[graph.prunable]
    # The threshold keeps the same fraction to within a channel; what is given back is one more.
    assert np.ptp(kept) <= 2 / 40
    assert kept.mean() == pytest.approx(np.sqrt(fraction), abs=0.05)


def test_uniform_by_hand() -> None:
    context = make_context()
    for group in context.graph.groups:
        expected = 1 - (np.arange(group.width) + 0.5) / group.width
        np.testing.assert_allclose(score(context, "uniform")[group.units], expected)


def test_scoring_never_imports_fx_passes() -> None:
    for file in Path(lwdna.scoring.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any("fx_passes" in name for name in names), file
