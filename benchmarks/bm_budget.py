"""What selections cost at fixed budgets: the figures that a change of the code must not change.

    python -m benchmarks.bm_budget [--networks timm:resnet18 ...] [--accept] [--record FILE]

Every network is captured and analysed on the meta device, widened (or not) and cut to each budget
by random saliencies with a scale of its own for every group. All of it is arithmetic on integers
and seeded numbers, so the figures are those of the committed record on every machine: exit code 1
and a line per difference where they are not. ``--accept`` writes the new figures, and the tables of
docs/benchmarks.md from them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tabulate import tabulate
from tqdm import tqdm

import lwdna
from benchmarks.networks import NETWORKS, build_on_meta
from benchmarks.pages import refill
from benchmarks.record import RESULTS, ROOT, environment
from lwdna import recipes
from lwdna.fx_passes.widen import widen_copies
from lwdna.graph import ChannelGraph

RECORD = RESULTS / "bm_budget.json"
PAGE = ROOT / "docs" / "benchmarks.md"
SEED = 0
WIDEN = (1.0, 2.0)
#: Metric and fraction of the unwidened network's.
BUDGETS = (("macs", 0.9), ("macs", 0.7), ("macs", 0.5), ("params", 0.7))
#: Families that the reference networks leave out.
FURTHER = (
    "timm:maxvit_tiny_tf_224",
    "timm:coatnet_0_rw_224",
    "timm:fastvit_t8",
    "timm:efficientformerv2_s0",
    "timm:mvitv2_tiny",
    "timm:convmixer_768_32",
    "timm:poolformerv2_s12",
    "timm:edgenext_small",
)
ALL = (*NETWORKS, *FURTHER, *(f"recipe:{name}" for name in recipes.names()))

Figures = dict[str, Any]


def measure(name: str) -> Figures:
    """The figures of one network.

    Args:
        name: ``"library:model"``, or ``"recipe:name"`` (see ``lwdna.recipes``).

    Returns:
        ``baseline`` (cost, number of units, groups and prunable groups) and ``selections``, by
        budget and widening.
    """
    torch.set_num_threads(1)
    graph = _graph(name)
    selections = {
        f"{metric} {fraction:g}, widen {widen:g}": _select(graph, metric, fraction, widen)
        for widen in WIDEN
        for metric, fraction in BUDGETS
    }
    counts = {"units": graph.units, "groups": len(graph.groups)}
    counts["prunable"] = sum(group.prunable for group in graph.groups)
    return {"baseline": {**_cost(graph.cost()), **counts}, "selections": selections}


def _graph(name: str) -> ChannelGraph:
    library, _, rest = name.partition(":")
    if library == "recipe":
        recipe = recipes.get(rest)
        model, images = recipe.build(SEED), recipe.example_inputs()
    else:
        model, size = build_on_meta(name)
        images = torch.empty(2, *size, device="meta")
    return lwdna.analyse(lwdna.capture(model, images), images)


def _cost(cost: lwdna.Cost) -> Figures:
    return {metric: cost[metric] for metric in ("macs", "flops_paper", "params")}


def _select(graph: ChannelGraph, metric: str, fraction: float, widen: float) -> Figures:
    """One selection: its cost, what it uses of the budget, and the least and largest width."""
    wide = graph.restrict(widen_copies(graph, widen))
    random = np.random.default_rng(SEED)
    scale = random.uniform(0.5, 1.5, len(wide.groups))
    saliency = random.random(wide.units) * scale[wide.group_of]
    limits = lwdna.Budget(**{metric: fraction}).limits(graph.cost())
    try:
        selection = lwdna.select(wide, saliency, limits)
    except lwdna.BudgetError as error:
        return {"refused": str(error)}
    kept = np.bincount(wide.group_of, weights=selection.copies, minlength=len(wide.groups))
    relative = kept[graph.prunable] / graph.widths[graph.prunable]
    return {
        **_cost(selection.cost),
        "ratio": round(selection.cost[metric] / graph.cost()[metric], 6),
        "used": round(selection.used[metric], 6),
        "narrowest": round(float(relative.min()), 4),
        "widest": round(float(relative.max()), 4),
    }


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    """One line for every figure of ``new`` that is not the one of ``old``, and for new networks."""
    for name, found in new.items():
        if name not in old:
            yield f"{name}: not in the record"
            continue
        before, after = (dict(_flat(figures)) for figures in (old[name], found))
        for key in dict.fromkeys((*before, *after)):
            if before.get(key) != after.get(key):
                yield f"{name}, {key}: {_change(before.get(key), after.get(key))}"


def _flat(figures: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in figures.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{path}{key}: ")
        else:
            yield f"{path}{key}", value


def _change(before: Any, after: Any) -> str:
    """Text for one figure that changed."""
    if not all(isinstance(value, (int, float)) for value in (before, after)) or not before:
        return f"{before} became {after}"
    return f"{before:,} became {after:,} ({after / before - 1:+.3%})"


def table(results: Mapping[str, Figures], widen: float) -> str:
    """Markdown: one line per network, what each budget leaves of the baseline in percent."""

    def cell(found: Figures, base: Figures) -> str:
        if "refused" in found:
            return "–"
        return f"{found['macs'] / base['macs']:.1%} / {found['params'] / base['params']:.1%}"

    keys = [f"{metric} {fraction:g}, widen {widen:g}" for metric, fraction in BUDGETS]
    rows = []
    for name, figures in results.items():
        base, chosen = figures["baseline"], figures["selections"]
        done = [found for key in keys if "refused" not in (found := chosen[key])]
        widths = "–"
        if done:
            low, high = min(f["narrowest"] for f in done), max(f["widest"] for f in done)
            widths = f"{low:.2f} to {high:.2f}"
        size = f"{base['macs'] / 1e9:.3f}", f"{base['params'] / 1e6:.2f}"
        groups = f"{base['prunable']} / {base['groups']}"
        rows.append((name, *size, groups, *(cell(chosen[k], base) for k in keys), widths))
    head = ["network", "GMACs", "M params", "prunable groups"]
    head += [f"{fraction:.0%} {metric}" for metric, fraction in BUDGETS] + ["widths"]
    return tabulate(rows, head, tablefmt="github", disable_numparse=True)


def tables(record: Mapping[str, Any]) -> dict[str, str]:
    """The tables of docs/benchmarks.md by name."""
    return {f"widen{widen:g}": table(record["networks"], widen) for widen in WIDEN}


def run(names: Sequence[str], jobs: int) -> dict[str, Figures]:
    """The figures of several networks, by name, in processes of their own."""
    with ProcessPoolExecutor(jobs, mp_context=get_context("fork")) as pool:
        found = tqdm(pool.map(measure, names), total=len(names), unit="network")
        return dict(zip(names, found, strict=True))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", default=ALL, choices=ALL, metavar="NAME")
    parser.add_argument("--accept", action="store_true", help="write the figures to the record")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="default: the cores")
    parser.add_argument("--record", type=Path, default=RECORD, metavar="FILE")
    args = parser.parse_args()
    record = json.loads(args.record.read_text()) if args.record.exists() else {"networks": {}}
    results = run(args.networks, args.jobs)
    changed = list(differences(record["networks"], results))
    print(*changed, sep="\n")
    if args.accept:
        merged = {**record["networks"], **results}
        record = {
            "environment": environment(),
            "settings": {"seed": SEED, "widen": WIDEN, "budgets": BUDGETS},
            "networks": {name: merged[name] for name in ALL if name in merged},
        }
        args.record.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        if args.record == RECORD:
            refill(PAGE, "budget", tables(record))
        print(f"accepted: {len(changed)} differences")
        return 0
    if changed:
        print(
            f"{len(changed)} figures are not those of {args.record.name}, made with "
            f"{_versions(record)}; here {_versions({'environment': environment()})}. "
            "`make bench-accept` writes the new ones"
        )
    return 1 if changed else 0


def _versions(record: Mapping[str, Any]) -> str:
    versions = record.get("environment", {}).get("versions", {})
    return ", ".join(f"{k} {v}" for k, v in versions.items() if v) or "nothing"


if __name__ == "__main__":
    sys.exit(main())
