"""All plots of the documents, from the records of the benchmarks.

    python -m benchmarks.plots [--only scaling ...]

Each is drawn from a record in benchmarks/results/ and nothing else; the same record gives the same
bytes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bm_scaling import STAGES, exponent
from benchmarks.record import RESULTS, ROOT
from benchmarks.zoo import records, summary

DOCS = ROOT / "docs"
_KINDS = {"cnn": "tab:blue", "transformer": "tab:orange"}


@contextmanager
def canvas(output: Path, *shape: int, size: tuple[float, float], **options: Any) -> Iterator[Any]:
    """Axes of a figure (an array of them, by ``shape``) that is written to ``output`` at the end.

    Args:
        output: PNG or SVG.
        shape: rows and columns of axes; none for a single one.
        size: inches.
        options: of ``matplotlib.pyplot.subplots``.
    """
    import matplotlib  # only the demo's extra installs it

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "lwdna"
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(*shape, figsize=size, dpi=120, layout="constrained", **options)
    yield axes
    unset = "Software" if output.suffix == ".png" else "Date"
    figure.savefig(output, metadata={unset: None})
    plt.close(figure)


def zoo(found: list[summary.Record], output: Path) -> None:
    """Seconds against nodes of the models that came through, with the fitted power.

    Args:
        found: records of the sweep.
        output: the file.

    Raises:
        ValueError: fewer than three models, or all of one size.
    """
    timed = [(r, s) for r in found if (s := summary.total_s(r)) is not None]
    power = summary.exponent(r for r, _ in timed)
    if power is None:
        raise ValueError(
            "a line needs three models of different sizes: run python -m benchmarks.zoo"
        )
    nodes, seconds = np.array([(r["nodes"], s) for r, s in timed], dtype=float).T
    factor = np.exp(np.mean(np.log(seconds) - power * np.log(nodes)))
    ends = np.array([nodes.min(), nodes.max()])
    with canvas(output, size=(6.4, 4.2)) as axes:
        for kind, colour in _KINDS.items():
            points = [(r["nodes"], s) for r, s in timed if r["kind"] == kind]
            if points:
                x, y = zip(*points, strict=True)
                axes.scatter(x, y, s=7, alpha=0.5, color=colour, label=kind)
        axes.plot(ends, factor * ends**power, "k--", linewidth=1, label=f"∝ nodes^{power:.2f}")
        axes.set(
            xscale="log", yscale="log", xlabel="graph nodes", ylabel="capture + analyse + resize, s"
        )
        axes.grid(alpha=0.3, which="both", linewidth=0.4)
        axes.legend(frameon=False)


def scaling(record: dict[str, Any], output: Path) -> None:
    """Seconds of every stage against nodes and against units."""
    with canvas(output, 1, 2, size=(9, 3.8), sharey=True) as both:
        for axes, kind, size in zip(both, ("depth", "width"), ("nodes", "units"), strict=True):
            for stage in (*STAGES, "total"):
                points = [(r[size], r["seconds"][stage]) for r in record[kind]]
                style = "k.--" if stage == "total" else ".-"
                axes.plot(*zip(*points, strict=True), style, linewidth=1, label=stage)
            power = exponent(record[kind], size)
            axes.set(xscale="log", yscale="log", xlabel=f"{size} (total ∝ {size}^{power:.2f})")
            axes.grid(alpha=0.3, which="both", linewidth=0.4)
        both[0].set_ylabel("seconds")
        both[0].legend(frameon=False)


def compiling(record: dict[str, Any], output: Path) -> None:
    """The peer's seconds over ours, network by network."""
    ratios = {
        name: 1 / found["ratios"]["peer"]
        for name, found in record["networks"].items()
        if "peer" in found.get("ratios", {}) and not found.get("peer_result_failure")
    }
    names = sorted(ratios, key=lambda name: ratios[name])
    with canvas(output, size=(6.4, 0.16 * len(names) + 1)) as axes:
        values = [ratios[name] for name in names]
        colours = ["tab:blue" if value >= 1 else "tab:orange" for value in values]
        axes.barh(names, [v - 1 for v in values], left=1, color=colours, height=0.7)
        axes.axvline(1, color="black", linewidth=0.8)
        axes.set(xscale="log", xlabel="Torch-Pruning's seconds / ours", ylim=(-1, len(names)))
        axes.tick_params(axis="y", labelsize=6)
        axes.grid(alpha=0.3, axis="x", which="both", linewidth=0.4)


