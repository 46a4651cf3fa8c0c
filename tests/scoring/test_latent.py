from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lwdna.errors import ScoringError
from lwdna.scoring import SGD, Hypernet, Scoring, ScoringContext, generated, get, score
from tests.scoring.networks import Depthwise, Net, Overflow, Residual, context_of, made

RAW = get("latent-grad", normalize=False)


@pytest.mark.parametrize("name", ["latent-grad", "latent-magnitude"])
def test_normalised_per_group(name: str) -> None:
    context = context_of(made(Residual))
    raw, normalised = (score(context, get(name, normalize=on)) for on in (False, True))
    default = score(context, name)
    np.testing.assert_array_equal(default, normalised if name == "latent-grad" else raw)
    for group in context.graph.groups:
        if raw[group.units].any():
            np.testing.assert_array_equal(
                normalised[group.units], raw[group.units] / raw[group.units].max()
            )
            assert normalised[group.units].max() == 1
        else:
            assert not normalised[group.units].any()


def test_gradients_average_over_batches_before_the_modulus() -> None:
    context = context_of(made(Net, dropout=0), 1)
    (batch,) = context.batches
    once = score(context, RAW)
    twice = score(replace(context, batches=[batch, batch]), RAW)
    np.testing.assert_allclose(once, twice, rtol=1e-12)
    # Opposite losses cancel; the mean of moduli would not.
    signs = iter((1.0, -1.0))
    cancel = replace(
        context,
        batches=[batch, batch],
        loss_fn=lambda out, target: next(signs) * F.cross_entropy(out, target),
    )
    with pytest.warns(UserWarning, match=r"'latent-grad' gives zero .* 3 groups \(one\.0, two"):
        assert not score(cancel, RAW).any()


def test_magnitude_without_steps_is_the_draw() -> None:
    context = context_of(made(Depthwise), [])  # no batch is needed
    z = Hypernet(context).z.abs().numpy()
    np.testing.assert_array_equal(score(context, "latent-magnitude"), z)
    trained = replace(context, options=Scoring(sgd=SGD()))
    with pytest.raises(ScoringError, match="'latent-magnitude' needs at least one batch"):
        score(trained, "latent-magnitude")


def test_two_steps_stay_close_to_the_draw() -> None:
    """With the released settings the steps hardly change the order of |z|."""
    context = context_of(made(Residual), samples=16)
    before = score(context, "latent-magnitude")
    after = score(replace(context, options=Scoring(sgd=SGD())), "latent-magnitude")
    ranks = [np.argsort(np.argsort(a)) for a in (before, after)]
    assert (before != after).all() and np.corrcoef(*ranks)[0, 1] > 0.95


def test_zero_initialised_gains_do_not_block_the_gradient() -> None:
    class Branch(Residual):
        def __init__(self) -> None:
            super().__init__()
            self.two = nn.Sequential(nn.Conv2d(8, 6, 1), nn.Conv2d(6, 8, 1), nn.BatchNorm2d(8))
            nn.init.zeros_(self.two[2].weight)

    context = context_of(Branch())
    (inner,) = (g for g in context.graph.groups if g.name == "two.0")
    assert inner.prunable
    assert score(context)[inner.units].all()
    assert not context.network.get_parameter("two.2.weight").any()  # only while scoring
    trained = replace(context, options=Scoring(sgd=SGD()))
    assert "two.2.weight" not in generated(trained)
    assert "two.2.bias" in generated(trained)


def test_frozen_parameters_are_scored_and_trained_too() -> None:
    for sgd in (None, SGD()):
        context = context_of(made(Net), options=Scoring(sgd=sgd))
        expected = score(context)
        context.network.requires_grad_(False)
        np.testing.assert_array_equal(score(context), expected)
        assert not any(p.requires_grad for p in context.network.parameters())


def test_generated_gives_what_was_scored() -> None:
    context = context_of(made(Residual), options=Scoring(sgd=SGD()))
    fresh = generated(context)
    for name in ("latent-grad", "latent-magnitude"):
        scored = replace(context)
        score(scored, name)
        for tensors in (generated(scored), generated(scored)):
            assert tensors.keys() == fresh.keys()
            assert all(torch.equal(t, fresh[key]) for key, t in tensors.items())
            assert not any(t.requires_grad for t in tensors.values())


def test_generated_for_another_seed_or_size_is_another() -> None:
    context = context_of(made(Residual), [])
    score(context, "latent-magnitude")
    here, elsewhere = generated(context), generated(replace(context, seed=1))
    assert not torch.equal(here["one.0.weight"], elsewhere["one.0.weight"])
    other = generated(context, embedding=2)
    assert not torch.equal(here["one.0.weight"], other["one.0.weight"])
    assert here.keys() == {"one.0.weight", "two.0.weight", "three.0.weight"}


def test_half_precision_networks() -> None:
    context = context_of(made(Net), dtype=torch.bfloat16)
    assert context.batches[0].inputs[0].dtype is torch.bfloat16
    assert score(context).any()
    assert generated(context)["one.0.weight"].dtype is torch.bfloat16


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batches": []}, "'latent-grad' needs at least one batch: pass data"),
        (
            {"loss_fn": lambda out, target: Overflow.apply(out)},
            r"gradient of '\w+\.0\.weight' is NaN or infinite on batch 0",
        ),
    ],
)
def test_refusals(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ScoringError, match=message):
        score(replace(context_of(made(Net)), **change))


def test_a_loss_must_depend_on_generated_weights() -> None:
    context = context_of(made(Net))

    def bias_only(model: Any, batch: Any) -> Tensor:
        model(batch[0])
        return context.network.get_parameter("fc.bias").square().sum()

    with pytest.raises(ScoringError, match="batch 0 depends on no convolution or linear weight"):
        score(replace(context, step_fn=bias_only))


def test_something_must_be_generated() -> None:
    context: ScoringContext = context_of(made(Net))
    no_roles = replace(context, graph=replace(context.graph, roles={}))
    with pytest.raises(ScoringError, match="nothing to generate: score with 'magnitude'"):
        score(no_roles)
    with pytest.raises(ValueError, match="embedding=0"):
        score(context, get("latent-grad", embedding=0))
