"""lwdna: layer-wise differentiated network architectures by shrinking a widened network once."""

from lwdna import recipes, rules
from lwdna.api import attainable, shrink
from lwdna.budget import Budget
from lwdna.constraints import Constraints, Floors
from lwdna.cost import Cost
from lwdna.dna import Dna, GroupWidth
from lwdna.errors import (
    AnalysisError,
    BudgetError,
    CaptureError,
    ConstraintError,
    LatencyError,
    LwdnaError,
    ResizeError,
    ScoringError,
    UnsupportedModelError,
    VerificationError,
)
from lwdna.explanation import Explanation, explain
from lwdna.fx_passes.analyse import analyse
from lwdna.fx_passes.capture import capture
from lwdna.fx_passes.outputs import output_channels
from lwdna.fx_passes.resize import resize
from lwdna.fx_passes.shrink import shrink_graph
from lwdna.fx_passes.verify import Verification, verify
from lwdna.fx_passes.widen import widen
from lwdna.graph import ChannelGraph, ChannelGroup
from lwdna.latency import LatencyTable, measure_latency, preferred_divisor
from lwdna.scoring import SGD, Scoring, ScoringContext, criteria, criterion, score
from lwdna.scoring import get as get_criterion
from lwdna.selection import Selection, select

__version__ = "0.1.0"

__all__ = [
    "SGD",
    "AnalysisError",
    "Budget",
    "BudgetError",
    "CaptureError",
    "ChannelGraph",
    "ChannelGroup",
    "ConstraintError",
    "Constraints",
    "Cost",
    "Dna",
    "Explanation",
    "Floors",
    "GroupWidth",
    "LatencyError",
    "LatencyTable",
    "LwdnaError",
    "ResizeError",
    "Scoring",
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
    "get_criterion",
    "measure_latency",
    "output_channels",
    "preferred_divisor",
    "recipes",
    "resize",
    "rules",
    "score",
    "select",
    "shrink",
    "shrink_graph",
    "verify",
    "widen",
]
