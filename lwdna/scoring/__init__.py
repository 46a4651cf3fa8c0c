"""Scoring: which channels matter. Nothing here imports ``lwdna.fx_passes``."""

from lwdna.scoring.batches import Batch, StepFn, as_batches, synthetic, take
from lwdna.scoring.context import LossFn, ScoringContext, preserved
from lwdna.scoring.criteria import (
    Criterion,
    NamedCriterion,
    Saliency,
    criteria,
    criterion,
    get,
    score,
)
from lwdna.scoring.flow import fisher, synflow
from lwdna.scoring.hypernet import Hypernet, Latent, Layer
from lwdna.scoring.latent import generated, latent_grad, latent_magnitude
from lwdna.scoring.loss import batch_loss
from lwdna.scoring.options import SGD, Scoring
from lwdna.scoring.ranks import Ranks
from lwdna.scoring.sensitivity import grasp, snip, taylor
from lwdna.scoring.weights import bn_scale, fpgm, magnitude, random, uniform

__all__ = [
    "SGD",
    "Batch",
    "Criterion",
    "Hypernet",
    "Latent",
    "Layer",
    "LossFn",
    "NamedCriterion",
    "Ranks",
    "Saliency",
    "Scoring",
    "ScoringContext",
    "StepFn",
    "as_batches",
    "batch_loss",
    "bn_scale",
    "criteria",
    "criterion",
    "fisher",
    "fpgm",
    "generated",
    "get",
    "grasp",
    "latent_grad",
    "latent_magnitude",
    "magnitude",
    "preserved",
    "random",
    "score",
    "snip",
    "synflow",
    "synthetic",
    "take",
    "taylor",
    "uniform",
]
