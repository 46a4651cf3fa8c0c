"""A table of the comparison: networks, data, budgets, methods and seeds, read from TOML."""

from __future__ import annotations

import inspect
import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import lwdna
from benchmarks.compare.data import Choice
from benchmarks.pruners import IMPORTANCES
from lwdna.errors import DnaError
from lwdna.strict_json import build, with_defaults
from lwdna.training import PRESETS, Protocol

Kind = Literal["baseline", "shrink", "torch-pruning"]
#: Seeds are below it: draw k of seed s has the seed ``s + SEEDS * k``.
SEEDS = 1000

#: Arguments of lwdna.shrink that are a run's, and none of a method.
_OF_THE_RUN = {"model", "budget", "data", "loss_fn", "step_fn", "latency", "example_inputs"}
_OF_THE_RUN |= {"device", "seed", "progress"}
_DEFAULTS = {
    name: parameter.default
    for name, parameter in inspect.signature(lwdna.shrink).parameters.items()
    if name not in _OF_THE_RUN
}


@dataclass(frozen=True)
class Pair:
    """A network and the data it is trained on.

    Attributes:
        name: in tables.
        network: its constructor, as for :func:`lwdna.training.open_network`.
        data: images to train on, and how many are held out.
        preset: name of a published protocol.
        arguments: of the constructor.
        changes: of the protocol, ``"key=value"``.
        test_every: epochs between measurements of a validation run.
        ignored: layers whose outputs Torch-Pruning must leave alone, as its users tell it: those
            before operators that it does not know.
        teacher: of a protocol with distillation: name of a run of ``lwdna train``, in the folder
            ``teachers`` of the output.

    Raises:
        ValueError: there is no such preset, or it cannot be changed so.
    """

    name: str
    network: str
    data: Choice
    preset: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    changes: tuple[str, ...] = ()
    test_every: int = 1
    ignored: tuple[str, ...] = ()
    teacher: str | None = None

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise ValueError(f"preset {self.preset!r}: one of {', '.join(PRESETS)}")
        try:
            _ = self.protocol
        except lwdna.TrainingError as e:
            raise ValueError(f"pair {self.name!r}: {e}") from e
        if (self.teacher is None) != (self.protocol.distillation is None):
            raise ValueError(f"pair {self.name!r}: a teacher for a protocol with distillation")

    @cached_property
    def protocol(self) -> Protocol:
        """How every network of the pair is trained."""
        return PRESETS[self.preset].but(self.changes)

    @property
    def channels(self) -> int:
        """Of pictures; 3 for classifiers, whose images have the number that they have."""
        patches = self.protocol.patches
        return 3 if patches is None else patches.channels


@dataclass(frozen=True)
class Method:
    """A way to come to the widths of a network, and to its weights before training.

    Attributes:
        name: in tables.
        kind: ``"baseline"``, the network as it is; ``"shrink"``, by :func:`lwdna.shrink`;
            ``"torch-pruning"``, the widths that Torch-Pruning comes to.
        draws: runs for every seed, with scores, noise and weights of their own.
        budget: in place of the table's.
        batch: images in a batch that scores; by default the protocol's.
        options: of the criterion.
        shrink: arguments of :func:`lwdna.shrink` in TOML's types: ``criterion``, ``widen``,
            ``scoring`` and ``constraints`` as tables ... What is left out has its default, but for
            ``weights``, which are ``"fresh"``; ``"default"`` leaves them to ``shrink``.

    Raises:
        ValueError: settings that the kind has not, or that ``shrink`` does not take.
    """

    name: str
    kind: Kind = "shrink"
    draws: int = 1
    budget: float | None = None
    batch: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    shrink: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            self._check()
        except (ValueError, TypeError) as e:
            raise ValueError(f"method {self.name!r}: {e}") from e

    def _check(self) -> None:
        known = {"baseline": set(), "torch-pruning": {"criterion"}, "shrink": set(_DEFAULTS)}
        unknown = sorted(set(self.shrink) - known[self.kind])
        if unknown:
            takes = ", ".join(sorted(known[self.kind])) or "nothing"
            raise ValueError(f"{unknown[0]!r} is no setting of a {self.kind!r}, which has {takes}")
        if self.draws < 1 or (self.kind == "baseline" and (self.draws > 1 or self.budget)):
            raise ValueError(f"draws={self.draws}, budget={self.budget} of a {self.kind!r}")
        if self.kind == "torch-pruning" and self.shrink.get("criterion") not in IMPORTANCES:
            raise ValueError(f"criterion: one of {', '.join(IMPORTANCES)}")
        if self.kind == "shrink":
            _ = self.arguments

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of :func:`lwdna.shrink`; what is left out has its default."""
        found = {**_DEFAULTS, "weights": "fresh", **self.shrink}
        if found["weights"] == "default":
            found["weights"] = _DEFAULTS["weights"]
        if isinstance(found["widen"], int):
            found["widen"] = float(found["widen"])  # 2 and 2.0 are one setting
        found["criterion"] = lwdna.get_criterion(found["criterion"], **self.options)
        found["scoring"] = _scoring(found["scoring"])
        found["constraints"] = _constraints(found["constraints"])
        return found

    @cached_property
    def settings(self) -> dict[str, Any]:
        """All that the method decides, in JSON's types; its name is none of it."""
        if self.kind == "shrink":
            told = {**self.arguments, "criterion": str(self.arguments["criterion"])}
        else:
            told = dict(self.shrink)
        batch = None if self.kind == "baseline" else self.batch
        found: dict[str, Any] = json.loads(json.dumps(told, default=_plain))
        return {"kind": self.kind, "batch": batch, **found}


