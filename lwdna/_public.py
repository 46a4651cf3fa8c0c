"""The public names. ``lwdna`` itself takes them from here when the first of them is asked for."""

from lwdna import recipes, rules
from lwdna.api import attainable, shrink
from lwdna.budget import Budget
from lwdna.comparison import DnaDiff, diff
from lwdna.constraints import Constraints, Floors
from lwdna.cost import Cost
from lwdna.dna import Dna
from lwdna.errors import (
    AnalysisError,
    BudgetError,
    CaptureError,
    ConstraintError,
    DnaError,
    LatencyError,
    LwdnaError,
    ResizeError,
    ScoringError,
    SourceError,
    TrainingError,
    UnsupportedModelError,
    VerificationError,
)
from lwdna.explanation import Explanation, explain
from lwdna.export import export_source
from lwdna.files import load, save
from lwdna.fx_passes.analyse import analyse
from lwdna.fx_passes.capture import capture
from lwdna.fx_passes.outputs import output_channels
from lwdna.fx_passes.resize import resize
from lwdna.fx_passes.shrink import shrink_graph
from lwdna.fx_passes.verify import Verification, verify
from lwdna.fx_passes.widen import widen
from lwdna.graph import ChannelGraph, ChannelGroup
from lwdna.group_width import GroupWidth
from lwdna.latency import LatencyTable, measure_latency, preferred_divisor
from lwdna.rebuilding import rebuild
from lwdna.reporting import report
from lwdna.scoring import SGD, Scoring, ScoringContext, criteria, criterion, score
from lwdna.scoring import get as get_criterion
from lwdna.selection import Selection, select
from lwdna.source import ModelSource, create

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
    "DnaDiff",
    "DnaError",
    "Explanation",
    "Floors",
    "GroupWidth",
    "LatencyError",
    "LatencyTable",
    "LwdnaError",
    "ModelSource",
    "ResizeError",
    "Scoring",
    "ScoringContext",
    "ScoringError",
    "Selection",
    "SourceError",
    "TrainingError",
    "UnsupportedModelError",
    "Verification",
    "VerificationError",
    "analyse",
    "attainable",
    "capture",
    "create",
    "criteria",
    "criterion",
    "diff",
    "explain",
    "export_source",
    "get_criterion",
    "load",
    "measure_latency",
    "output_channels",
    "preferred_divisor",
    "rebuild",
    "recipes",
    "report",
    "resize",
    "rules",
    "save",
    "score",
    "select",
    "shrink",
    "shrink_graph",
    "verify",
    "widen",
]
