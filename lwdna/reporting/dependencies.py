"""The dependency graph of a channel group: which layers share it, and which operators tie them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal

import networkx as nx
import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from lwdna.channels import Slot
from lwdna.dna import Dna
from lwdna.fx_passes.analyse import analyse
from lwdna.graph import ChannelGraph, ChannelGroup
from lwdna.rebuilding import inputs_of
from lwdna.reporting.style import ACCENT, AFTER, BEFORE, INK, extra, new_figure, shortened

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Role = Literal["puts out", "takes in", "both", "follows"]
_MOST_GROUPS = 20
_COLOURS: dict[Role, str] = {
    "puts out": ACCENT,
    "takes in": AFTER,
    "both": "#8e5bb5",
    "follows": BEFORE,
}
_OPERATORS = ("#2f7fd1", "#d9772b", "#3a9a5b", "#8e5bb5", "#b8860b", "#c2476d", "#3f9fa8")


@dataclass(frozen=True)
class Member:
    """One module (or one tensor or axis outside of modules) that a group runs through.

    Attributes:
        name: path of the module.
        slots: its tensor dimensions, as ``"weight[0]"``.
        role: whether it puts out the group's channels, takes them in, or goes along with them.
    """

    name: str
    slots: tuple[str, ...]
    role: Role


@dataclass(frozen=True)
class Tie:
    """Two members whose channels are the same because of an operator."""

    a: str
    b: str
    op: str
    node: str


@dataclass(frozen=True)
class Dependencies:
    """The dependency graph of one group.

    Attributes:
        group: its name.
        width: its number of channels in the network.
        members: in the order of the network's tensors.
        ties: between different members.
    """

    group: str
    width: int
    members: tuple[Member, ...]
    ties: tuple[Tie, ...]


def dependencies_in(
    net: nn.Module, dna: Dna, groups: str | Sequence[str], example_inputs: Any
) -> list[Dependencies]:
    """The dependency graphs of some groups of a shrunk network.

    Args:
        net: the shrunk network.
        dna: its DNA.
        groups: patterns (``fnmatch``) of group names.
        example_inputs: to analyse it on; by default the DNA's, made again.

    Raises:
        ValueError: a pattern matches no group, or there are too many; or the groups are others
            than the DNA's, on these inputs.
    """
    names = _chosen(dna, groups)
    inputs = _inputs(net, dna) if example_inputs is None else example_inputs
    axes = dna.settings.get("policy", "auto") if dna.findings is None else dna.findings.axes
    graph = analyse(net, inputs, policy=axes, outputs=dna.settings.get("outputs", "fixed"))
    found = {group.name: group for group in graph.groups if group.slots}
    for name, width in names.items():
        if name not in found or found[name].width != width:
            raise ValueError(
                f"groups: on these inputs this {dna.model} has no group {name!r} of {width} "
                "channels: pass example_inputs like those that it was shrunk on"
            )
    return [dependencies(graph, found[name]) for name in names]


def _chosen(dna: Dna, groups: str | Sequence[str]) -> dict[str, int]:
    """Name -> width of the groups that a pattern names."""
    patterns = [groups] if isinstance(groups, str) else list(groups)
    for pattern in patterns:
        if not any(fnmatchcase(group.name, pattern) for group in dna.groups):
            raise ValueError(
                f"groups: {pattern!r} matches no channel group; dna.groups has their names, such "
                f"as {', '.join(repr(group.name) for group in dna.groups[:3])}"
            )
    chosen = {g.name: g.width for g in dna.groups if any(fnmatchcase(g.name, p) for p in patterns)}
    if len(chosen) > _MOST_GROUPS:
        raise ValueError(
            f"groups: {len(chosen)} groups match; a report draws {_MOST_GROUPS} at most"
        )
    return chosen


def _inputs(net: nn.Module, dna: Dna) -> tuple[Any, ...]:
    """The DNA's example inputs, in the precision that the network has now."""
    dtype = next((p.dtype for p in net.parameters() if p.is_floating_point()), torch.float32)
    inputs: tuple[Any, ...] = tree_map_only(
        torch.Tensor,
        lambda t: t.to(dtype) if t.is_floating_point() else t,
        inputs_of(dna),
    )
    return inputs


