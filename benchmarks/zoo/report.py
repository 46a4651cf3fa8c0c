"""What the sweep found, as text: on the terminal, in docs/zoo.md and in README.

python -m benchmarks.zoo.report [--results FILE]   # prints the bars, rewrites the two pages
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.pages import refill
from benchmarks.zoo import records, summary
from benchmarks.zoo.records import Results
from benchmarks.zoo.summary import Limits, Record

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "zoo.jsonl"
PAGES = (ROOT / "docs" / "zoo.md", ROOT / "README.md")


def show(results: Results, expected: int) -> int:
    """Print failures by cause and the bars; 1 if a loss is not listed or a model is missing."""
    found, limits = list(results.models.values()), Limits.read()
    wrong = summary.unexplained(found, limits)
    for cause, names in _by_cause(wrong).items():
        print(f"{len(names):4} x {cause}\n       {', '.join(names[:6])}")
    for bar in summary.bars(found, expected, limits):
        print("met   " if bar.met else "MISSED", bar.text)
    for entry in summary.stale(found, limits):
        print(f"limits.toml: no model needs {entry['models']} any more: delete the entry")
    cpu = sum(r.get("cpu_s", 0.0) for r in found)
    print(
        f"{cpu / max(len(found), 1):.1f} core-seconds per model; {results.expected} models on two "
        f"cores: {cpu / max(len(found), 1) * results.expected / 2 / 3600:.1f} h"
    )
    return 1 if wrong or len(found) < expected else 0


def _by_cause(wrong: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Models by cause, where numbers and quoted names do not tell causes apart; most first."""
    causes: dict[str, list[str]] = {}
    for name, text in wrong:
        causes.setdefault(re.sub(r"'[^']*'|[\d.]+ ?%?", "#", text)[:160], []).append(name)
    return dict(sorted(causes.items(), key=lambda item: -len(item[1])))


def tables(results: Results) -> dict[str, str]:
    """The generated tables by name."""
    found, limits = list(results.models.values()), Limits.read()
    return {
        "short": _by(found, lambda r: r["name"].partition(":")[0], "library"),
        "bars": _bars(found, results.expected, limits),
        "families": _by(found, lambda r: r["family"], "family"),
        "limits": _limits(limits),
        "open": _open(found, limits),
        "run": _run(results),
    }


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"| {' | '.join('---' for _ in head)} |"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def _by(found: Sequence[Record], key: Any, title: str) -> str:
    """One line per group of models, and their total."""
    head = [title, "models", "captured", "analysed", "shrunk", "verified", "in float64"]
    head += ["seconds", "nodes", "MACs prunable", "params prunable"]
    rows = [_row(name, group) for name, group in summary.grouped(found, key).items()]
    return _table(head, [*rows, _row("**all**", found)])


def _row(name: str, group: Sequence[Record]) -> list[str]:
    """Counts of a group; medians of its seconds and nodes, least shares."""
    reached = [sum(s in r["seconds"] for r in group) for s in ("capture", "analyse", "resize")]
    numeric = sum(r["ok"] and "masked equivalence" in r["held"] for r in group)
    cells = [name, *(str(n) for n in (len(group), *reached, sum(r["ok"] for r in group), numeric))]
    seconds = [s for r in group if (s := summary.total_s(r)) is not None]
    shares = [r["share"] for r in group if "share" in r]
    nodes = [r["nodes"] for r in group if "nodes" in r]
    cells += [f"{median(seconds):.2f}" if seconds else "–"]
    cells += [f"{median(nodes):.0f}" if nodes else "–"]
    for metric in ("macs", "params"):
        cells.append(f"≥ {100 * min(s[metric] for s in shares):.1f} %" if shares else "–")
    return cells


def _bars(found: Sequence[Record], expected: int, limits: Limits) -> str:
    rows = summary.bars(found, expected, limits)
    return _table(("bar", "met"), ((bar.text, "yes" if bar.met else "no") for bar in rows))


def _limits(limits: Limits) -> str:
    rows = [
        (", ".join(f"`{m}`" for m in e["models"]), what, e["rule"], f"`{e['source']}`")
        for entries, what in ((limits.refused, "no static graph"), (limits.share, "share of MACs"))
        for e in entries
    ]
    return _table(("models", "what", "rule", "source"), rows) if rows else "None."


def _open(found: Sequence[Record], limits: Limits) -> str:
    causes = _by_cause(summary.unexplained(found, limits))
    rows = ((str(len(n)), c.replace("|", "\\|"), ", ".join(n[:3])) for c, n in causes.items())
    return _table(("models", "cause", "for example"), rows) if causes else "None."


def _run(results: Results) -> str:
    used = {r["run"] for r in results.models.values()}
    rows = [
        (
            line["date"],
            str(line["commit"])[:10],
            line["cpu"],
            ", ".join(f"{k} {v}" for k, v in line["versions"].items() if v),
        )
        for run, line in sorted(results.runs.items(), key=lambda item: item[1]["date"])
        if run in used
    ]
    return _table(("date", "commit", "CPU", "versions"), rows)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FILE")
    args = parser.parse_args()
    results = records.read(args.results)
    blocks = tables(results)
    for page in PAGES:
        refill(page, "zoo", blocks)
    return show(results, results.expected)


if __name__ == "__main__":
    sys.exit(main())
