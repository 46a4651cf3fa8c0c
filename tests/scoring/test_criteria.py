from __future__ import annotations

import ast
import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lwdna.scoring
from lwdna.errors import ScoringError
from lwdna.scoring import (
    NamedCriterion,
    ScoringContext,
    as_batches,
    criteria,
    criterion,
    get,
    score,
)
from lwdna.scoring.criteria import _CRITERIA
from tests.scoring.networks import NETWORKS, Net, Tokens, context_of, made

NAMES = {
    "latent-grad",
    "latent-magnitude",
    "taylor",
    "snip",
    "grasp",
    "synflow",
    "fisher",
    "magnitude",
    "fpgm",
    "bn-scale",
    "random",
    "uniform",
}


@pytest.fixture
def registry() -> Iterator[None]:
    before = dict(_CRITERIA)
    yield
    _CRITERIA.clear()
    _CRITERIA.update(before)


def first_come(context: ScoringContext) -> np.ndarray:
    return -np.arange(context.graph.units)


def graded(context: ScoringContext, *, power: float = 1.0) -> np.ndarray:
    return np.arange(context.graph.units) ** power


def test_names() -> None:
    assert set(criteria()) == NAMES and len(criteria()) == len(NAMES)


@pytest.mark.filterwarnings("ignore:criterion 'bn-scale' gives zero")  # no norm, no gain
@pytest.mark.parametrize("name", sorted(NAMES))
@pytest.mark.parametrize("model", NETWORKS)
def test_one_finite_number_per_unit_and_the_same_again(name: str, model: Any) -> None:
    if name == "bn-scale" and model is Tokens:
        return  # refused: see test_weights
    context = context_of(made(model), dtype=torch.float32)  # with dropout
    saliency = score(context, name)
    assert saliency.shape == (context.graph.units,) and saliency.dtype == np.float64
    assert np.isfinite(saliency).all() and saliency.any()
    torch.rand(3)
    np.testing.assert_array_equal(saliency, score(context, name))
    if name != "grasp":
        assert (saliency >= 0).all()


@pytest.mark.parametrize("name", ["latent-grad", "latent-magnitude", "random"])
def test_another_seed_gives_other_scores(name: str) -> None:
    context = context_of(made(Net), dtype=torch.float32)
    assert (score(context, name) != score(replace(context, seed=1), name)).any()


def test_dropout_follows_the_seed() -> None:
    context = context_of(made(Net), dtype=torch.float32)
    assert (score(context, "taylor") != score(replace(context, seed=1), "taylor")).any()


def test_registered_by_the_user(registry: None) -> None:
    assert criterion("first-come")(first_come) is first_come
    assert criteria()[-1] == "first-come" and get("first-come").function is first_come
    context = context_of(made(Net), [])
    np.testing.assert_array_equal(score(context, "first-come"), first_come(context))


def test_a_duplicate_is_refused(registry: None) -> None:
    with pytest.raises(ValueError, match="'magnitude' is registered already"):
        criterion("magnitude")(first_come)
    assert get("magnitude").function is not first_come


def test_a_callable_needs_no_name() -> None:
    context = context_of(made(Net), [])
    np.testing.assert_array_equal(score(context, first_come), first_come(context))
    assert score(context, first_come).dtype == np.float64
    assert get(first_come) == NamedCriterion("first_come", {}, first_come)
    assert get(functools.partial(graded, power=2.0)).name == "custom"


def test_options() -> None:
    context = context_of(made(Net), [])
    chosen = get(graded, power=2.0)
    assert str(chosen) == "graded(power=2.0)" and str(get(graded)) == "graded"
    np.testing.assert_array_equal(score(context, chosen), graded(context, power=2.0))
    again = get(chosen, power=3.0)
    assert str(again) == "graded(power=3.0)" and str(chosen) == "graded(power=2.0)"
    assert get(chosen) == chosen
    anything = get(lambda context, **options: np.full(context.graph.units, options["a"]), a=2.0)
    assert (score(context, anything) == 2).all()
    both = get("latent-grad", normalize=False, embedding=2)
    assert str(both) == "latent-grad(normalize=False, embedding=2)"
    assert str(get(both, embedding=4)) == "latent-grad(normalize=False, embedding=4)"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("latent-grad", {"norm": "l1"}, "'latent-grad' has no option 'norm'; it has 'normalize', "),
        ("random", {"a": 1, "b": 2}, "'random' has no option 'a', 'b'; it has none"),
        (graded, {"exponent": 2}, "'graded' has no option 'exponent'; it has 'power'"),
        (get("magnitude", norm="l1"), {"p": 1}, "'magnitude' has no option 'p'; it has 'norm'"),
        (graded, {"context": 2}, "has no option 'context'"),
    ],
)
def test_unknown_options(name: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        get(name, **options)


def test_unknown() -> None:
    with pytest.raises(ValueError, match=r"'l1': one of .*latent-grad.*, or a callable"):
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
        score(context_of(made(Net), []), wrong)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_named_by_group(bad: float) -> None:
    context = context_of(made(Net), [])

    def wrong(context: ScoringContext) -> np.ndarray:
        result = np.ones(context.graph.units)
        for name in ("two.0", "fc"):
            (group,) = (g for g in context.graph.groups if g.name == name)
            result[group.units[-1]] = bad
        return result

    with pytest.raises(ScoringError, match=r"in 2 of the \d channel groups \('two\.0', 'fc'\)"):
        score(context, wrong)


def test_a_group_of_zeros_is_warned_of() -> None:
    def zeros(context: ScoringContext) -> np.ndarray:
        result = np.ones(context.graph.units)
        (group,) = (g for g in context.graph.groups if g.name == "two.0")
        result[group.units] = 0
        result[~context.graph.prunable[context.graph.group_of]] = 0  # of no importance
        return result

    with pytest.warns(UserWarning, match=r"'zeros' gives zero .* 1 groups \(two\.0\)") as caught:
        score(context_of(made(Net), []), zeros)
    assert [w.filename for w in caught] == [__file__]


def test_integers_and_lists_become_float64() -> None:
    context = context_of(made(Net), [])
    for result in (list(range(context.graph.units)), np.arange(context.graph.units)):
        saliency = score(context, lambda _, result=result: result)
        assert saliency.dtype == np.float64


def test_data_of_another_kind_gives_the_same_scores() -> None:
    context = context_of(made(Net), 1)
    (batch,) = context.batches
    pairs = as_batches((batch.inputs[0].float(), batch.targets), network=context.network)
    dicts = as_batches(
        {"label": batch.targets, "x": batch.inputs[0].float()}, network=context.network
    )
    a, b = (score(replace(context, batches=batches)) for batches in (pairs, dicts))
    np.testing.assert_array_equal(a, b)


def test_scoring_never_imports_fx_passes() -> None:
    for file in Path(lwdna.scoring.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any("fx_passes" in name for name in names), file
