"""The width configuration of a shrunk network, as data and as JSON."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from torch import nn

from lwdna.budget import Budget
from lwdna.constraints import Constraints, Floors
from lwdna.cost import Cost
from lwdna.errors import DnaError
from lwdna.example import described, shapes_in
from lwdna.findings import Findings
from lwdna.graph import ChannelGraph, Copies
from lwdna.group_width import MOST_UNITS, GroupWidth, as_runs, from_runs, group_widths
from lwdna.selection import Selection
from lwdna.source import ModelSource, source_of
from lwdna.strict_json import build, digest, parse
from lwdna.tables import COST_HEADERS, WIDTH_HEADERS, cost_rows, html_table, width_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMAT = 3
_MOST_CHARACTERS = 200  # of a class name: errors quote it
_PACKAGES = ("lwdna", "torch", "torchvision", "timm", "networkx", "numpy")


@dataclass(frozen=True)
class Dna:
    """What a shrunk network knows about itself (``net.meta["lwdna"]``).

    Attributes:
        model: class name of the given model.
        source: how it was constructed, if that is known: see :func:`lwdna.create`.
        inputs: positional arguments of ``forward`` that costs are counted for, at batch size 1,
            in JSON's types: see :func:`lwdna.example.described`.
        groups: widths of all groups.
        limits: metric -> absolute limit that the budget came to.
        used: metric -> fraction of its limit that is used.
        note: why less than 99.5 % of every limit is used, or None.
        criterion: name of the saliency.
        widen: the widening (a factor, or pattern -> factor).
        settings: the other arguments that made it, in JSON's types: scoring, constraints,
            allocation, weights ...
        seed: seed of widening and scoring.
        before: cost of the given network.
        after: cost of the result.
        versions: Python and package versions.
        findings: saliencies, costs by layer and reasons, for reports; ``None`` if they are not
            known.

    Raises:
        DnaError: fields that contradict one another.
    """

    model: str
    source: ModelSource | None
    inputs: tuple[Any, ...]
    groups: tuple[GroupWidth, ...]
    limits: Mapping[str, int]
    used: Mapping[str, float]
    note: str | None
    criterion: str
    widen: float | Mapping[str, float]
    settings: Mapping[str, Any]
    seed: int
    before: Cost
    after: Cost
    versions: Mapping[str, str]
    findings: Findings | None = None

    def __post_init__(self) -> None:
        if len(self.model) > _MOST_CHARACTERS or not self.model.isprintable():
            raise DnaError(f"a DNA of a model of no name: {self.model[:60]!r}")
        shapes_in({"tuple": self.inputs})
        names = [group.name for group in self.groups]
        if len(set(names)) < len(names):
            raise DnaError("a DNA with two groups of one name")
        if sum(group.widened for group in self.groups) > MOST_UNITS:
            raise DnaError(f"a DNA of more than {MOST_UNITS:,} units")
        if self.findings is not None:
            self.findings.check(self.groups, self.before, self.after)

    @property
    def input_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the tensors in ``inputs``, batch size 1."""
        return tuple(shapes_in({"tuple": self.inputs}))

    @property
    def constraints(self) -> Constraints:
        """What the widths obey.

        Raises:
            DnaError: the settings hold no constraints.
        """
        try:
            kept = dict(self.settings["constraints"])
            return Constraints(**{**kept, "floors": Floors(**kept["floors"])})
        except (KeyError, TypeError, ValueError) as e:
            raise DnaError(f"the DNA's constraints: {type(e).__name__}: {e}") from e

    def __deepcopy__(self, memo: dict[int, Any]) -> Dna:
        return self  # a value: copies of a network may share it

    def __repr__(self) -> str:
        return f"<Dna of {self.model}: {len(self.groups)} groups, {self.before} -> {self.after}>"

    def _repr_html_(self) -> str:
        said = f"{self.model}: criterion {self.criterion}, widen {self.widen}, seed {self.seed}"
        costs = html_table(COST_HEADERS, cost_rows(self), said)
        return costs + html_table(WIDTH_HEADERS, width_rows(self))

    def plot(self, figure: str = "widths") -> Figure:
        """Draw one of the figures of :func:`lwdna.report`.

        Args:
            figure: ``"widths"``, before and after (figure 1 of the paper); ``"saliency"``, its
                distribution and the threshold; ``"costs"``, where MACs and params went.

        Returns:
            A figure of its own, which no other plotting call sees.

        Raises:
            ValueError: there is no such figure, or this DNA has no findings to draw it from.
            ImportError: matplotlib is not installed.
        """
        from lwdna.reporting.figures import draw  # it needs the extra "report"

        return draw(self, figure)

    @classmethod
    def of(
        cls,
        model: nn.Module,
        graph: ChannelGraph,
        wide_graph: ChannelGraph,
        selection: Selection,
        limits: Mapping[str, int],
        *,
        before: Cost,
        criterion: str,
        widen: float | Mapping[str, float],
        seed: int,
        settings: Mapping[str, Any],
        findings: Findings | None = None,
    ) -> Dna:
        """The configuration of a selection.

        Args:
            model: the given network.
            graph: its channel graph.
            wide_graph: channel graph of the widened network.
            selection: what was selected from it.
            limits: metric -> limit of the selection.
            before: cost of the given network.
            criterion: the saliency's name and options.
            widen: the widening.
            seed: seed of widening and scoring.
            settings: other arguments; dataclasses become dicts.
            findings: for reports.
        """
        return cls(
            model=type(model).__name__,
            source=source_of(model),
            inputs=tuple(described(value) for value in graph.inputs),
            groups=group_widths(graph, wide_graph, selection.copies),
            limits=dict(limits),
            used=selection.used,
            note=selection.note,
            criterion=criterion,
            widen=dict(widen) if isinstance(widen, Mapping) else float(widen),
            settings=_plain(settings),
            seed=seed,
            before=before,
            after=selection.cost,
            versions=versions(),
            findings=findings,
        )

    def copies(self, graph: ChannelGraph) -> Copies:
        """The selection as copies per unit of the widened channel graph.

        Args:
            graph: channel graph of the widened network.

        Raises:
            DnaError: the graph's groups are not those of this configuration.
        """
        copies = graph.keep_all()
        known = {group.name: group for group in graph.groups if group.slots}
        for width in self.groups:
            group = known.pop(width.name, None)
            if group is None or group.width != width.widened:
                raise DnaError(
                    f"group {width.name[:60]!r} of {width.widened} units is not in this network: "
                    "the DNA belongs to another model, other inputs or another widening"
                )
            copies[group.units] = 0
            copies[group.units[list(width.kept)]] = 1
        if known:
            raise DnaError(f"groups {sorted(known)[:3]} of this network are not in the DNA")
        return copies

    def at(
        self,
        budget: float | str | Budget,
        model: nn.Module | None = None,
        *,
        trust: Sequence[str] = (),
    ) -> Dna:
        """The same widths, all multiplied by one factor, within another budget.

        See :func:`lwdna.rescaling.rescale` for the law and the arguments.
        """
        from lwdna.rescaling import rescale  # it builds on this module

        return rescale(self, budget, model, trust=trust)

    def to_json(self) -> str:
        """The configuration as JSON text: a line for each field and each group.

        Kept indices are written as runs, ``"0-31 40 42-63"``.
        """
        told = self._as_dict()
        groups = ",\n".join(json.dumps(group) for group in told.pop("groups"))
        lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in told.items()]
        return "{\n" + ",\n".join([*lines, f'"groups": [\n{groups}\n]']) + "\n}\n"

    def _as_dict(self) -> dict[str, Any]:
        # dataclasses.asdict would copy every kept index by itself.
        groups = [{**vars(group), "kept": as_runs(group.kept)} for group in self.groups]
        told = {
            key: asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
            for key, value in vars(self).items()
        }
        return {"format": FORMAT, **told, "groups": groups}

    @property
    def digest(self) -> str:
        """SHA-256 of all that the configuration says, in hex."""
        return digest(self._as_dict())

    @classmethod
    def from_json(cls, text: str) -> Dna:
        """Read :meth:`to_json`'s text; it may come from anywhere.

        Raises:
            DnaError: not JSON, another format, fields missing, unknown, of another type, or that
                contradict one another.
        """
        data = parse(text, "the DNA")
        if not isinstance(data, dict) or type(data.get("format")) is not int:
            raise DnaError("no DNA of lwdna: it does not tell its format")
        found = data.pop("format")
        if found != FORMAT:
            remedy = "update lwdna" if found > FORMAT else "shrink the network again"
            raise DnaError(f"a DNA of format {found}; this version reads {FORMAT}: {remedy}")
        left = MOST_UNITS
        for group in data["groups"] if isinstance(data.get("groups"), list) else ():
            if isinstance(group, dict):
                group["kept"] = from_runs(group.get("kept"), left)
                left -= len(group["kept"])
        dna: Dna = build(cls, data, "the DNA")
        return dna


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The same in JSON's types, so that it reads back as it was."""

    def default(value: Any) -> Any:
        return asdict(value) if is_dataclass(value) and not isinstance(value, type) else str(value)

    plain: dict[str, Any] = json.loads(json.dumps(dict(settings), default=default))
    return plain


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that shape the result."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
