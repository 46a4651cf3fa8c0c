"""Predicted and measured latency of shrunk networks, and what a budget of latency gives.

    python -m benchmarks.bm_latency [--networks timm:resnet18 ...] [--device cuda] [--output FILE]

For every network: a table of its operators is measured, the network is shrunk to each share of its
latency and of its MACs by random saliencies, and every result is timed in turn with the baseline.
`error` is predicted over measured share of the baseline's seconds, minus one; `drift` compares the
baseline's own seconds as the table has them, measured minutes before, with those measured now. Exit
code 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch import nn

import lwdna
from benchmarks.measure import device_name, in_turn
from benchmarks.networks import build
from benchmarks.record import RESULTS, Bars, environment, verdict, with_steady_memory, write

OUTPUT = RESULTS / "bm_latency.json"
SEED = 0
NETWORKS = (
    "timm:resnet18",
    "timm:resnet50",
    "timm:resnext50_32x4d",
    "timm:regnety_004",
    "timm:mobilenetv2_100",
    "timm:mobilenetv3_large_100",
    "timm:efficientnet_b0",
    "timm:densenet121",
    "timm:convnext_tiny",
    "timm:hrnet_w18_small",
    "timm:vit_tiny_patch16_224",
    "torchvision:shufflenet_v2_x1_0",
)
BUDGETS = (("latency", 0.7), ("latency", 0.5), ("macs", 0.7), ("macs", 0.5))

#: The bars: the largest error that counts as right, and on how many networks at least.
ERROR, AT_LEAST = 0.1, 10


def measure(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """The table's own error, and every result's predicted and measured seconds."""
    torch.manual_seed(SEED)
    model, size = build(name)
    model = model.eval().to(args.device)
    images = torch.randn(args.batch, *size, device=args.device)
    table = lwdna.measure_latency(
        model, images, divisor=args.divisor, repeats=args.repeats, seed=SEED
    )
    networks: dict[str, nn.Module] = {"baseline": model}
    predicted = {}
    for metric, share in BUDGETS:
        with suppress(lwdna.BudgetError):  # below what multiples of the divisor reach
            net = lwdna.shrink(
                model,
                lwdna.Budget(**{metric: share}),
                latency=table,
                widen=1.0,
                criterion="random",
                constraints=lwdna.Constraints(divisor=args.divisor),
                example_inputs=images,
                seed=SEED,
                progress=False,
            )
            dna = net.meta["lwdna"]  # type: ignore[index,union-attr]
            predicted["baseline"] = dna.before.latency / 1e12
            predicted[f"{metric} {share:g}"] = dna.after.latency / 1e12
            networks[f"{metric} {share:g}"] = net
    measured = _seconds(networks, images, args.repeats)
    base = {"predicted": predicted["baseline"], "measured": measured["baseline"]}
    return {
        "table_error": round(table.error, 4),
        "drift": round(base["predicted"] / base["measured"] - 1, 4),
        "baseline": {key: round(seconds, 6) for key, seconds in base.items()},
        "results": {
            what: {
                "predicted": round(predicted[what] / base["predicted"], 4),
                "measured": round(measured[what] / base["measured"], 4),
                "error": round(
                    predicted[what] / base["predicted"] / (measured[what] / base["measured"]) - 1, 4
                ),
            }
            for what in predicted
            if what != "baseline"
        },
    }


def _seconds(
    networks: dict[str, nn.Module], images: torch.Tensor, repeats: int
) -> dict[str, float]:
    """Median seconds of a forward pass of each network."""
    steps = {what: partial(network.eval(), images) for what, network in networks.items()}
    with torch.inference_mode():
        for step in [*steps.values()] * 3:
            step()
        return in_turn(steps, 2 * repeats, images.device)


def worst(found: dict[str, Any]) -> float:
    """Largest error of a network's shrunk results."""
    return max(abs(float(r["error"])) for r in found["results"].values())


def bars(networks: dict[str, Any]) -> Bars:
    """The bar with whether it is met."""
    right = [name for name, found in networks.items() if worst(found) <= ERROR]
    text = f"predicted share within {ERROR:.0%} of the measured one on"
    return [
        (len(right) >= AT_LEAST, f"{text} {len(right)} of {len(networks)} networks >= {AT_LEAST}")
    ]


def table(networks: dict[str, Any]) -> str:
    """Markdown: share of the baseline's measured seconds, and the error of the prediction."""
    rows = [
        (
            name,
            f"{1e3 * found['baseline']['measured']:.1f}",
            f"{found['drift']:+.1%}",
            *(_cell(found["results"].get(f"{metric} {share:g}")) for metric, share in BUDGETS),
        )
        for name, found in networks.items()
    ]
    head = (
        "network",
        "baseline, ms",
        "drift",
        *(f"{share:.0%} {metric}" for metric, share in BUDGETS),
    )
    return tabulate(rows, head, tablefmt="github", disable_numparse=True)


def _cell(result: dict[str, float] | None) -> str:
    return "–" if result is None else f"{result['measured']:.0%} ({result['error']:+.1%})"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", default=NETWORKS, metavar="LIBRARY:NAME")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument(
        "--divisor", type=int, help="of the widths; by default what the device prefers"
    )
    parser.add_argument("--repeats", type=int, default=5, help="medians of this many (default 5)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="FILE")
    args = parser.parse_args()
    args.divisor = args.divisor or lwdna.preferred_divisor(args.device)
    torch.set_num_threads(args.threads)
    chosen = ("device", "batch", "divisor", "repeats", "threads")
    record: dict[str, Any] = {
        "environment": environment() | {"device": device_name(args.device)},
        "settings": {"seed": SEED, **{key: getattr(args, key) for key in chosen}},
        "networks": {},
    }
    for name in args.networks:
        record["networks"][name] = measure(name, args)
        print(table({name: record["networks"][name]}).splitlines()[-1], flush=True)
        found = bars(record["networks"])
        write(args.output, record, found)
    return verdict(found)


if __name__ == "__main__":
    with_steady_memory()
    sys.exit(main())
