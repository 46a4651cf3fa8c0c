"""Seconds and memory of capture, analyse and resize, beside Torch-Pruning and one forward pass.

    python -m benchmarks.bm_compile [--networks timm:resnet18 ...] [--repeats 5] [--output FILE]

Two jobs on the CPU, at the network's own resolution, channels at random. Removal: 30 % of every
group, in one step. Shrink: to 70 % of the MACs, which the peer reaches by its own loop of small
steps (it is stopped at five times our seconds, so that its time is a lower bound). The peer prunes
a copy of the model in place (the copy is not timed); lwdna returns a new model. The table shows
medians, the JSON has every repetition, and the seconds of one ``lwdna.verify``. Exit code 1 if a
bar is missed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.networks import NETWORKS
from benchmarks.pruners import SHARE
from benchmarks.record import RESULTS, ROOT, Bars, environment, verdict, write

OUTPUT = RESULTS / "bm_compile.json"
SEED = 0
THREADS = 2
PEER_LIMIT_S = 60.0  # per repetition: the peer recurses without end on some networks
NETWORK_LIMIT_S = 1200.0
BUDGET = 0.7  # of the MACs, that both shrink to
PEER_TIMES = 5.0  # our time for that, after which the peer starts no further step

#: The bars: what the three stages may take at most.
RESNET50_S = 3.0
ANY_NETWORK_S = 30.0
PEAK_MB = 1024.0
#: The peer's time over ours, where both succeed; ours in forward passes, for CNNs.
PEER_LEAST, PEER_MEDIAN = 1.0, 3.0
FORWARDS = 10.0
#: Networks with attention, recurrence or mixing over positions: no bar in forward passes.
NO_CNN = ("vit_", "swin_", "mixer_", "xcit_", "sequencer", "mobilevit_")


def run_network(name: str, repeats: int) -> dict[str, Any]:
    """Measure one network in a fresh process; once more without the peer if that process dies."""
    result, died = _worker(name, repeats, peer=True)
    if result is None:
        result, again = _worker(name, repeats, peer=False)
        if result is None:
            return {"failure": again}
        result["peer_failure"] = died
    return result | summary(result)


def _worker(name: str, repeats: int, *, peer: bool) -> tuple[dict[str, Any] | None, str | None]:
    """(figures, None), or (None, how the process ended)."""
    options = {"repeats": repeats, "seed": SEED, "threads": THREADS, "limit": PEER_LIMIT_S}
    options |= {"share": BUDGET, "times": PEER_TIMES}
    command = [sys.executable, "-m", "benchmarks.compile_worker", name]
    command += [f"--{key}={value}" for key, value in options.items()]
    if not peer:
        command.append("--no-peer")
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=NETWORK_LIMIT_S
        )
    except subprocess.TimeoutExpired:
        return None, f"process stopped after {NETWORK_LIMIT_S:g} s"
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        return None, f"process ended with code {done.returncode}"
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found, None


def summary(result: Mapping[str, Any]) -> dict[str, Any]:
    """Medians of the repetitions, and the ratios of the totals (lwdna / other)."""
    if "seconds" not in result:
        return {}
    runs = result["seconds"]
    medians: dict[str, Any] = {"forward": median(runs["forward"])}
    for tool in ("lwdna", "peer", "lwdna_shrink", "peer_shrink"):
        if len(runs[tool]) == len(runs["forward"]):  # a peer that was stopped once has no median
            medians[tool] = {key: median(run[key] for run in runs[tool]) for key in runs[tool][0]}
    total = medians["lwdna"]["total"]
    ratios = {"forward": total / medians["forward"]}
    if "peer" in medians:
        ratios["peer"] = total / medians["peer"]["total"]
        ratios["peer_graph_only"] = (total - medians["lwdna"]["resize"]) / medians["peer"]["build"]
    if "peer_shrink" in medians:
        ours, theirs = medians["lwdna_shrink"]["total"], medians["peer_shrink"]["total"]
        ratios["peer_shrink"] = ours / theirs
    return {"medians": medians, "ratios": ratios}


_TOP = ("", "lwdna, s:", "", "", "", "forward", "lwdna /", "peer, s:", "", "lwdna /", "shrink:")
_NAMES = ("network", "capture", "analyse", "resize", "total", "s", "forward", "graph", "total")
_NAMES += ("peer", "l. / p.", "MB")
_STAGES = ("capture", "analyse", "resize", "total")


def _line(name: str, *cells: str) -> str:
    return f"{name:38}" + "".join(f"{cell:>9}" for cell in cells)


def row(name: str, result: Mapping[str, Any]) -> str:
    """One line of the table, and what failed on the lines below it."""
    notes = [
        f"    {who}: {result[key]}"
        for who, key in (
            ("lwdna", "failure"),
            ("peer", "peer_failure"),
            ("peer", "peer_result_failure"),
            ("peer", "peer_shrink_failure"),
        )
        if result.get(key)
    ]
    if "medians" not in result:
        return "\n".join([name, *notes])
    medians, ratios = result["medians"], result["ratios"]
    peer = medians.get("peer")
    cells = [f"{medians['lwdna'][stage]:.2f}" for stage in _STAGES]
    cells += [f"{medians['forward']:.3f}", f"{ratios['forward']:.1f}"]
    cells += [f"{peer[key]:.2f}" if peer else "-" for key in ("build", "total")]
    cells += [f"{ratios[key]:.1f}" if key in ratios else "-" for key in ("peer", "peer_shrink")]
    cells.append(f"{result['peak_mb']:.0f}")
    return "\n".join([_line(name, *cells), *notes])


def check_bars(results: Mapping[str, Mapping[str, Any]]) -> Bars:
    """The bars with whether they are met."""
    totals = {n: r["medians"]["lwdna"]["total"] for n, r in results.items() if "medians" in r}
    peaks = {n: r["peak_mb"] for n, r in results.items() if "peak_mb" in r}
    failed = [name for name, result in results.items() if result.get("failure")]
    bars = [
        (not failed, f"every network is resized and runs; failed: {', '.join(failed) or 'none'}")
    ]
    for name in (n for n in totals if n.endswith(":resnet50")):
        bars.append(
            (totals[name] <= RESNET50_S, f"{name}: {totals[name]:.2f} s <= {RESNET50_S:g} s")
        )
    for what, values, bar, unit in (
        ("capture + analyse + resize", totals, ANY_NETWORK_S, "s"),
        ("peak memory of capture + analyse", peaks, PEAK_MB, "MB"),
    ):
        if values:
            worst = max(values, key=lambda n: values[n])
            bars.append(
                (
                    values[worst] <= bar,
                    f"{what}: at most {values[worst]:.2f} {unit} ({worst}) <= {bar:g} {unit}",
                )
            )
    return bars + _ratio_bars(results)


def _ratio_bars(results: Mapping[str, Mapping[str, Any]]) -> Bars:
    """The bars that compare with the peer and with a forward pass."""
    ratios = {name: result["ratios"] for name, result in results.items() if "ratios" in result}
    forwards = {
        name: found["forward"]
        for name, found in ratios.items()
        if not name.partition(":")[2].startswith(NO_CNN)
    }
    found = []
    for key, job in (("peer", "removal"), ("peer_shrink", "shrink")):
        times = {n: 1 / r[key] for n, r in ratios.items() if key in r and not _wrong(results[n])}
        if not times:
            continue
        slower = sorted((n for n in times if times[n] < PEER_LEAST), key=lambda n: times[n])
        middle = median(times.values())
        text = f"{job}: faster than the peer on {len(times) - len(slower)} of {len(times)} networks"
        found.append((not slower, f"{text}; slowest against it: {', '.join(slower[:3]) or 'none'}"))
        text = f"{job}: the peer's seconds / ours, median: {middle:.2f} >= {PEER_MEDIAN:g}"
        found.append((middle >= PEER_MEDIAN, text))
    if forwards:
        above = [name for name in forwards if forwards[name] > FORWARDS]
        text = f"at most {FORWARDS:g} forward passes on {len(forwards) - len(above)} of "
        found.append((not above, f"{text}{len(forwards)} CNNs; more: {', '.join(above) or 'none'}"))
    return found


def _wrong(result: Mapping[str, Any]) -> bool:
    """Whether what the peer returned does not run."""
    return bool(result.get("peer_result_failure"))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", default=NETWORKS, metavar="LIBRARY:NAME")
    parser.add_argument("--repeats", type=int, default=5, help="medians of this many (default 5)")
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="FILE")
    args = parser.parse_args()
    started = time.perf_counter()
    record: dict[str, Any] = {
        "environment": environment(),
        "settings": {
            "seed": SEED,
            "threads": THREADS,
            "repeats": args.repeats,
            "removed_share": SHARE,
            "budget": BUDGET,
            "peer_times": PEER_TIMES,
            "peer_limit_s": PEER_LIMIT_S,
            "units": "seconds; peak_mb is MiB above the resident memory before capture",
        },
        "networks": {},
    }
    load = record["environment"]["load_average_before"]
    if load > 0.5:
        print(f"load average {load}: other work on this machine distorts the figures below")
    print(_line(*_TOP), _line(*_NAMES), sep="\n", flush=True)
    for name in args.networks:
        record["networks"][name] = run_network(name, args.repeats)
        print(row(name, record["networks"][name]), flush=True)
        bars = check_bars(record["networks"])
        record["settings"]["benchmark_s"] = round(time.perf_counter() - started, 1)
        write(args.output, record, bars)  # an interrupted run counts
    print(f"{record['settings']['benchmark_s']:.0f} s")
    return verdict(bars)


if __name__ == "__main__":
    sys.exit(main())