def throughput(record: dict[str, Any], output: Path) -> None:
    """Share of the seconds that is gone against the share of the MACs that is."""
    names = list(dict.fromkeys(r["network"] for r in record["records"]))
    modes = list(dict.fromkeys(r["mode"] for r in record["records"]))
    with canvas(
        output, 1, len(names), size=(3.6 * len(names), 3.8), sharey=True, squeeze=False
    ) as (row,):
        for axes, name in zip(row, names, strict=True):
            for number, mode in enumerate(modes):
                points = [
                    (r["saving"][what], r["gain"][what], "x" if what == "uniform" else "o")
                    for r in record["records"]
                    if (r["network"], r["mode"]) == (name, mode)
                    for what in r["gain"]
                    if what != "baseline"
                ]
                for marker in "ox":
                    x, y = ([p[k] for p in points if p[2] == marker] for k in (0, 1))
                    label = mode if marker == "o" else None
                    axes.scatter(x, y, s=14, color=f"C{number}", marker=marker, label=label)
            axes.plot([0, 0.6], [0, 0.6], "k--", linewidth=0.8)
            axes.axhline(0, color="black", linewidth=0.8)
            axes.set(title=name, xlabel="share of MACs saved")
            axes.grid(alpha=0.3, linewidth=0.4)
        row[0].set_ylabel("share of time saved (× uniform)")
        row[0].legend(frameon=False, fontsize=7)


#: Methods that plots of the comparison tell apart; all others are grey.
_SHOWN = {
    "baseline": "black",
    "default": "tab:blue",
    "uniform": "tab:green",
    "random": "tab:orange",
}


def comparison(record: dict[str, Any], output: Path) -> None:
    """Score against what is left of MACs and of params, with intervals, pair by pair."""
    pairs = record["pairs"]
    shape, size = (len(pairs), 2), (9, 3.2 * len(pairs))
    with canvas(output, *shape, size=size, sharey="row", squeeze=False) as grid:
        for row, (pair, found) in zip(grid, pairs.items(), strict=True):
            for axes, metric in zip(row, ("macs", "params"), strict=True):
                for name, method, colour in _methods(found):
                    score = method["score"]
                    spread = None if score["low"] is None else score["mean"] - score["low"]
                    style = {"color": colour, "label": name if name in _SHOWN else None}
                    axes.errorbar(
                        method[metric], score["mean"], spread, fmt="o", markersize=4, **style
                    )
                axes.set(xlabel=f"share of the baseline's {metric}")
                axes.grid(alpha=0.3, linewidth=0.4)
            row[0].set(title=pair, ylabel=found["unit"])
        grid[0, 0].legend(frameon=False, fontsize=7)


def learning(record: dict[str, Any], output: Path) -> None:
    """The metric by epoch, in training and on the images that are held out, pair by pair."""
    pairs = record["pairs"]
    with canvas(output, len(pairs), 2, size=(9, 3.2 * len(pairs)), squeeze=False) as grid:
        for row, (pair, found) in zip(grid, pairs.items(), strict=True):
            for axes, training in zip(row, (True, False), strict=True):
                for name, method, colour in _methods(found):
                    for curve, values in method["curves"].items():
                        part, _, metric = curve.rpartition("/")
                        shown = ("top1",) if found["unit"] == "%" else ("psnr", "loss")
                        if metric in shown and (part == "train") is training:
                            points = [(e, v) for e, v in enumerate(values, 1) if v is not None]
                            label = name if name in _SHOWN else None
                            axes.plot(*zip(*points, strict=True), color=colour, label=label)
                axes.set(xlabel="epoch", title=f"{pair}, {'training' if training else 'held out'}")
                axes.grid(alpha=0.3, linewidth=0.4)
        grid[0, 0].legend(frameon=False, fontsize=7)


def _methods(pair: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Name, row and colour of each method at the largest budget, those that are shown last."""
    rows = pair["budgets"][max(pair["budgets"], key=float)]
    for name in sorted(rows, key=lambda name: name in _SHOWN):
        yield name, rows[name], _SHOWN.get(name, "lightgrey")


def _json(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / name).read_text())
    return found


def _drawn_from(draw: Callable[[dict[str, Any], Path], None], name: str, path: Path) -> None:
    draw(_json(name), path)


PLOTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "zoo": (
        lambda path: zoo(list(records.read(RESULTS / "zoo.jsonl").models.values()), path),
        "zoo.png",
    ),
    "scaling": (lambda path: scaling(_json("bm_scaling.json"), path), "scaling.svg"),
    "compile": (lambda path: compiling(_json("bm_compile.json"), path), "compile.svg"),
    "throughput": (lambda path: throughput(_json("bm_throughput.json"), path), "throughput.svg"),
}
PLOTS |= {
    f"{file.stem}_{kind}": (
        partial(_drawn_from, draw, f"compare/{file.name}"),
        f"{file.stem}_{kind}.svg",
    )
    for file in sorted((RESULTS / "compare").glob("*.json"))
    for kind, draw in (("costs", comparison), ("curves", learning))
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=PLOTS, default=list(PLOTS))
    parser.add_argument("--output", type=Path, default=DOCS, metavar="FOLDER")
    args = parser.parse_args()
    for name in args.only:
        draw, file = PLOTS[name]
        draw(args.output / file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
