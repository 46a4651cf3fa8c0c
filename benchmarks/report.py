"""The tables of README.md, docs/benchmarks.md and docs/comparison.md, from the records.

python -m benchmarks.report
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from benchmarks import bm_compile, bm_latency, bm_scoring, bm_throughput
from benchmarks.compare.report import contents, markdown
from benchmarks.pages import refill
from benchmarks.record import RESULTS, ROOT

PAGES = (
    ROOT / "README.md",
    *(ROOT / "docs" / f"{name}.md" for name in ("benchmarks", "comparison")),
)
#: Records with bars, in the order of the tables.
RECORDS = ("compile", "scaling", "scoring", "selection", "latency", "throughput")


def read(name: str) -> dict[str, Any]:
    """The record of one benchmark."""
    found: dict[str, Any] = json.loads((RESULTS / f"bm_{name}.json").read_text())
    return found


def tables() -> dict[str, str]:
    """The blocks ``<!-- bench:NAME -->`` of the pages."""
    records = {name: read(name) for name in RECORDS}
    return {
        "bars": _bars(records),
        "compile": _compile(records["compile"]),
        "scaling": _scaling(records["scaling"]),
        "scoring": bm_scoring.table(records["scoring"]),
        "selection": _selection(records["selection"]),
        "latency": bm_latency.table(records["latency"]["networks"]),
        "throughput": bm_throughput.table(records["throughput"]["records"]),
        "kinds": bm_throughput.kinds_table(records["throughput"]["records"]),
        "run": _runs(records),
        "compared": contents(),
        **{
            file.stem: markdown(json.loads(file.read_text())).rstrip()
            for file in sorted((RESULTS / "compare").glob("*.json"))
        },
    }


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return tabulate(list(rows), head, tablefmt="github", disable_numparse=True)


def _bars(records: dict[str, dict[str, Any]]) -> str:
    rows = (
        (name, bar["bar"], "yes" if bar["met"] else "no")
        for name, record in records.items()
        for bar in record["bars"]
    )
    return _table(("benchmark", "bar", "met"), rows)


def _compile(record: dict[str, Any]) -> str:
    head = ("network", "capture", "analyse", "resize", "total", "verify", "forward")
    head += ("/ forward", "peer", "peer / ours", "shrink", "peer", "peer / ours", "MiB", "peer")
    rows = [(name, *_compile_row(found)) for name, found in record["networks"].items()]
    return _table(head, rows)


def _compile_row(found: dict[str, Any]) -> list[str]:
    if "medians" not in found:
        return ["fails"]
    medians, ratios = found["medians"], found["ratios"]
    ours, peer, theirs = (medians.get(key, {}) for key in ("lwdna", "peer", "peer_shrink"))
    if found.get("peer_result_failure"):
        peer, theirs = {}, {}
    stopped = theirs.get("left", 0) > bm_compile.BUDGET
    return [
        *(f"{ours[stage]:.2f}" for stage in ("capture", "analyse", "resize", "total")),
        f"{found['verify_s']:.1f}",
        f"{medians['forward']:.3f}",
        f"{ratios['forward']:.1f}",
        f"{peer['total']:.2f}" if peer else "fails",
        f"{1 / ratios['peer']:.2f}" if peer else "–",
        f"{medians['lwdna_shrink']['total']:.2f}",
        f"{theirs['total']:.1f}" if theirs else "–",
        f"{'> ' * stopped}{1 / ratios['peer_shrink']:.1f}" if theirs else "–",
        f"{found['peak_mb']:.0f}",
        f"{found['peer_peak_mb']:.0f}" if peer else "–",
    ]


def _scaling(record: dict[str, Any]) -> str:
    sizes = ("layers", "channels", "nodes", "units", "groups")
    stages = ("capture", "analyse", "select", "resize", "total")
    rows = [
        (*(f"{r[size]:,}" for size in sizes), *(f"{r['seconds'][s]:.2f}" for s in stages))
        for r in (*record["depth"], *record["width"])
    ]
    return _table((*sizes, *(f"{stage}, s" for stage in stages)), rows)


def _selection(record: dict[str, Any]) -> str:
    rows = [
        (
            name,
            f"{found['units']:,}",
            run["allocation"],
            ", ".join(run["limits"]),
            f"{run['median_s']:.3f}",
        )
        for name, found in record["networks"].items()
        for run in found["runs"]
    ]
    return _table(("network", "channels", "allocation", "limits", "seconds"), rows)


def _runs(records: dict[str, dict[str, Any]]) -> str:
    rows = []
    for name, record in records.items():
        found = record["environment"]
        versions = ", ".join(f"{k} {v}" for k, v in found["versions"].items() if v)
        commit = str(found["commit"])
        cell = commit[:10] + ("+" if commit.endswith("+") else "")
        rows.append((name, found["date"][:10], cell, found["device"], found["cpu"], versions))
    return _table(("benchmark", "date", "commit", "device", "CPU", "versions"), rows)


def main(pages: Iterable[Path] = PAGES) -> int:
    blocks = tables()
    for page in pages:
        refill(page, "bench", blocks)
    return 0


if __name__ == "__main__":
    sys.exit(main())
