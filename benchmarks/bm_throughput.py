"""How much of the saved MACs becomes time: baseline, uniformly scaled and shrunk networks.

    python -m benchmarks.bm_throughput [--networks timm:resnet50 ...] [--device cuda] [--compile]

For every network, budget and way to run it: milliseconds of one image, of a batch, and of a
training step. All networks of a comparison run in turn, again and again, in one process; medians
count. `saving` is the share of the MACs that is gone, `gain` the share of the batch's seconds that
is, both against the baseline in the same mode. Exit code 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tabulate import tabulate
from torch import Tensor, nn

import lwdna
from benchmarks.bm_compile import ROOT, environment
from benchmarks.measure import device_name, in_turn
from benchmarks.networks import build

OUTPUT = ROOT / "benchmarks" / "results" / "bm_throughput.json"
SEED = 0
NETWORKS = ("timm:resnet50", "timm:mobilenetv3_large_100", "timm:regnety_004")
BUDGETS = (0.9, 0.7, 0.5)
DIVISORS = (1, 8, 16, 32)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

#: The bars, for divisors of 8 or more: of the saving that must become time on the first network
#: at the least budget; no budget may slow a network down.
BAR_NETWORK, BAR_BUDGET, BAR_SHARE = "timm:resnet50", 0.5, 0.85


@dataclass(frozen=True)
class Mode:
    """A way to run a network.

    Attributes:
        dtype: ``"fp32"``, or ``"bf16"`` for autocast.
        channels_last: memory format of images and weights.
        compiled: whether ``torch.compile`` takes the network first.
    """

    dtype: str
    channels_last: bool
    compiled: bool

    def __str__(self) -> str:
        layout = "channels_last" if self.channels_last else "contiguous"
        return f"{self.dtype}, {layout}, {'compiled' if self.compiled else 'eager'}"


def networks_of(name: str, budget: float, size: tuple[int, ...]) -> dict[str, nn.Module]:
    """The networks to compare, by what they are; all at random weights."""
    torch.manual_seed(SEED)
    model, _ = build(name)
    image = torch.empty(2, *size, device="meta")
    shrink = partial(lwdna.shrink, model, budget, example_inputs=image, seed=SEED, progress=False)
    found = {"baseline": model, "uniform": shrink(widen=1.0, criterion="uniform")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # scored on a synthetic batch
        for divisor in DIVISORS:
            constraints = lwdna.Constraints(divisor=divisor)
            found[f"divisor {divisor}"] = shrink(constraints=constraints)
    return found


def macs_left(networks: Mapping[str, nn.Module]) -> dict[str, float]:
    """Share of the baseline's MACs by network."""
    left = {"baseline": 1.0}
    for what, network in networks.items():
        if what != "baseline":
            dna = network.meta["lwdna"]  # type: ignore[index,union-attr]
            left[what] = dna.after.macs / dna.before.macs
    return left


class Runner:
    """One network in one mode: a forward pass of some images, and a training step.

    Args:
        network: is copied.
        mode: how to run it.
        images: shape (batch, C, H, W).
    """

    def __init__(self, network: nn.Module, mode: Mode, images: Tensor) -> None:
        layout = torch.channels_last if mode.channels_last else torch.contiguous_format
        self.network = copy.deepcopy(network).to(images.device, memory_format=layout)
        self.images = images.to(memory_format=layout)
        self._run = torch.compile(self.network) if mode.compiled else self.network
        self._cast = partial(
            torch.autocast, images.device.type, torch.bfloat16, enabled=mode.dtype == "bf16"
        )
        self._optimizer = torch.optim.SGD(self.network.parameters(), lr=1e-3, momentum=0.9)
        self._targets = torch.zeros(len(images), dtype=torch.int64, device=images.device)

    def forward(self, number: int) -> Callable[[], None]:
        """A forward pass of the first images without gradients, in evaluation mode."""
        images = self.images[:number]

        def run() -> None:
            self.network.eval()
            with torch.inference_mode(), self._cast():
                self._run(images)

        return run

    def train(self) -> None:
        """Forward, backward and a step of SGD with momentum."""
        self.network.train()
        self._optimizer.zero_grad()
        with self._cast():
            loss = F.cross_entropy(self._run(self.images).float(), self._targets)
        loss.backward()
        self._optimizer.step()


