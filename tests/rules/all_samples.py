"""Every sample: importing a family's file adds its own."""

from tests.rules import (  # noqa: F401
    samples_along,
    samples_contraction,
    samples_detection,
    samples_movement,
    samples_pointwise,
    samples_reduction,
    samples_weights,
)
from tests.rules.samples import SAMPLES, Sample

__all__ = ["SAMPLES", "Sample"]