@dataclass(frozen=True)
class Table:
    """What is compared.

    Attributes:
        name: of the table.
        seeds: of initial weights, order of images, noise and scores.
        budgets: shares of the baseline's MACs, and of its params, that a network may have.
        pairs: networks and data.
        methods: ways to come to widths.
        references: methods that all others are set against.

    Raises:
        ValueError: fewer than three seeds or one out of range, names that stand twice, or a
            reference that is no method.
    """

    name: str
    seeds: tuple[int, ...]
    budgets: tuple[float, ...]
    pairs: tuple[Pair, ...]
    methods: tuple[Method, ...]
    references: tuple[str, ...] = ("baseline", "uniform", "random")

    def __post_init__(self) -> None:
        if len(set(self.seeds)) < 3:
            raise ValueError(f"seeds={list(self.seeds)}: three at least, or there is no interval")
        if not all(0 <= seed < SEEDS for seed in self.seeds):
            raise ValueError(f"seeds={list(self.seeds)}: from 0 to {SEEDS - 1}")
        for what in (self.pairs, self.methods):
            names = [one.name for one in what]
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"{twice[0]!r} stands twice")
        unknown = set(self.references) - {method.name for method in self.methods}
        if unknown:
            raise ValueError(f"references: there is no method {sorted(unknown)[0]!r}")


def read_table(path: Path) -> Table:
    """A table from a TOML file; ``methods_of`` names another, whose methods come first.

    Raises:
        ValueError: no TOML, or something else than a table: says where.
    """
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
        if "methods_of" in found:
            shared = path.with_name(found.pop("methods_of")).read_text(encoding="utf-8")
            found["methods"] = tomllib.loads(shared)["methods"] + found.get("methods", [])
        if isinstance(found.get("methods"), list):
            found["methods"] = [_nested(method) for method in found["methods"]]
        table: Table = build(Table, with_defaults(Table, found), "the table")
    except (DnaError, tomllib.TOMLDecodeError) as e:
        raise ValueError(f"{path}: {e}") from e
    return table


def _nested(method: Any) -> Any:
    """What is no field of a method is an argument of ``shrink``."""
    if not isinstance(method, dict):
        return method  # an error, and not ours to tell
    own = {f.name for f in fields(Method)} - {"shrink"}
    found = {key: value for key, value in method.items() if key in own}
    return found | {"shrink": {key: v for key, v in method.items() if key not in own}}


def _scoring(given: Any) -> lwdna.Scoring:
    if not isinstance(given, Mapping):
        return lwdna.Scoring() if given is None else given
    sgd = given.get("sgd")
    return lwdna.Scoring(**{**given, "sgd": None if sgd is None else lwdna.SGD(**sgd)})


def _constraints(given: Any) -> lwdna.Constraints:
    if not isinstance(given, Mapping):
        return lwdna.Constraints() if given is None else given
    floors = lwdna.Floors(**given.get("floors", {}))
    return lwdna.Constraints(**{**given, "floors": floors})


def _plain(value: Any) -> Any:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else str(value)
