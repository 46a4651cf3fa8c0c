"""A training protocol as data: checked, read from JSON and TOML, changed by ``key=value``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from lwdna.errors import DnaError, TrainingError
from lwdna.recipes import Distillation
from lwdna.strict_json import build, parse, with_defaults
from lwdna.training.preparation import (
    Images,
    Patches,
    require,
    require_positive,
    require_shares,
)

Task = Literal["classification", "super-resolution", "denoising"]
Schedule = Literal["cosine", "step", "constant"]
Loss = Literal["cross_entropy", "l1", "l2"]
Precision = Literal["32-true", "bf16-mixed", "16-mixed", "64-true"]


@dataclass(frozen=True)
class Protocol:
    """All that decides what a training run computes, but network, data, seed and machine.

    Attributes:
        name: of the protocol.
        source: where the settings are from.
        task: classification, super-resolution or denoising.
        epochs: passes over the training set.
        batch: images per optimiser step, over all processes; what is left of an epoch is dropped.
        lr: learning rate after warm-up.
        optimizer: timm's name: ``"momentum"`` is SGD with classical momentum, ``"sgd"`` is timm's,
            with Nesterov's; ``"adam"``, ``"adamw"``, ``"lamb"`` ...
        momentum: of optimisers that have one.
        weight_decay: of the optimiser.
        decay_all: decay biases and norms, too, as PyTorch does by default; timm leaves them out.
        schedule: of the learning rate, by epoch: cosine to ``min_lr``, steps, or constant.
        milestones: epochs after which a step schedule multiplies the rate by ``gamma``.
        gamma: factor of a step.
        min_lr: where a cosine ends.
        warmup_epochs: epochs of linear warm-up, counted among ``epochs``.
        warmup_lr: where the warm-up starts.
        loss: cross entropy, mean absolute or mean squared error.
        smoothing: label smoothing.
        clip: greatest norm of the gradient of all parameters; None for no limit.
        ema: decay of the weights' moving average, which then is the result; None for none.
        precision: of Lightning Fabric: ``"32-true"``, ``"bf16-mixed"``, ``"16-mixed"`` (GPUs only)
            or ``"64-true"``.
        images: of classification.
        patches: of super-resolution and denoising.
        distillation: training beside a teacher; None for none.

    Raises:
        TrainingError: settings out of range, or that contradict one another.
    """

    name: str
    source: str
    task: Task
    epochs: int
    batch: int
    lr: float
    optimizer: str = "momentum"
    momentum: float = 0.9
    weight_decay: float = 0.0
    decay_all: bool = True
    schedule: Schedule = "cosine"
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    min_lr: float = 0.0
    warmup_epochs: int = 0
    warmup_lr: float = 0.0
    loss: Loss = "cross_entropy"
    smoothing: float = 0.0
    clip: float | None = None
    ema: float | None = None
    precision: Precision = "32-true"
    images: Images | None = None
    patches: Patches | None = None
    distillation: Distillation | None = None

    def __post_init__(self) -> None:
        for name in ("task", "schedule", "loss", "precision"):
            kinds = get_args(get_type_hints(type(self))[name])
            require(getattr(self, name) in kinds, name, getattr(self, name), f"one of {kinds}")
        require_positive(self, "epochs", "batch", "lr")
        for name in ("momentum", "weight_decay", "min_lr", "warmup_epochs", "warmup_lr"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        require_shares(self, "smoothing")
        require(self.clip is None or self.clip > 0, "clip", self.clip, "positive, or null")
        require(self.ema is None or 0 < self.ema < 1, "ema", self.ema, "between 0 and 1, or null")
        require(self.warmup_epochs < self.epochs, "warmup_epochs", self.warmup_epochs, "< epochs")
        self._check_steps()
        self._check_task()

    def _check_steps(self) -> None:
        steps = self.milestones
        require(list(steps) == sorted(set(steps)), "milestones", steps, "in ascending order")
        if self.schedule == "step":
            require(bool(steps), "milestones", steps, "named for schedule='step'")
        else:
            require(not steps, "milestones", steps, f"empty for schedule={self.schedule!r}")

    def _check_task(self) -> None:
        classifies = self.task == "classification"
        for name, wanted in (("images", classifies), ("patches", not classifies)):
            there = getattr(self, name) is not None
            require(there == wanted, name, getattr(self, name), f"{_given(wanted)} {self.task}")
        cross = self.loss == "cross_entropy"
        require(cross == classifies, "loss", self.loss, f"another for {self.task}")
        if not classifies:
            require(self.distillation is None, "distillation", "given", "for classification only")
            require(self.smoothing == 0, "smoothing", self.smoothing, "0 without cross entropy")
        if self.patches is not None:
            enlarges, noisy = self.patches.scale > 1, self.patches.sigma > 0
            wanted_scale = self.task == "super-resolution"
            require(enlarges == wanted_scale, "patches.scale", self.patches.scale, _SCALE)
            require(noisy != wanted_scale, "patches.sigma", self.patches.sigma, _SIGMA)

    def to_json(self) -> str:
        """The protocol as JSON text."""
        return json.dumps(asdict(self), indent=1) + "\n"

    def to_toml(self) -> str:
        """The protocol as TOML text; what is None is left out."""
        import tomli_w  # of the extra "train"

        return tomli_w.dumps(_without_none(asdict(self)))

    @classmethod
    def from_json(cls, text: str) -> Protocol:
        """Read JSON text; fields that have a default may be missing.

        Raises:
            TrainingError: no JSON; fields missing, unknown or of another type; see the class.
        """
        try:
            return cls.from_dict(parse(text, "the protocol"))
        except DnaError as e:
            raise TrainingError(str(e)) from e

    @classmethod
    def from_toml(cls, text: str) -> Protocol:
        """Read TOML text, as :meth:`from_json` reads JSON.

        Raises:
            TrainingError: see :meth:`from_json`.
        """
        import tomllib

        try:
            return cls.from_dict(tomllib.loads(text))
        except tomllib.TOMLDecodeError as e:
            raise TrainingError(f"the protocol is no TOML: {e}") from e

    @classmethod
    def from_dict(cls, values: Any) -> Protocol:
        """Read values of JSON's types.

        Raises:
            TrainingError: see :meth:`from_json`.
        """
        try:
            protocol: Protocol = build(cls, with_defaults(cls, values), "the protocol")
        except DnaError as e:
            raise TrainingError(str(e)) from e
        return protocol

    def but(self, changes: Sequence[str]) -> Protocol:
        """The same protocol with some settings changed.

        Args:
            changes: ``"key=value"``, the value as in JSON (text may stand without quotes), a part
                of a part as ``"images.size=64"``.

        Raises:
            TrainingError: no such setting, or see :meth:`from_json`.

        >>> PRESETS["cifar-resnet56"].but(["epochs=2", "milestones=[1]"])  # doctest: +SKIP
        """
        values = asdict(self)
        for change in changes:
            key, equals, text = change.partition("=")
            *parts, last = key.strip().split(".")
            place: Any = values
            for part in parts:
                place = place.get(part) if isinstance(place, dict) else None
                if place is None and part in ("images", "patches", "distillation"):
                    raise TrainingError(
                        f"{change!r}: this protocol has no {part}: set them all, {part}={{...}}"
                    )
            if not equals or not isinstance(place, dict) or last not in place:
                raise TrainingError(
                    f"{change!r} changes no setting: write key=value, a key of {sorted(values)}"
                )
            place[last] = _value(text)
        return self.from_dict(values)


def read_protocol(path: str | Path) -> Protocol:
    """A protocol from a ``.json`` or ``.toml`` file.

    Raises:
        TrainingError: the file is neither, cannot be read, or see :meth:`Protocol.from_json`.
    """
    path = Path(path)
    readers = {".json": Protocol.from_json, ".toml": Protocol.from_toml}
    if path.suffix not in readers:
        raise TrainingError(f"{path}: a protocol is a .json or .toml file")
    try:
        return readers[path.suffix](path.read_text(encoding="utf-8"))
    except (OSError, UnicodeError) as e:
        raise TrainingError(f"{path} cannot be read: {e}") from e


_SCALE = "above 1 for super-resolution, and 1 for denoising"
_SIGMA = "above 0 for denoising, and 0 for super-resolution"


def _given(wanted: bool) -> str:
    return "given for" if wanted else "null for"


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text.strip()  # text without quotes


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _without_none(value) if isinstance(value, dict) else value
        for key, value in values.items()
        if value is not None
    }
