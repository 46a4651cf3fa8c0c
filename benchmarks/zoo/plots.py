"""Seconds against nodes over the zoo, with the fitted power, from the sweep's JSONL.

python -m benchmarks.zoo.plots [--results FILE] [--output docs/zoo.png]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from benchmarks.zoo import records, summary
from benchmarks.zoo.report import RESULTS, ROOT
from benchmarks.zoo.summary import Record

OUTPUT = ROOT / "docs" / "zoo.png"
_COLOURS = {"cnn": "tab:blue", "transformer": "tab:orange"}


def draw(found: list[Record], output: Path) -> None:
    """Draw the models that came through capture, analyse and resize.

    Args:
        found: records of the sweep.
        output: PNG or SVG.

    Raises:
        ValueError: fewer than three models, or all of one size.
    """
    import matplotlib  # only the demo's extra installs it

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    timed = [(r, s) for r in found if (s := summary.total_s(r)) is not None]
    power = summary.exponent(r for r, _ in timed)
    if power is None:
        raise ValueError(
            "a line needs three models of different sizes: run python -m benchmarks.zoo"
        )
    figure, axes = plt.subplots(figsize=(6.4, 4.2), dpi=120)
    for kind, colour in _COLOURS.items():
        points = [(r["nodes"], s) for r, s in timed if r["kind"] == kind]
        if points:
            x, y = zip(*points, strict=True)
            axes.scatter(x, y, s=7, alpha=0.5, color=colour, label=kind)
    nodes = np.array([r["nodes"] for r, _ in timed], dtype=float)
    seconds = np.array([s for _, s in timed])
    factor = np.exp(np.mean(np.log(seconds) - power * np.log(nodes)))
    ends = np.array([nodes.min(), nodes.max()])
    axes.plot(ends, factor * ends**power, "k--", linewidth=1, label=f"∝ nodes^{power:.2f}")
    axes.set(
        xscale="log", yscale="log", xlabel="graph nodes", ylabel="capture + analyse + resize, s"
    )
    axes.grid(alpha=0.3, which="both", linewidth=0.4)
    axes.legend(frameon=False)
    figure.tight_layout()
    # No software version in the file: the same figures give the same bytes.
    figure.savefig(output, metadata={"Software": None} if output.suffix == ".png" else None)
    plt.close(figure)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FILE")
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="FILE")
    args = parser.parse_args()
    draw(list(records.read(args.results).models.values()), args.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
