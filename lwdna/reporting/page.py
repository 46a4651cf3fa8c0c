"""``lwdna.report``: one HTML page that needs nothing but itself."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from torch import nn

from lwdna.dna import Dna
from lwdna.files import replace_file
from lwdna.rebuilding import dna_of
from lwdna.reporting.dependencies import Dependencies, dependencies_in, draw_dependencies
from lwdna.reporting.figures import FIGURES, draw, missing
from lwdna.reporting.style import extra, inline_svg
from lwdna.tables import COST_HEADERS, cost_rows, limit_rows, shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Images = Literal["png", "svg"]
#: Figure -> title, what it is about, how it is read.
_TEXTS = {
    "widths": (
        "Widths",
        "A channel group is a set of channels that exists in several layers at once (through "
        "residual additions, concatenations, depthwise convolutions) and can only be kept or "
        "removed in all of them. It bears the name of the first layer that puts it out.",
        "Channels of every group that could change, before and after, and their ratio: below the "
        "line narrower, above it (orange) wider than before.",
    ),
    "saliency": (
        "Saliency",
        "How much the criterion says that a channel of the widened network matters, and which "
        "channels stayed.",
        "Above: all channels. Below: each group from its least to its most salient channel, the "
        "middle half thick, the median a dot; at the left end and the bottom stands what lies "
        "below, such as 0. ",
    ),
    "costs": (
        "Where MACs and parameters went",
        "What each part of the network costs. Parts are modules, small ones together, and they "
        "add up to the costs of the whole.",
        "Costs of the parts before and after.",
    ),
}
_ABOVE = "What stayed below the threshold was kept by floors, or by what the budget had left."
_NO_THRESHOLD = "No single threshold separates what stayed: floors or another allocation chose."
_METRICS_SAID = (
    "Costs are of one input. macs: multiply-accumulates of convolutions, linear layers and matrix "
    "products; flops_paper: the count of the paper; params: entries of the parameters; "
    "activations: numbers that the layers put out; latency: predicted from a device's table."
)
_CONTENTS = (("summary", "Summary"), *((f"{n}-section", t[0]) for n, t in _TEXTS.items()))
_DPI = 150


@dataclass(frozen=True)
class Section:
    """A figure of the page, or why there is none."""

    name: str
    title: str
    lead: str
    caption: str
    svg: str | None
    reason: str | None


def report(
    subject: nn.Module | Dna,
    path: str | Path,
    *,
    groups: str | Sequence[str] = (),
    example_inputs: Any = None,
    images: Images | None = None,
) -> Path:
    """Write a report of a shrunk network: one HTML page with its figures, for any browser.

    The page needs no network and runs no script. It shows the summary, the widths before and after,
    the saliencies and the threshold, where MACs and params went, which groups could not change and
    why, and the dependency graphs of chosen groups.

    Args:
        subject: what :func:`lwdna.shrink` returned, or its :class:`lwdna.Dna`.
        path: of the page, ending in ``.html``; a file that is there is replaced.
        groups: names or patterns (``fnmatch``) of the groups, 20 at most, whose dependency graphs
            are drawn. The network is analysed for them; a DNA alone does not know them.
        example_inputs: for this analysis, as for :func:`lwdna.analyse`; by default the DNA's, made
            again (of a network that was captured in parts noise, which may not do).
        images: also write every figure to a file of this format beside the page:
            ``"png"`` or ``"svg"``, named ``STEM_widths.png`` and so on.

    Returns:
        The path of the page.

    Raises:
        TypeError: ``subject`` is neither.
        ValueError: a network without a DNA, no ``.html``, an unknown group or format, or inputs
            on which the network is another. Nothing is written then.
        ImportError: matplotlib or jinja2 is not installed: ``pip install 'lwdna[report]'``.

    >>> lwdna.report(net, "report.html", groups="layer1.*")  # doctest: +SKIP
    PosixPath('report.html')
    """
    path = Path(path)
    dna = _dna_of(subject)
    _check(subject, path, groups, images)
    found: list[Dependencies] = []
    if groups:
        assert isinstance(subject, nn.Module)
        found = dependencies_in(subject, dna, groups, example_inputs)
    figures = {name: draw(dna, name) for name in FIGURES if missing(dna, name) is None}
    graphs = {f"group{k}": draw_dependencies(d) for k, d in enumerate(found)}
    page = _render(dna, figures, list(zip(found, graphs.items(), strict=True)))
    if images is not None:
        for name, figure in {**figures, **graphs}.items():
            replace_file(
                path.with_name(f"{path.stem}_{name}.{images}"),
                partial(figure.savefig, format=images, dpi=_DPI),
            )
    replace_file(path, partial(Path.write_text, data=page, encoding="utf-8"))
    return path


def _dna_of(subject: Any) -> Dna:
    if isinstance(subject, Dna):
        return subject
    if not isinstance(subject, nn.Module):
        raise TypeError(
            f"a report of a {type(subject).__name__}: pass what lwdna.shrink returned, or its DNA"
        )
    return dna_of(subject)


def _check(subject: Any, path: Path, groups: Any, images: Any) -> None:
    if path.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"path {str(path)!r}: a report is one page, whose name ends in .html")
    if not path.parent.is_dir():
        raise ValueError(f"path {str(path)!r}: there is no folder {str(path.parent)!r}")
    if images is not None and images not in get_args(Images):
        raise ValueError(f"images={images!r}: one of {', '.join(map(repr, get_args(Images)))}")
    names = [groups] if isinstance(groups, str) else groups
    if not all(isinstance(name, str) for name in names):
        raise TypeError(f"groups={groups!r}: names of channel groups, or patterns of them")
    if groups and isinstance(subject, Dna):
        raise ValueError(
            "groups: a DNA alone does not know what ties the channels of a group; pass the network"
        )


def _render(
    dna: Dna,
    figures: Mapping[str, Figure],
    graphs: Sequence[tuple[Dependencies, tuple[str, Figure]]],
) -> str:
    jinja2 = extra("jinja2")
    loader = jinja2.PackageLoader("lwdna.reporting", "templates")
    environment = jinja2.Environment(
        loader=loader,
        autoescape=True,  # of names above all, which come from the model
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"shown": shown, "safe_svg": extra("markupsafe").Markup}
    page: str = environment.get_template("report.html.j2").render(
        dna=dna,
        title=str(dna.source or dna.model),
        contents=_contents(dna, graphs),
        metrics_said=_METRICS_SAID,
        summary=_summary(dna),
        cost_headers=COST_HEADERS,
        costs=cost_rows(dna),
        limits=limit_rows(dna),
        sections=[_section(dna, name, figures) for name in FIGURES],
        graphs=[
            (found, name, inline_svg(figure, name, f"Dependency graph of {found.group}"))
            for found, (name, figure) in graphs
        ],
        settings=[(name, json.dumps(value)) for name, value in dna.settings.items()],
    )
    return page


def _section(dna: Dna, name: str, figures: Mapping[str, Figure]) -> Section:
    title, lead, caption = _TEXTS[name]
    if name == "saliency" and dna.findings is not None:
        caption += _NO_THRESHOLD if dna.findings.threshold is None else _ABOVE
    svg = inline_svg(figures[name], name, title) if name in figures else None
    return Section(name, title, lead, caption, svg, missing(dna, name))


def _contents(
    dna: Dna, graphs: Sequence[tuple[Dependencies, tuple[str, Figure]]]
) -> list[tuple[str, str]]:
    """(id, title) of the sections."""
    frozen = [("frozen", "What could not change, and why")] if dna.findings is not None else []
    drawn = [(f"{name}-section", f"Group {found.group}") for found, (name, _) in graphs]
    return [*_CONTENTS, *frozen, *drawn]


def _summary(dna: Dna) -> list[tuple[str, str]]:
    changed = [group for group in dna.groups if group.prunable]
    shapes = ", ".join(" × ".join(map(str, shape)) for shape in dna.input_shapes)
    return [
        ("model", dna.model),
        ("constructor", str(dna.source or "not known")),
        ("input", shapes),
        ("criterion", dna.criterion),
        ("widening", str(dna.widen)),
        ("seed", str(dna.seed)),
        ("channel groups", f"{len(changed)} could change, {len(dna.groups) - len(changed)} not"),
        ("made with", ", ".join(f"{name} {v}" for name, v in dna.versions.items())),
    ]
