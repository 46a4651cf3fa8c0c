"""How much of the saved MACs becomes time: baseline, uniformly scaled and shrunk networks.

    python -m benchmarks.bm_throughput [--networks timm:resnet50 ...] [--device cuda]

For every network, budget and way to run it: seconds of one image, of a batch, and of a training
step. All networks of a comparison run in turn, again and again, in one process; medians count.
`saving` is the share of the MACs that is gone, `gain` the share of the batch's seconds that is,
both against the baseline in the same mode. The network `latency` also has a budget of latency, of
a table measured in float32 with channels last. `kinds` says what kinds of operators the seconds
go to. Compiling takes a minute per network: it is done for --compile alone, at the least budget,
in the first precision with channels last, and a batch is all that is timed. Exit code 1 if a bar
is missed.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor, nn

import lwdna
from benchmarks.measure import device_name, in_turn
from benchmarks.networks import build
from benchmarks.record import RESULTS, Bars, environment, verdict, with_steady_memory, write
from benchmarks.running import DTYPES, Mode, Runner, kinds

OUTPUT = RESULTS / "bm_throughput.json"
SEED = 0
NETWORKS = ("timm:resnet50", "timm:mobilenetv3_large_100", "timm:regnety_004")
BUDGETS = (0.9, 0.7, 0.5)
DIVISORS = (1, 8, 16, 32)
#: Pixels of the images that channels are scored on; costs are those of the network's own size.
SCORED_AT = 64
#: Of the saving, what the network `latency` is asked to turn into time, and its divisor.
ASKED, LATENCY_DIVISOR = 0.9, 16

#: The mode that latency tables are measured in.
MEASURED = "fp32, channels_last, eager"

#: The bars, for divisors of 8 or more: of the saving that must become time on the first network
#: at the least budget; no budget may slow a network down.
BAR_NETWORK, BAR_BUDGET, BAR_SHARE = "timm:resnet50", 0.5, 0.85


def networks_of(name: str, budget: float, table: lwdna.LatencyTable | None) -> dict[str, nn.Module]:
    """The networks to compare, by what they are; all at random weights.

    A divisor whose least widths exceed the budget has no network, and so has a latency.

    Args:
        name: of the baseline.
        budget: share of its MACs.
        table: latencies of its operators, widened twice; without one there is no ``"latency"``.
    """
    torch.manual_seed(SEED)
    model, size = build(name)
    image = torch.empty(2, *size, device="meta")
    shrink = partial(lwdna.shrink, model, example_inputs=image, seed=SEED, progress=False)
    batch = torch.randn(8, size[0], SCORED_AT, SCORED_AT), torch.arange(8)
    found = {
        "baseline": lwdna.capture(model, image),
        "uniform": shrink(budget, widen=1.0, criterion="uniform"),
    }
    for divisor in DIVISORS:
        with suppress(lwdna.BudgetError):
            found[f"divisor {divisor}"] = shrink(
                budget, data=batch, constraints=lwdna.Constraints(divisor=divisor)
            )
    if table is not None:
        with suppress(lwdna.BudgetError):
            found["latency"] = shrink(
                lwdna.Budget(macs=budget, latency=1 - ASKED * (1 - budget)),
                data=batch,
                latency=table,
                allocation="saliency-per-cost",
                constraints=lwdna.Constraints(divisor=LATENCY_DIVISOR),
            )
    return found


def latencies(name: str, args: argparse.Namespace) -> lwdna.LatencyTable:
    """Operator latencies of a network up to twice its widths."""
    torch.manual_seed(SEED)
    model, size = build(name)
    images = torch.randn(args.batch, *size, device=args.device)
    return lwdna.measure_latency(
        model.to(args.device, memory_format=torch.channels_last),
        images.to(memory_format=torch.channels_last),
        widen=2.0,
        divisor=LATENCY_DIVISOR,
        configurations=args.configurations,
        repeats=3,
        seed=SEED,
    )


def macs_left(networks: Mapping[str, nn.Module]) -> dict[str, float]:
    """Share of the baseline's MACs by network."""
    left = {"baseline": 1.0}
    for what, network in networks.items():
        if what != "baseline":
            dna = network.meta["lwdna"]  # type: ignore[index,union-attr]
            left[what] = dna.after.macs / dna.before.macs
    return left


def compare(
    runners: Mapping[str, Runner], images: Tensor, repeats: int, *, every_job: bool
) -> dict[str, dict[str, float]]:
    """Median seconds of every job of every network: all run in turn, ``repeats`` times."""
    jobs: dict[tuple[str, str], Callable[[], None]] = {}
    for what, runner in runners.items():
        jobs[what, "batch"] = runner.forward(len(images))
        if every_job:
            jobs[what, "image"], jobs[what, "train"] = runner.forward(1), runner.train
    for run in jobs.values():  # compiles, tunes, fills caches
        run()
    found: dict[str, dict[str, float]] = {what: {} for what in runners}
    for (what, job), seconds in in_turn(jobs, repeats, images.device).items():
        found[what][job] = round(seconds, 6)
    return found


