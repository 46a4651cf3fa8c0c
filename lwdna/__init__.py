"""lwdna: layer-wise differentiated network architectures by shrinking a widened network once."""

from lwdna import recipes
from lwdna.api import shrink
from lwdna.budget import Budget, Floors, attainable
from lwdna.cost import Cost
from lwdna.dna import Dna, GroupWidth
from lwdna.errors import (
    AnalysisError,
    BudgetError,
    CaptureError,
    LwdnaError,
    ResizeError,
    ScoringError,
    UnsupportedModelError,
    VerificationError,
)
from lwdna.explanation import Explanation, explain
from lwdna.fx_passes.analyse import analyse
from lwdna.fx_passes.capture import capture
from lwdna.fx_passes.resize import resize
from lwdna.fx_passes.shrink import shrink_graph
from lwdna.fx_passes.verify import Verification, verify
from lwdna.fx_passes.widen import widen
from lwdna.graph import ChannelGraph, ChannelGroup
from lwdna.scoring import ScoringContext, criteria, criterion, score
from lwdna.selection import Selection, select

__version__ = "0.1.0"

__all__ = [
    "AnalysisError",
    "Budget",
    "BudgetError",
    "CaptureError",
    "ChannelGraph",
    "ChannelGroup",
    "Cost",
    "Dna",
    "Explanation",
    "Floors",
    "GroupWidth",
    "LwdnaError",
    "ResizeError",
    "ScoringContext",
    "ScoringError",
    "Selection",
    "UnsupportedModelError",
    "Verification",
    "VerificationError",
    "analyse",
    "attainable",
    "capture",
    "criteria",
    "criterion",
    "explain",
    "recipes",
    "resize",
    "score",
    "select",
    "shrink",
    "shrink_graph",
    "verify",
    "widen",
]
