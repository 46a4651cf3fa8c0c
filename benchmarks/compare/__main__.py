"""Networks of equal cost, trained by one protocol: what each way to choose widths is worth.

    python -m benchmarks.compare TABLE.toml [TABLE.toml ...] --data DIR [--jobs 2]

A table names networks, data, budgets, methods and seeds (see benchmarks/compare/tables/ and
docs/comparison.md). Every run leaves one record; a run that has its record is not done again, and
one that was killed goes on from its last epoch. The summary of all records that there are is
written in any case. Exit code 1 if a run failed or, on test data, a bar is missed.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # numpy reads it when it is imported

from benchmarks.compare.plan import plan
from benchmarks.compare.report import bars, markdown
from benchmarks.compare.summary import summarise
from benchmarks.compare.sweep import Place, sweep
from benchmarks.compare.table import read_table
from benchmarks.record import RESULTS, environment, verdict, write
from lwdna.training import Machine


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("tables", nargs="+", type=Path, metavar="TABLE.toml")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="with the packs")
    parser.add_argument("--output", type=Path, default=RESULTS / "compare", metavar="DIR")
    parser.add_argument(
        "--split",
        choices=("validation", "test"),
        default="validation",
        help="test: train on all images, measure on the test sets, once, when all is chosen",
    )
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="those to run; default all")
    parser.add_argument("--jobs", type=int, default=1, help="processes (default 1)")
    parser.add_argument("--limit-minutes", type=float, metavar="M", help="stop then; go on later")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="of each process (default 1)")
    parser.add_argument(
        "--workers", type=int, default=0, help="processes that cut patches, of each"
    )
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--compile", action="store_true")
    return parser.parse_args()


def main() -> int:
    args = arguments()
    tables = [read_table(path) for path in args.tables]
    machine = Machine(
        device=args.device,
        workers=args.workers,
        threads=args.threads,
        channels_last=args.channels_last,
        compile=args.compile,
    )
    until = None if args.limit_minutes is None else time.time() + 60 * args.limit_minutes
    place = Place(args.data, args.output, machine, until)
    failed = sweep(plan(tables, args.split, args.methods), place, args.jobs)
    summary = {
        "environment": environment(),
        **summarise(tables, args.split, args.output / "runs"),
    }
    name = "_".join([*(table.name for table in tables), args.split]).replace("-", "_")
    write(args.output / f"{name}.json", summary, bars(summary))
    text = markdown(summary)
    (args.output / f"{name}.md").write_text(text)
    print(text)
    missed = verdict(bars(summary)) if args.split == "test" else 0
    return 1 if failed else missed


if __name__ == "__main__":
    sys.exit(main())
