"""What a run has come to, as data and as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from math import isfinite
from pathlib import Path

import lightning_fabric

from lwdna.dna import versions
from lwdna.errors import DnaError, TrainingError
from lwdna.strict_json import build, parse
from lwdna.training.protocol import Protocol

FORMAT = 1


@dataclass(frozen=True)
class Result:
    """A finished run.

    Attributes:
        protocol: what was done.
        seed: of order and changes of the images, and of dropout.
        data: name of the data.
        network: what was trained.
        cost: MACs, params ... of the network, of one input as its DNA says; None if it has no DNA.
        epochs: metrics of each epoch: ``"lr"``, ``"train/loss"``, ``"train/top1"``, and
            ``"test/metric"``, for a moving average ``"ema/test/metric"``; ``top1`` and ``top5`` are
            shares, ``psnr`` is in dB.
        batches: a digest of each epoch's first batch: runs of the same data, seed and protocol have
            the same.
        seconds: of each epoch.
        device: its type, and its name if it is a GPU.
        processes: how many there were.
        versions: of Python and the packages.

    Raises:
        TrainingError: a metric that is not finite, which JSON does not have.
    """

    protocol: Protocol
    seed: int
    data: str
    network: str
    cost: Mapping[str, int] | None
    epochs: tuple[Mapping[str, float], ...]
    batches: tuple[str, ...]
    seconds: tuple[float, ...]
    device: str
    processes: int
    versions: Mapping[str, str]

    def __post_init__(self) -> None:
        for epoch, metrics in enumerate(self.epochs):
            for name, value in metrics.items():
                if not isfinite(value):
                    raise TrainingError(f"{name} of epoch {epoch} is {value}: it has diverged")

    @property
    def metrics(self) -> Mapping[str, float]:
        """Of the last epoch."""
        return self.epochs[-1]

    def to_json(self) -> str:
        """The result as JSON text."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Result:
        """Read :meth:`to_json`'s text.

        Raises:
            TrainingError: it is none.
        """
        try:
            values = parse(text, "the result")
            if not isinstance(values, dict) or values.pop("format", None) != FORMAT:
                raise TrainingError(f"no result of format {FORMAT}")
            result: Result = build(cls, values, "the result")
        except DnaError as e:
            raise TrainingError(str(e)) from e
        return result


def read_result(folder: str | Path) -> Result:
    """The result that :func:`lwdna.training.fit` wrote into a directory.

    Raises:
        TrainingError: there is none.
    """
    path = Path(folder) / "result.json"
    try:
        return Result.from_json(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise TrainingError(f"{folder} holds no finished run: {e}") from e


def all_versions() -> dict[str, str]:
    """Versions of Python, the packages that shape networks, and those that train them."""
    of_training = {package: version(package) for package in ("torchmetrics", "pillow")}
    return {**versions(), "lightning-fabric": lightning_fabric.__version__, **of_training}