def compare(
    networks: Mapping[str, nn.Module], mode: Mode, images: Tensor, repeats: int, *, training: bool
) -> dict[str, dict[str, float]]:
    """Median seconds of every job of every network: all run in turn, ``repeats`` times."""
    jobs: dict[tuple[str, str], Callable[[], None]] = {}
    for what, network in networks.items():
        runner = Runner(network, mode, images)
        jobs[what, "image"], jobs[what, "batch"] = runner.forward(1), runner.forward(len(images))
        if training:
            jobs[what, "train"] = runner.train
    for run in jobs.values():  # compiles, tunes, fills caches
        run()
        run()
    found: dict[str, dict[str, float]] = {what: {} for what in networks}
    for (what, job), seconds in in_turn(jobs, repeats, images.device).items():
        found[what][job] = round(seconds, 6)
    return found


def measure(name: str, budget: float, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One record per mode."""
    _, size = build(name)
    networks = networks_of(name, budget, size)
    left = macs_left(networks)
    images = torch.randn(args.batch, *size, device=args.device)
    for compiled in (False, True) if args.compile else (False,):
        for dtype in args.dtypes:
            for channels_last in (False, True):
                mode = Mode(dtype, channels_last, compiled)
                seconds = compare(networks, mode, images, args.repeats, training=args.training)
                torch.compiler.reset()
                gc.collect()
                base = seconds["baseline"]["batch"]
                yield {
                    "network": name,
                    "budget": budget,
                    **asdict(mode),
                    "mode": str(mode),
                    "seconds": seconds,
                    "saving": {what: round(1 - share, 4) for what, share in left.items()},
                    "gain": {w: round(1 - s["batch"] / base, 4) for w, s in seconds.items()},
                }


def bars(records: list[dict[str, Any]]) -> list[tuple[bool, str]]:
    """The bars with whether they are met."""
    aligned = [f"divisor {d}" for d in DIVISORS if d >= 8]
    slower = [
        (r["gain"][what], f"{r['network']}, {r['budget']:g}, {r['mode']}, {what}")
        for r in records
        for what in aligned
    ]
    worst, where = min(slower)
    found = [(worst >= 0, f"least gain: {worst:.1%} ({where}) >= 0 %")]
    for r in records:
        if (r["network"], r["budget"]) == (BAR_NETWORK, BAR_BUDGET):
            share, what = max((r["gain"][w] / r["saving"][w], w) for w in aligned)
            text = f"{r['network']}, {r['budget']:g}, {r['mode']}: {share:.0%} of the saving"
            found.append((share >= BAR_SHARE, f"{text} becomes time ({what}) >= {BAR_SHARE:.0%}"))
    return found


def table(records: list[dict[str, Any]]) -> str:
    """Markdown: share of the saving that becomes time, by network and mode."""
    rows = []
    for r in records:
        shares = [
            f"{r['gain'][w]:.0%} / {r['saving'][w]:.0%}" for w in r["gain"] if w != "baseline"
        ]
        base = f"{1e3 * r['seconds']['baseline']['batch']:.0f}"
        rows.append((r["network"], f"{r['budget']:g}", r["mode"], base, *shares))
    names = [w for w in records[0]["gain"] if w != "baseline"]
    head = ("network", "budget", "mode", "baseline, ms", *names)
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
    parser.add_argument("--compile", action="store_true", help="torch.compile, too")
    parser.add_argument("--no-training", dest="training", action="store_false")
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="FILE")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    chosen = ("device", "batch", "repeats", "threads")
    record: dict[str, Any] = {
        "environment": environment() | {"device": device_name(args.device)},
        "settings": {"seed": SEED, **{key: getattr(args, key) for key in chosen}},
        "records": [],
    }
    for name in args.networks:
        for budget in args.budgets:
            for found in measure(name, budget, args):
                record["records"].append(found)
                print(table([found]).splitlines()[-1], flush=True)
                record["bars"] = [{"met": m, "bar": t} for m, t in bars(record["records"])]
                args.output.write_text(json.dumps(record, indent=1) + "\n")
    for met, text in bars(record["records"]):
        print("met   " if met else "MISSED", text)
    return 0 if all(met for met, _ in bars(record["records"])) else 1


if __name__ == "__main__":
    sys.exit(main())