def modes(name: str, budget: float, args: argparse.Namespace) -> Iterator[Mode]:
    """The eager ones, and at the least budget the compiled one."""
    for dtype, channels_last in product(args.dtypes, (False, True)):
        yield Mode(dtype, channels_last, compiled=False)
    if name in args.compile and budget == min(args.budgets):
        yield Mode(args.dtypes[0], channels_last=True, compiled=True)


def measure(
    name: str, budget: float, table: lwdna.LatencyTable | None, args: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """One record per mode."""
    _, size = build(name)
    networks = networks_of(name, budget, table)
    left = macs_left(networks)
    images = torch.randn(args.batch, *size, device=args.device)
    for mode in modes(name, budget, args):
        runners = {what: Runner(net, mode, images) for what, net in networks.items()}
        seconds = compare(runners, images, args.repeats, every_job=not mode.compiled)
        spent = {} if mode.compiled else {what: kinds(r) for what, r in runners.items()}
        torch.compiler.reset()
        del runners
        gc.collect()
        base = seconds["baseline"]["batch"]
        yield {
            "network": name,
            "budget": budget,
            **asdict(mode),
            "mode": str(mode),
            "seconds": seconds,
            "kinds": spent,
            "saving": {what: round(1 - share, 4) for what, share in left.items()},
            "gain": {w: round(1 - s["batch"] / base, 4) for w, s in seconds.items()},
        }


def bars(records: list[dict[str, Any]]) -> Bars:
    """The bars with whether they are met; the first for the mode that latency is measured in."""
    aligned = [*(f"divisor {d}" for d in DIVISORS if d >= 8), "latency"]
    gains = [
        (r["gain"][what], f"{r['network']}, {r['budget']:g}, {r['mode']}, {what}")
        for r in records
        for what in aligned
        if what in r["gain"]
    ]
    measured = [g for g in gains if g[1].endswith(f"{MEASURED}, latency")]
    found = []
    for what, chosen in (("latency budget in its own mode", measured), ("all", gains)):
        if chosen:
            worst, where = min(chosen)
            found.append((worst >= 0, f"{what}, least gain: {worst:.1%} ({where}) >= 0 %"))
    for r in records:
        if (r["network"], r["budget"]) == (BAR_NETWORK, BAR_BUDGET):
            share, what = max((r["gain"][w] / r["saving"][w], w) for w in aligned if w in r["gain"])
            text = f"{r['network']}, {r['budget']:g}, {r['mode']}: {share:.0%} of the saving"
            found.append((share >= BAR_SHARE, f"{text} becomes time ({what}) >= {BAR_SHARE:.0%}"))
    return found


def table(records: list[dict[str, Any]]) -> str:
    """Markdown: share of the saving that becomes time, by network and mode."""
    names = [w for w in max((r["gain"] for r in records), key=len) if w != "baseline"]
    rows = []
    for r in records:
        shares = [
            f"{r['gain'][w]:.0%} / {r['saving'][w]:.0%}" if w in r["gain"] else "–" for w in names
        ]
        base = f"{1e3 * r['seconds']['baseline']['batch']:.0f}"
        rows.append((r["network"], f"{r['budget']:g}", r["mode"], base, *shares))
    head = ("network", "budget", "mode", "baseline, ms", *names)
    return tabulate(rows, head, tablefmt="github", disable_numparse=True)


def kinds_table(records: list[dict[str, Any]]) -> str:
    """Markdown: milliseconds of a batch by kind of operator, and what is left of the baseline's."""
    rows = []
    for r in records:
        for what, spent in r["kinds"].items():
            base = r["kinds"]["baseline"]
            cells = (f"{1e3 * s:.0f} ({s / base[kind]:.0%})" for kind, s in spent.items())
            rows.append((r["network"], f"{r['budget']:g}", r["mode"], what, *cells))
    head = ("network", "budget", "mode", "", *next(iter(records[0]["kinds"].values())))
    return tabulate(rows, head, tablefmt="github", disable_numparse=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", default=NETWORKS, metavar="LIBRARY:NAME")
    parser.add_argument("--budgets", nargs="+", type=float, default=BUDGETS, help="of the MACs")
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES), choices=DTYPES)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5, help="medians of this many (default 5)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--configurations", type=int, default=16, help="of the latency table")
    parser.add_argument("--no-latency", dest="latency", action="store_false")
    parser.add_argument("--compile", nargs="*", default=[BAR_NETWORK], metavar="LIBRARY:NAME")
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="FILE")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    chosen = ("device", "batch", "repeats", "threads", "configurations")
    record: dict[str, Any] = {
        "environment": environment() | {"device": device_name(args.device)},
        "settings": {"seed": SEED, **{key: getattr(args, key) for key in chosen}},
        "records": [],
    }
    for name in args.networks:
        measured = latencies(name, args) if args.latency else None
        for budget in args.budgets:
            for found in measure(name, budget, measured, args):
                record["records"].append(found)
                print(table([found]).splitlines()[-1], flush=True)
                write(args.output, record, bars(record["records"]))
    return verdict(bars(record["records"]))


if __name__ == "__main__":
    with_steady_memory()
    sys.exit(main())
