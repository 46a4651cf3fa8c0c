"""What the runs of one or more tables come to: means, intervals, differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.compare.data import Split
from benchmarks.compare.plan import cells
from benchmarks.compare.run import Run
from benchmarks.compare.statistics import decibel, interval
from benchmarks.compare.table import Pair, Table

Record = Mapping[str, Any]
#: Method -> seed -> the records of its draws.
Records = dict[str, dict[int, list[Record]]]
#: Budget -> method -> reference -> for each pair the differences by seed, in dB of the error.
Gains = dict[str, dict[str, dict[str, list[list[float]]]]]


def summarise(tables: Sequence[Table], split: Split, folder: Path) -> dict[str, Any]:
    """All figures of the runs that there are.

    A method's score of a seed is the mean over its draws; a seed counts when all draws are there.

    Args:
        tables: with pairs of different names.
        split: what the runs were measured on.
        folder: with the records.

    Returns:
        ``"pairs"``: pair -> budget -> method -> its row; ``"overall"``: budget -> method ->
        reference -> pairs, wins (of the means) and the interval of the gain.

    Raises:
        ValueError: pairs of one name, or runs of one pair and seed that saw different batches.
    """
    names = [pair.name for table in tables for pair in table.pairs]
    if len(set(names)) < len(names):
        raise ValueError(f"two pairs of one name among {names}")
    gains: Gains = {}
    pairs, made = {}, set()
    for table in tables:
        for pair in table.pairs:
            unit = "%" if pair.protocol.task == "classification" else "dB"
            found = _records(table, pair, split, folder)
            _check_batches(pair, found)
            budgets = {
                budget: _rows(table, records, unit, gains.setdefault(budget, {}))
                for budget, records in found.items()
            }
            pairs[pair.name] = {"unit": unit, "budgets": budgets}
            made |= {(e["commit"], e["device"]) for e in _environments(found)}
    return {
        "split": split,
        "tables": [table.name for table in tables],
        "references": list(dict.fromkeys(r for table in tables for r in table.references)),
        "made": [{"commit": commit, "device": device} for commit, device in sorted(made, key=str)],
        "pairs": pairs,
        "overall": _overall(gains),
    }


def score(record: Record, unit: str) -> float:
    """Of the trained network: top-1 in percent, or PSNR in dB; a mean over test sets.

    Args:
        record: of a run.
        unit: ``"%"`` or ``"dB"``.
    """
    metric, factor = ("top1", 100.0) if unit == "%" else ("psnr", 1.0)
    last = {name: values[-1] for name, values in record["curves"].items()}
    tests = [name for name in last if name.endswith(f"/{metric}") and name != f"train/{metric}"]
    averaged = [name for name in tests if name.startswith("ema/")]  # then they are the result
    return factor * fmean(last[name] for name in averaged or tests)


def _records(table: Table, pair: Pair, split: Split, folder: Path) -> dict[str, Records]:
    """Budget -> records of complete seeds."""
    known: dict[str, Record | None] = {}
    found: dict[str, dict[str, dict[int, list[Record | None]]]] = {}

    def record(run: Run) -> Record | None:
        if run.hash not in known:
            known[run.hash] = run.found(folder)
        return known[run.hash]

    for cell in cells(table, pair, split):
        methods = found.setdefault(f"{cell.budget:g}", {})
        seeds = methods.setdefault(cell.run.method.name, {})
        seeds.setdefault(cell.run.seed, []).append(record(cell.run))
    return {
        budget: {
            name: {seed: draws for seed, draws in seeds.items() if None not in draws}  # type: ignore[misc]
            for name, seeds in methods.items()
        }
        for budget, methods in found.items()
    }


def _environments(found: Mapping[str, Records]) -> list[Record]:
    return [
        record["environment"]
        for records in found.values()
        for seeds in records.values()
        for draws in seeds.values()
        for record in draws
    ]


def _check_batches(pair: Pair, found: Mapping[str, Records]) -> None:
    seen: dict[int, list[str]] = {}
    for records in found.values():
        for name, seeds in records.items():
            for seed, draws in seeds.items():
                for record in draws:
                    if seen.setdefault(seed, record["batches"]) != record["batches"]:
                        raise ValueError(
                            f"{pair.name}, seed {seed}: {name!r} saw other batches than those "
                            "before it: the data or the code that cuts them changed between runs; "
                            "take another output"
                        )


def _rows(
    table: Table, records: Records, unit: str, gains: dict[str, dict[str, list[list[float]]]]
) -> dict[str, Any]:
    """Method -> its row; differences go into ``gains``, too."""
    scores = {
        name: {seed: fmean(score(r, unit) for r in draws) for seed, draws in seeds.items()}
        for name, seeds in records.items()
    }
    rows = {}
    for name, own in scores.items():
        if not own:
            continue
        against = {}
        for reference in table.references:
            common = [(own[s], scores[reference][s]) for s in own if s in scores[reference]]
            if name != reference and common:
                against[reference] = asdict(interval([[a - b for a, b in common]]))
                gain = [decibel(a, unit) - decibel(b, unit) for a, b in common]
                gains.setdefault(name, {}).setdefault(reference, []).append(gain)
        flat = [record for draws in records[name].values() for record in draws]
        rows[name] = {
            "score": asdict(interval([list(own.values())])),
            "seeds": list(own),
            "runs": len(flat),
            **{metric: _left(flat, metric) for metric in ("macs", "params", "flops_paper")},
            "against": against,
            "curves": _mean_curves(flat),
            "seconds": round(fmean(sum(r["seconds"]["epochs"]) for r in flat), 1),
        }
    return rows


def _left(records: Sequence[Record], metric: str) -> float:
    """Share of the baseline's cost, a mean."""
    costs = [record["cost"] for record in records]
    return round(fmean(cost["after"][metric] / cost["before"][metric] for cost in costs), 5)


def _mean_curves(records: Sequence[Record]) -> dict[str, list[float | None]]:
    found: dict[str, list[float | None]] = {}
    for name in records[0]["curves"]:
        epochs = zip(*(record["curves"][name] for record in records), strict=True)
        found[name] = [None if None in values else round(fmean(values), 6) for values in epochs]
    return found


def _overall(gains: Gains) -> dict[str, Any]:
    return {
        budget: {
            name: {
                reference: {
                    "pairs": len(pairs),
                    "wins": sum(fmean(pair) > 0 for pair in pairs),
                    "gain": asdict(interval(pairs)),
                }
                for reference, pairs in references.items()
            }
            for name, references in methods.items()
        }
        for budget, methods in gains.items()
    }
