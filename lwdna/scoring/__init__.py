"""Scoring: which channels matter. Nothing here imports ``lwdna.fx_passes``."""

from lwdna.scoring.batches import as_batches, synthetic
from lwdna.scoring.context import Batch, LossFn, ScoringContext, preserved
from lwdna.scoring.criteria import (
    Criterion,
    Saliency,
    criteria,
    criterion,
    get,
    magnitude,
    random,
    score,
    uniform,
)
from lwdna.scoring.hypernet import Generated, Latent, generate, latent_grad
from lwdna.scoring.loss import batch_loss

__all__ = [
    "Batch",
    "Criterion",
    "Generated",
    "Latent",
    "LossFn",
    "Saliency",
    "ScoringContext",
    "as_batches",
    "batch_loss",
    "criteria",
    "criterion",
    "generate",
    "get",
    "latent_grad",
    "magnitude",
    "preserved",
    "random",
    "score",
    "synthetic",
    "uniform",
]
