"""A summary as markdown, and the bars of the comparison."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any

from tabulate import tabulate

from benchmarks.compare.plan import plan
from benchmarks.compare.table import read_table
from benchmarks.record import Bars

TABLES = Path(__file__).parent / "tables"

#: The method that the bars are about, and those that it is set against at equal cost.
METHOD, AGAINST = "default", ("uniform", "random")
#: The most of the baseline's MACs and params; pairs, and how many of five must be won.
MOST, PAIRS, WON = 0.95, 5, 4


def bars(summary: Mapping[str, Any]) -> Bars:
    """The bars with whether they are met, at the largest budget that they allow.

    Args:
        summary: of all tables together.
    """
    budgets = [budget for budget in summary["overall"] if float(budget) <= MOST]
    chosen = max(budgets, key=float, default="none")
    overall = summary["overall"].get(chosen, {}).get(METHOD, {})
    rows = [p["budgets"].get(chosen, {}).get(METHOD) for p in summary["pairs"].values()]
    shares = [row[metric] for row in rows if row for metric in ("macs", "params")]
    most = max(shares, default=float("nan"))
    found = [
        (
            summary["split"] == "test",
            f"measured on the {summary['split']} split; test is what counts",
        ),
        (most <= MOST, f"MACs and params of {METHOD}: {most:.1%} of the baseline's <= {MOST:.0%}"),
    ]
    baseline = overall.get("baseline", {"pairs": 0, "wins": 0})
    enough = baseline["pairs"] >= PAIRS
    wanted = ceil(WON / PAIRS * baseline["pairs"])
    found.append(
        (
            enough and baseline["wins"] >= wanted,
            f"{METHOD} beats the baseline's mean on {baseline['wins']} of {baseline['pairs']} "
            f"pairs >= {WON} of {PAIRS}",
        )
    )
    for reference in AGAINST:
        gain = overall.get(reference, {}).get("gain")
        met = gain is not None and gain["low"] is not None and gain["low"] > 0
        told = "no runs" if gain is None else f"{_interval(gain, 3)} dB"
        found.append((met, f"{METHOD} over {reference} on all pairs: {told} > 0"))
    return found


def markdown(summary: Mapping[str, Any]) -> str:
    """Tables of every pair and budget, and one of all pairs."""
    told = "\n\n".join([*_pairs(summary), *_all_pairs(summary)])
    split = "test sets" if summary["split"] == "test" else "validation images"
    return f"Measured on the {split}.\n\n{told}\n"


def contents() -> str:
    """Markdown: what the tables in benchmarks/compare/tables/ compare."""
    rows = []
    for path in sorted(TABLES.glob("*.toml")):
        if path.stem != "methods":
            table = read_table(path)
            for pair in table.pairs:
                runs = len(plan([replace(table, pairs=(pair,))], "validation"))
                images = "all" if pair.data.images is None else f"{pair.data.images:,}"
                about = pair.network.rpartition(":")[2], f"{pair.data.name}, {images}"
                budgets = ", ".join(f"{budget:g}" for budget in table.budgets)
                rows.append((path.name, pair.name, *about, pair.protocol.epochs, budgets, runs))
    head = ["table", "pair", "network", "images", "epochs", "budgets", "runs"]
    return _table(rows, head)


def _pairs(summary: Mapping[str, Any]) -> Iterator[str]:
    references = summary["references"]
    for pair, found in summary["pairs"].items():
        for budget, rows in found["budgets"].items():
            head = ["method", "MACs", "params", f"score, {found['unit']}", "seeds"]
            table = [
                (
                    name,
                    f"{row['macs']:.1%}",
                    f"{row['params']:.1%}",
                    _around(row["score"]),
                    len(row["seeds"]),
                    *(_interval(row["against"].get(r), 2) for r in references),
                )
                for name, row in rows.items()
            ]
            head += [f"over {reference}" for reference in references]
            yield f"**{pair}**, budget {budget}\n\n{_table(table, head)}"


def _all_pairs(summary: Mapping[str, Any]) -> Iterator[str]:
    references = summary["references"]
    for budget, methods in summary["overall"].items():
        table = [
            (name, *(text for r in references for text in _gain(found.get(r))))
            for name, found in methods.items()
        ]
        head = ["method", *(t for r in references for t in (f"beats {r}", "error, dB"))]
        yield f"**All pairs**, budget {budget}\n\n{_table(table, head)}"


def _gain(found: Mapping[str, Any] | None) -> tuple[str, str]:
    if found is None:
        return "–", "–"
    return f"{found['wins']} of {found['pairs']}", _interval(found["gain"], 3)


def _around(score: Mapping[str, Any]) -> str:
    if score["low"] is None:
        return f"{score['mean']:.2f}"
    return f"{score['mean']:.2f} ± {score['mean'] - score['low']:.2f}"


def _interval(found: Mapping[str, Any] | None, digits: int) -> str:
    """``+0.31 (0.10 to 0.52)``."""
    if found is None:
        return "–"
    mean = f"{found['mean']:+.{digits}f}"
    if found["low"] is None:
        return mean
    return f"{mean} ({found['low']:+.{digits}f} to {found['high']:+.{digits}f})"


def _table(rows: list[tuple[Any, ...]], head: list[str]) -> str:
    return tabulate(rows, head, tablefmt="github", disable_numparse=True)
