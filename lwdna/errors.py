"""The exceptions of lwdna. This module imports nothing of the package."""

from __future__ import annotations

from collections.abc import Iterable


class LwdnaError(Exception):
    """Base class of every error that lwdna raises about a model, a graph or a result."""


class CaptureError(LwdnaError):
    """The model cannot be written as one static graph; quotes the source line that forbids it."""


class UnsupportedModelError(LwdnaError):
    """The model is in a state that cannot be worked on; says how to bring it into one that can."""


class AnalysisError(LwdnaError):
    """An operator contradicts its channel rule; names the node, the operator and the shapes."""


class ResizeError(LwdnaError):
    """A node of the resized graph disagrees with its predicted shape; names node and shapes."""


class BudgetError(LwdnaError, ValueError):
    """The budget cannot be met; carries the attainable range.

    Attributes:
        attainable: metric name -> (least, most) that the floors and the widening allow.
    """

    def __init__(self, message: str, attainable: dict[str, tuple[int, int]] | None = None) -> None:
        super().__init__(message)
        self.attainable = attainable or {}


class ConstraintError(LwdnaError, ValueError):
    """Constraints contradict one another or the network; lists every contradiction.

    Attributes:
        problems: one sentence per contradiction.
    """

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        count = f"{len(self.problems)} constraints" if len(self.problems) > 1 else "1 constraint"
        super().__init__("\n  - ".join([f"{count} cannot hold:", *self.problems]))


class ScoringError(LwdnaError):
    """The batch or the loss cannot score channels (wrong shape, empty, NaN, no gradient)."""


class LatencyError(LwdnaError, ValueError):
    """A latency budget without a table that fits, or a table that cannot be measured or read."""


class VerificationError(LwdnaError, AssertionError):
    """An invariant does not hold; names the invariant, the tensor and the difference."""


class SourceError(LwdnaError, ValueError):
    """How a network is constructed is unknown, not trusted or wrong; says what to pass instead."""


class DnaError(LwdnaError, ValueError):
    """A DNA, or a file with one, is damaged, of another format or of another network."""


class TrainingError(LwdnaError, ValueError):
    """A protocol contradicts itself, or data, network or checkpoint do not fit it."""
