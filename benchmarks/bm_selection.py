"""Seconds of one selection among some 50,000 units, for each allocation, on one thread.

    python -m benchmarks.bm_selection [--networks resnet152 ...] [--repeats 5] [--output FILE]

The networks are torchvision's, widened, and two chains of linear layers; saliencies are drawn at
random, with a scale of its own for every group, and limits lie 40 % of the way from the least to
the most attainable cost. What is timed is ``lwdna.select``, from arrays to a selection; the cost
model, which a graph builds once, is timed beside it. Exit code 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, get_args

os.environ.setdefault("OMP_NUM_THREADS", "1")  # numpy reads it when it is imported

import numpy as np
import torch
import torchvision

import lwdna
from benchmarks.record import RESULTS, environment, verdict, write
from lwdna.budget import cost_range
from lwdna.channels import Slot
from lwdna.cost import CostModel, Term
from lwdna.fx_passes.widen import widen_copies
from lwdna.graph import ChannelGraph, ChannelGroup
from lwdna.selection import Allocation

OUTPUT = RESULTS / "bm_selection.json"
SEED = 0
SHARE = 0.4  # of the attainable range, for every limit
BAR_S = 0.5
LIMITS = (("macs",), ("macs", "params"))

#: name -> widening, or the widths of a chain
NETWORKS: dict[str, float | list[int]] = {
    "resnet152": 2.0,  # the factors give each network some 50,000 units
    "densenet201": 3.0,
    "chain of 300 layers": np.random.default_rng(SEED).integers(20, 320, 300).tolist(),
    "chain of 1000 layers": [50] * 1000,
}


def chain(widths: list[int]) -> ChannelGraph:
    """Linear layers one after the other; the first and the last width are fixed."""
    widths = [3, *widths, 10]
    group_of = np.repeat(np.arange(len(widths)), widths)
    units = [np.flatnonzero(group_of == g) for g in range(len(widths))]
    terms = [Term(kind, 1, pair, "") for pair in pairwise(units) for kind in ("linear", "params")]
    groups = [
        ChannelGroup(g, f"layer{g}", own, ((Slot("w", 0), 1),), 0 < g < len(widths) - 1)
        for g, own in enumerate(units)
    ]
    return ChannelGraph(
        tensors={},
        buffers=frozenset(),
        groups=tuple(groups),
        group_of=group_of,
        terms=tuple(terms),
        values={},
        facts={},
        roles={},
        choices=(),
        inputs=(),
        origin=np.arange(len(group_of)),
    )


def graph_of(name: str) -> ChannelGraph:
    given = NETWORKS[name]
    if isinstance(given, list):
        return chain(given)
    with torch.device("meta"):
        model = torchvision.models.get_model(name, weights=None)
    x = torch.zeros(2, 3, 224, 224)
    graph = lwdna.analyse(lwdna.capture(model, x), x)
    return graph.restrict(widen_copies(graph, given))


def measure(name: str, repeats: int) -> dict[str, Any]:
    """Seconds of every repetition, their medians, and what was selected."""
    graph = graph_of(name)
    started = time.perf_counter()
    CostModel(graph.terms, graph.group_of, np.maximum(graph.widths, 1))
    model_s = time.perf_counter() - started
    rng = np.random.default_rng(SEED)
    scale = np.exp(rng.normal(0, 1, len(graph.groups)))
    saliency = rng.lognormal(0, 1, graph.units) * scale[graph.group_of]
    ranges = cost_range(graph)  # builds the graph's own cost model
    runs = []
    for metrics in LIMITS:
        limits = {m: int(ranges[m][0] + SHARE * (ranges[m][1] - ranges[m][0])) for m in metrics}
        for allocation in get_args(Allocation):
            seconds = []
            for _ in range(repeats):
                started = time.perf_counter()
                selection = lwdna.select(graph, saliency, limits, allocation=allocation)
                seconds.append(time.perf_counter() - started)
            kept = (selection.copies == 1) & graph.prunable[graph.group_of]
            runs.append(
                {
                    "limits": limits,
                    "allocation": allocation,
                    "seconds": seconds,
                    "median_s": median(seconds),
                    "used": selection.used,
                    "kept_saliency": float(saliency[kept].sum()),
                }
            )
    return {
        "units": graph.units,
        "groups": len(graph.groups),
        "terms": len(graph.terms),
        "cost_model_s": model_s,
        "runs": runs,
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--repeats", type=int, default=5, help="medians of this many (default 5)")
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="FILE")
    args = parser.parse_args()
    torch.set_num_threads(1)
    record: dict[str, Any] = {
        "environment": environment(),
        "settings": {"seed": SEED, "threads": 1, "repeats": args.repeats, "share": SHARE},
        "networks": {},
    }
    print(f"{'network':22}{'units':>8}{'groups':>8}  {'allocation':20}{'limits':>7}", end="")
    print(f"{'median s':>10}{'kept saliency':>15}")
    for name in args.networks:
        found = record["networks"][name] = measure(name, args.repeats)
        for run in found["runs"]:
            print(
                f"{name:22}{found['units']:8}{found['groups']:8}  {run['allocation']:20}"
                f"{len(run['limits']):7}{run['median_s']:10.3f}{run['kept_saliency']:15.6g}",
                flush=True,
            )
    worst = max(r["median_s"] for found in record["networks"].values() for r in found["runs"])
    bar = f"one selection: at most {worst:.3f} s <= {BAR_S:g} s"
    bars = [(worst <= BAR_S, bar)]
    write(args.output, record, bars)
    return verdict(bars)


if __name__ == "__main__":
    sys.exit(main())