def dependencies(graph: ChannelGraph, group: ChannelGroup) -> Dependencies:
    """The dependency graph of a group, with the tensors of a module as one member."""
    component = [node for node in graph.nx if node[1] == group.index]
    tied: nx.MultiGraph[tuple[Slot, int]] = graph.nx.subgraph(component)
    owners = {slot: _owner(slot) for slot, _ in component}
    slots: dict[str, list[Slot]] = {}
    for slot, owner in owners.items():
        slots.setdefault(owner, []).append(slot)
    ties: dict[Tie, None] = {}
    for (a, _), (b, _), cause in tied.edges(data=True):
        first, second = sorted((owners[a], owners[b]))
        if first != second:
            ties[Tie(first, second, cause["op"], cause["node"])] = None
    members = tuple(
        Member(name, tuple(_short(s) for s in own), _role(graph, own))
        for name, own in slots.items()
    )
    return Dependencies(group.name, group.width, members, tuple(ties))


def _owner(slot: Slot) -> str:
    """The module of a tensor; an axis or an input stands for itself."""
    of_module = slot.kind in ("parameter", "buffer")
    return (slot.name.rpartition(".")[0] or slot.name) if of_module else str(slot)


def _short(slot: Slot) -> str:
    if slot.kind in ("parameter", "buffer"):
        return f"{slot.name.rpartition('.')[2]}[{slot.dim}]"
    return slot.kind


def _role(graph: ChannelGraph, slots: Iterable[Slot]) -> Role:
    known = [(s, graph.roles[s.name]) for s in slots if s.name in graph.roles]
    out = any(slot.dim == role.out_dim for slot, role in known)
    into = any(slot.dim == role.in_dim for slot, role in known)
    if out and into:
        return "both"
    return "puts out" if out else "takes in" if into else "follows"


def draw_dependencies(found: Dependencies) -> Figure:
    """Members from top to bottom, with an arc for every operator that ties two of them.

    An arc diagram has room for every name, however many there are; a free layout has not.
    """
    operators = dict.fromkeys(tie.op for tie in found.ties)
    rows = max(len(found.members), len(operators) + len(_COLOURS))
    figure = new_figure(0.5 + 0.24 * rows)
    axes = figure.subplots()
    row = {member.name: -k for k, member in enumerate(found.members)}
    colour = {op: _OPERATORS[k % len(_OPERATORS)] for k, op in enumerate(operators)}
    tallest = max([abs(row[tie.a] - row[tie.b]) for tie in found.ties], default=1)
    for tie in found.ties:
        reach = -0.15 - 0.85 * abs(row[tie.a] - row[tie.b]) / tallest
        axes.add_patch(_arc(row[tie.a], row[tie.b], reach, colour[tie.op]))
    for member in found.members:
        y = row[member.name]
        axes.plot(0, y, marker="o", markersize=6, color=_COLOURS[member.role])
        text = f"{shortened(member.name)}   {', '.join(member.slots[:4])}"
        text += f" and {len(member.slots) - 4} more" if len(member.slots) > 4 else ""
        axes.text(0.05, y, text, va="center", fontsize=8, color=INK, parse_math=False)
    _legends(axes, colour, {member.role for member in found.members})
    axes.set(xlim=(-1.05, 2.4), ylim=(0.4 - rows, 0.6))
    axes.set_axis_off()
    return figure


def _arc(a: int, b: int, reach: float, colour: str) -> Any:
    path, patches = extra("matplotlib.path"), extra("matplotlib.patches")
    corners = [(0, a), (reach * 4 / 3, a), (reach * 4 / 3, b), (0, b)]  # the curve gets to reach
    curve = path.Path(corners, [path.Path.MOVETO, *[path.Path.CURVE4] * 3])
    return patches.PathPatch(curve, fill=False, edgecolor=colour, linewidth=1.1)


def _legends(axes: Any, operators: dict[str, str], roles: set[Role]) -> None:
    line = extra("matplotlib.lines").Line2D
    marks = [
        line([], [], linestyle="none", marker="o", color=c, label=f"{role} the channels")
        for role, c in _COLOURS.items()
        if role in roles
    ]
    marks += [
        line([], [], color=c, label=f"tied by {shortened(op)}") for op, c in operators.items()
    ]
    legend = axes.legend(handles=marks, loc="upper right", frameon=False, fontsize=8)
    for text in legend.get_texts():
        text.set(color=INK, parse_math=False)
