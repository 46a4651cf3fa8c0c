"""The width configuration of a shrunk network, as data and as JSON."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lwdna.cost import Cost
from lwdna.errors import LwdnaError
from lwdna.graph import ChannelGraph, Copies
from lwdna.selection import Selection

FORMAT = 2
_PACKAGES = ("lwdna", "torch", "torchvision", "timm", "networkx", "numpy")


@dataclass(frozen=True)
class GroupWidth:
    """Width of one channel group before and after.

    Attributes:
        name: the group's name.
        slots: tensor dimensions it sets the size of, as ``"tensor[dim]"``.
        baseline: units in the given network.
        widened: units after widening.
        width: units in the result.
        kept: indices of the kept units among the widened ones, ascending.
        prunable: whether the width could change.
    """

    name: str
    slots: tuple[str, ...]
    baseline: int
    widened: int
    width: int
    kept: tuple[int, ...]
    prunable: bool


@dataclass(frozen=True)
class Dna:
    """What a shrunk network knows about itself (``net.meta["lwdna"]``).

    Attributes:
        model: class name of the given model.
        input_shapes: shapes (batch first) the costs are counted for, at batch size 1.
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
    """

    model: str
    input_shapes: tuple[tuple[int, ...], ...]
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

    def __repr__(self) -> str:
        return f"<Dna of {self.model}: {len(self.groups)} groups, {self.before} -> {self.after}>"

    @classmethod
    def of(
        cls,
        model: nn.Module,
        graph: ChannelGraph,
        wide_graph: ChannelGraph,
        selection: Selection,
        limits: Mapping[str, int],
        *,
        criterion: str,
        widen: float | Mapping[str, float],
        seed: int,
        settings: Mapping[str, Any],
    ) -> Dna:
        """The configuration of a selection.

        Args:
            model: the given network.
            graph: its channel graph.
            wide_graph: channel graph of the widened network.
            selection: what was selected from it.
            limits: metric -> limit of the selection.
            criterion: the saliency's name and options.
            widen: the widening.
            seed: seed of widening and scoring.
            settings: other arguments; dataclasses become dicts.
        """
        groups = tuple(
            GroupWidth(
                name=group.name,
                slots=tuple(str(slot) for slot, _ in group.slots),
                baseline=graph.groups[group.index].width,
                widened=group.width,
                width=int(selection.copies[group.units].sum()),
                kept=tuple(int(i) for i in np.flatnonzero(selection.copies[group.units])),
                prunable=group.prunable,
            )
            for group in wide_graph.groups
            if group.slots
        )
        shapes = (tuple(t.shape) for t in tree_leaves(graph.inputs) if isinstance(t, Tensor))
        return cls(
            model=type(model).__name__,
            input_shapes=tuple(shapes),
            groups=groups,
            limits=dict(limits),
            used=selection.used,
            note=selection.note,
            criterion=criterion,
            widen=dict(widen) if isinstance(widen, Mapping) else float(widen),
            settings=_plain(settings),
            seed=seed,
            before=graph.cost(),
            after=selection.cost,
            versions=versions(),
        )

    def copies(self, graph: ChannelGraph) -> Copies:
        """The selection as copies per unit of the widened channel graph.

        Args:
            graph: channel graph of the widened network.

        Raises:
            LwdnaError: the graph's groups are not those of this configuration.
        """
        copies = graph.keep_all()
        known = {group.name: group for group in graph.groups if group.slots}
        for width in self.groups:
            group = known.pop(width.name, None)
            if group is None or group.width != width.widened:
                raise LwdnaError(
                    f"group {width.name!r} of {width.widened} units is not in this network: the "
                    "DNA belongs to another model or widening"
                )
            copies[group.units] = 0
            copies[group.units[list(width.kept)]] = 1
        if known:
            raise LwdnaError(f"groups {sorted(known)} of this network are not in the DNA")
        return copies

    def to_json(self) -> str:
        """The configuration as JSON text."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=2)

    @classmethod
    def from_json(cls, text: str) -> Dna:
        """Read :meth:`to_json`'s text.

        Raises:
            LwdnaError: not JSON, another format, or fields missing.
        """
        try:
            data: dict[str, Any] = json.loads(text)
            if data.pop("format") != FORMAT:
                raise LwdnaError(f"a DNA of another format; this version reads format {FORMAT}")
            data["groups"] = tuple(
                GroupWidth(**{**g, "slots": tuple(g["slots"]), "kept": tuple(g["kept"])})
                for g in data["groups"]
            )
            data["input_shapes"] = tuple(tuple(shape) for shape in data["input_shapes"])
            data["before"], data["after"] = Cost(**data["before"]), Cost(**data["after"])
            return cls(**data)
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            raise LwdnaError(f"not a DNA of lwdna: {type(e).__name__}: {e}") from e


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
