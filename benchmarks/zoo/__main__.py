"""Every model of timm and torchvision: captured, analysed, shrunk, verified and timed.

    python -m benchmarks.zoo [--models 'timm:resnet*' ...] [--sample 40] [--jobs 2] [--output FILE]

Each model gets a process of its own with limits of time and memory, and a line in FILE. A run that
was interrupted goes on where it stopped. Exit code 1 if a
model fails, or loses prunability, for a reason that limits.toml does not list.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from tqdm import tqdm

from benchmarks.record import ROOT, environment
from benchmarks.zoo import names, pool, records, report
from benchmarks.zoo.worker import Settings, examine

OUTPUT = ROOT / "benchmarks" / "results" / "zoo.jsonl"


def main(arguments: list[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    settings = Settings(seed=args.seed, peer=args.peer)
    chosen = names.matching(args.models) if args.models else names.all_models()
    if args.sample:
        chosen = names.sample(chosen, args.sample, args.seed)
    facts = environment() | {"models": len(names.all_models())}
    key = records.key_of(facts["versions"], settings.as_dict())
    before = records.read(args.output)
    done = before.done(key, redo_failed=args.redo == "failed") if args.redo != "all" else set[str]()
    todo = [name for name in chosen if name not in done]
    if todo:
        _sweep(todo, settings, facts | {"key": key, "settings": settings.as_dict()}, args)
    results = records.tidy(args.output)
    return report.show(results.select(chosen), len(chosen))


def _sweep(
    todo: list[str], settings: Settings, facts: records.Record, args: argparse.Namespace
) -> None:
    """Examine the models in random order, so that the estimate of the end is a good one."""
    random.Random(args.seed).shuffle(todo)
    if settings.peer:
        import torch_pruning  # noqa: F401 - before the forks, once
    run = records.key_of(facts, {})
    records.append(args.output, {"run": run, **facts})
    examined = pool.run_all(
        todo,
        partial(_examine, settings),
        jobs=args.jobs,
        limit_s=args.limit,
        memory_gb=args.memory,
    )
    tqdm.monitor_interval = 0  # no thread in the process that forks
    failed = 0
    with tqdm(total=len(todo), unit="model", smoothing=0.05) as bar:
        for record in examined:
            ok = records.is_ok(record)
            line = {"family": names.family(record["name"]), "run": run, "ok": ok, **record}
            records.append(args.output, line)
            failed += not ok
            bar.set_postfix_str(f"{failed} failed; {record['name']}", refresh=False)
            bar.update()


def _examine(settings: Settings, name: str, send: Callable[[Mapping[str, object]], None]) -> None:
    examine(name, settings, send)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--models", nargs="+", metavar="GLOB", help="e.g. timm:resnet* vit_b_16 (default: all)"
    )
    parser.add_argument("--sample", type=int, metavar="N", help="N models of different families")
    parser.add_argument("--seed", type=int, default=0, help="of the sample, weights and channels")
    parser.add_argument("--redo", choices=("failed", "all"), help="examine these again")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="default: the cores")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds for one model")
    parser.add_argument("--memory", type=float, default=10.0, help="GB for one model")
    parser.add_argument("--no-peer", dest="peer", action="store_false", help="lwdna alone")
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="FILE")
    return parser


if __name__ == "__main__":
    sys.exit(main())
