from __future__ import annotations

from dataclasses import FrozenInstanceError, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lwdna.scoring import SGD, Scoring, ScoringContext, as_batches, get, score
from lwdna.scoring.gradients import average
from tests.scoring.networks import Net, Residual, Tokens, context_of, made
from tests.scoring.reference import Reference

RAW = get("latent-grad", normalize=False)


def test_defaults_are_those_of_the_released_code() -> None:
    assert Scoring() == Scoring(2, None, "mean", 0.9, False, None)
    assert SGD() == SGD(0.1, 0.9, 1e-4)
    with pytest.raises(FrozenInstanceError):
        Scoring().batches = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batches": 0}, ValueError, "batches=0: must be at least 1"),
        ({"batches": 1.0}, TypeError, "batches=1.0: an int, not float"),
        ({"batches": True}, TypeError, "batches=True"),
        ({"batches": None}, TypeError, "batches=None"),
        ({"micro_batch": 0}, ValueError, "micro_batch=0: must be at least 1"),
        ({"micro_batch": "2"}, TypeError, "micro_batch='2': an int, not str"),
        ({"sgd": True}, TypeError, r"sgd=True: lwdna\.SGD\(lr=\.\.\.\) or None"),
        ({"average": "median"}, ValueError, "average='median': one of mean, last, exponential"),
        ({"decay": 1}, ValueError, r"decay=1 must lie in \[0, 1\)"),
        ({"decay": -0.1}, ValueError, "decay=-0.1"),
        ({"decay": float("nan")}, ValueError, "decay=nan"),
        ({"bfloat16": 1}, TypeError, "bfloat16=1: True or False"),
    ],
)
def test_bad_options(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Scoring(**options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"lr": 0}, ValueError, "lr=0 must be finite"),
        ({"lr": -1.0}, ValueError, "lr=-1.0"),
        ({"lr": float("inf")}, ValueError, "lr=inf"),
        ({"lr": "fast"}, TypeError, "lr='fast': a number"),
        ({"lr": True}, TypeError, "lr=True"),
        ({"momentum": 1.0}, ValueError, "momentum=1.0 must be finite, >= 0.0 and < 1.0"),
        ({"momentum": float("nan")}, ValueError, "momentum=nan"),
        ({"weight_decay": -1e-4}, ValueError, "weight_decay=-0.0001"),
    ],
)
def test_bad_sgd(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        SGD(**options)


def test_averages_by_hand() -> None:
    a, b, c = (np.array(x) for x in ([1.0, -2.0], [3.0, 5.0], [-1.0, 0.0]))

    def of(*scores: Any, **options: Any) -> np.ndarray:
        return average(scores, Scoring(**options))

    np.testing.assert_allclose(of(a, b, c), [1, 1])
    np.testing.assert_array_equal(of(a, b, c, average="last"), c)
    moving, expected = np.zeros(2), []
    for t, x in enumerate((a, b, c), 1):  # as in Adam
        moving = 0.75 * moving + 0.25 * x
        expected.append(moving / (1 - 0.75**t))
    for n in (1, 2, 3):
        actual = of(*(a, b, c)[:n], average="exponential", decay=0.75)
        np.testing.assert_allclose(actual, expected[n - 1], rtol=1e-12)
    np.testing.assert_array_equal(of(a, b, c, average="exponential", decay=0.0), c)


@pytest.mark.parametrize("name", ["snip", "latent-grad"])
@pytest.mark.parametrize("kind", ["mean", "last", "exponential"])
def test_averages_of_scores(name: str, kind: Any) -> None:
    """Those of latent gradients are taken before the modulus."""
    context = context_of(made(Residual, dropout=0), 3)
    options = Scoring(average=kind, decay=0.6)
    actual = score(replace(context, options=options), RAW if name == "latent-grad" else name)
    singles = [signed(replace(context, batches=[b]), name) for b in context.batches]
    weights = {
        "mean": [1 / 3, 1 / 3, 1 / 3],
        "last": [0, 0, 1],
        "exponential": np.array([0.144, 0.24, 0.4]) / (1 - 0.6**3),
    }[kind]
    expected = np.abs(np.tensordot(weights, singles, 1))
    np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-12 * expected.max())


def signed(context: ScoringContext, name: str) -> np.ndarray:
    """Scores of one batch, latent gradients with their signs."""
    if name != "latent-grad":
        return score(context, name)
    return Reference(context, 8).step(context.batches[0]).numpy()


def test_number_of_batches() -> None:
    x, y = torch.randn(4, 3, 8, 8), torch.randint(5, (4,))
    calls = []

    def loss(out: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        calls.append(len(target))
        return nn.functional.cross_entropy(out, target)

    context = context_of(made(Net), 1, loss_fn=loss)
    for n in (1, 3):
        calls.clear()
        batches = as_batches(iter([(x, y)] * 5), n, network=context.network)
        score(replace(context, batches=batches), "snip")
        assert calls == [4] * n


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    ranks = [np.argsort(np.argsort(x)) for x in (a, b)]
    return float(np.corrcoef(*ranks)[0, 1])


@pytest.mark.parametrize("model", [Net, Residual, Tokens])
@pytest.mark.parametrize("name", ["latent-grad", "taylor", "snip", "grasp", "fisher"])
def test_bfloat16_is_close(model: type[nn.Module], name: str) -> None:
    context = context_of(made(model, dropout=0), samples=16, dtype=torch.float32)
    criterion = RAW if name == "latent-grad" else name
    full, half = (
        score(replace(context, options=Scoring(bfloat16=on)), criterion) for on in (False, True)
    )
    prunable = context.graph.prunable[context.graph.group_of]
    assert spearman(full[prunable], half[prunable]) > 0.85
    assert np.abs(full - half).max() < 0.25 * np.abs(full).max()
    assert (full != half).any()


def test_bfloat16_leaves_float64_alone() -> None:
    context = context_of(made(Residual))
    half = replace(context, options=Scoring(bfloat16=True))
    np.testing.assert_array_equal(score(context), score(half))
