"""Channel rules of the ATen operators, one file per family."""

from lwdna.fx_passes.rules import (  # noqa: F401  (importing registers the rules)
    along,
    contraction,
    detection,
    einsum,
    indexing,
    movement,
    normalisation,
    patches,
    pointwise,
    reduction,
    resampling,
    strided,
)
from lwdna.fx_passes.rules.registry import OpCall, registered, rule_for

__all__ = ["OpCall", "registered", "rule_for"]
