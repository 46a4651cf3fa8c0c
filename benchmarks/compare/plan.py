"""Which runs a table asks for, and in what order."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from benchmarks.compare.data import Split
from benchmarks.compare.run import Run
from benchmarks.compare.table import Pair, Table


@dataclass(frozen=True)
class Cell:
    """A run, and where it stands in a table.

    Attributes:
        budget: of the table, whatever the method's own is.
        run: the run; a baseline's is the same for all budgets.
    """

    budget: float
    run: Run


def cells(table: Table, pair: Pair, split: Split) -> Iterator[Cell]:
    """All runs of one pair: seed by seed, in each by budget, method and draw."""
    for seed in table.seeds:
        for budget in table.budgets:
            for method in table.methods:
                own = None if method.kind == "baseline" else method.budget or budget
                for draw in range(method.draws):
                    yield Cell(budget, Run(pair, method, own, seed, draw, split))


def plan(
    tables: Sequence[Table], split: Split, methods: Collection[str] | None = None
) -> list[Run]:
    """The runs of some tables, each once, the first seed of all before the second.

    A sweep that is stopped has then run all methods from the same seeds, as far as it came.

    Args:
        tables: what to run.
        split: what to measure on.
        methods: names of those to run; None for all.
    """
    found = [
        cell.run
        for table in tables
        for pair in table.pairs
        for cell in cells(table, pair, split)
        if methods is None or cell.run.method.name in methods
    ]
    unique: dict[str, Run] = {}
    for run in sorted(found, key=lambda run: run.seed):
        unique.setdefault(run.hash, run)
    return list(unique.values())
