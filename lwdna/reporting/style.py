"""What all figures share: the optional packages, colours, labels, and SVG that fits into a page."""

from __future__ import annotations

import io
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal
from xml.etree import ElementTree

from lwdna.tables import shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Text and axes: nearly black in a file, the page's own colour within a page.
INK = "#1d1d1f"
#: Legible on white and on black, and told apart by people who see few colours.
BEFORE, AFTER, ACCENT = "#8a8f98", "#2f7fd1", "#d9772b"
WIDTH_IN = 10.0
_LONGEST_NAME = 36
_DROPPED = ("metadata", "style")  # an address of a vocabulary; a rule for the whole page


def extra(package: str) -> Any:
    """Import a package that only reports need.

    Raises:
        ImportError: it is not installed; names the remedy.
    """
    try:
        return import_module(package)
    except ModuleNotFoundError as e:
        raise ImportError(
            f"reports and plots need {package.partition('.')[0]}: pip install 'lwdna[report]'"
        ) from e


def shortened(name: str) -> str:
    """A name for a label: in a long one every part loses its end, and only then the whole middle.

    Numbers tell the blocks of a network apart, so they have to stay.

    >>> shortened("features.stages.3.blocks.12.attention.projection")
    'feat….stag….3.bloc….12.atte….proj…'
    """
    name = shown(name)
    if len(name) <= _LONGEST_NAME:
        return name
    for most in range(len(name), 2, -1):
        parts = name.split(".")
        label = ".".join(p if len(p) <= most + 1 else f"{p[:most]}…" for p in parts)
        if len(label) <= _LONGEST_NAME:
            return label
    ends = (_LONGEST_NAME - 1) // 2
    return f"{name[:ends]}…{name[-ends:]}"


def new_figure(height_in: float) -> Figure:
    """An empty figure, unknown to pyplot, so that it needs no display and no closing."""
    made: Figure = extra("matplotlib.figure").Figure(
        figsize=(WIDTH_IN, height_in), layout="constrained"
    )
    return made


def dress(axes: Any) -> None:
    """Give axes the ink, and the look that all figures share."""
    axes.tick_params(colors=INK, which="both", labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["bottom", "left"]].set_color(INK)
    for text in (axes.title, axes.xaxis.label, axes.yaxis.label):
        text.set(color=INK, fontsize=9)
    axes.set_axisbelow(True)


def legend_above(axes: Any) -> None:
    """A legend in a row above the axes, where it hides nothing."""
    legend = axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False)
    for text in legend.get_texts():
        text.set(color=INK, fontsize=8)


def logarithmic(axes: Any, direction: Literal["x", "y"], base: int = 10) -> None:
    """A logarithmic scale with plain numbers as labels, enough of them on a short span."""
    ticker = extra("matplotlib.ticker")
    getattr(axes, f"set_{direction}scale")("log", base=base)
    low, high = getattr(axes, f"get_{direction}lim")()
    short = base == 10 and high < 100 * low
    axis = axes.xaxis if direction == "x" else axes.yaxis
    axis.set_major_locator(ticker.LogLocator(base, subs=(1, 2, 5) if short else (1,)))
    axis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(ticker.NullFormatter())


def inline_svg(figure: Figure, name: str, label: str) -> str:
    """A figure as an ``svg`` element for an HTML page, with text as text.

    Nothing in it leads out of the page: no namespace addresses, metadata or fonts. Its ids begin
    with ``name``, so that several figures live in one page.

    Args:
        figure: the figure.
        name: prefix of ids; also makes them the same every time.
        label: what a screen reader says.

    Source: https://html.spec.whatwg.org/#svg-0 (an inline ``svg`` needs no namespace).
    """
    text = io.StringIO()
    settings = {"svg.fonttype": "none", "svg.hashsalt": name}
    with extra("matplotlib").rc_context(settings):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    root = ElementTree.fromstring(text.getvalue())
    for element in list(root.iter()):
        for child in list(element):
            if _local(child.tag) in _DROPPED:
                element.remove(child)
    for element in root.iter():
        element.tag = _local(element.tag)
        found = {_local(key): _within(_local(key), v, name) for key, v in element.attrib.items()}
        element.attrib.clear()
        element.attrib.update(found)
    root.attrib.update(role="img", **{"aria-label": label})
    root.tail = None
    return ElementTree.tostring(root, encoding="unicode")


def _local(tag: str) -> str:
    return tag.rpartition("}")[2]


def _within(key: str, value: str, name: str) -> str:
    """The value of an attribute, with ids of the figure's own, and the page's colour for ink."""
    if key == "id":
        return f"{name}-{value}"
    if key == "href":
        return value.replace("#", f"#{name}-", 1)
    return value.replace("url(#", f"url(#{name}-").replace(INK, "currentColor")
