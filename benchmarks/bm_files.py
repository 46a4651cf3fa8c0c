"""Seconds and bytes of saving and loading, beside the seconds of the network's own constructor.

    python -m benchmarks.bm_files [--networks timm:resnet18 ...] [--widen 1 2] [--repeats 5]

Every network is shrunk at random (not widened first, and widened), saved and loaded, in one
process on one core. Constructor, load and save run in turn, again and again; medians of processor
seconds count, which other work on the machine is no part of. What earlier loads have taught the
meta kernels is forgotten before each, as in a new process. Exit code 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from tabulate import tabulate
from torch import nn

import lwdna
from benchmarks.measure import Clock
from benchmarks.networks import default_size, small_size
from benchmarks.pages import refill
from benchmarks.record import RESULTS, ROOT, Bars, environment, verdict, write
from lwdna.fx_passes.kernels import KERNELS
from lwdna.fx_passes.likeness import named_tensors
from lwdna.fx_passes.verify import evaluated

OUTPUT = RESULTS / "bm_files.json"
PAGE = ROOT / "docs" / "saving.md"
SEED = 0
BUDGET = 0.7
WIDEN = (1.0, 2.0)

#: One of each family.
NETWORKS = (
    "timm:resnet18",
    "timm:resnet50",
    "timm:regnety_004",
    "timm:mobilenetv2_100",
    "timm:mobilenetv3_small_100",
    "timm:efficientnet_b0",
    "timm:densenet121",
    "timm:convnext_tiny",
    "timm:res2net50_26w_4s",
    "timm:resnest14d",
    "timm:hrnet_w18_small",
    "timm:dla34",
    "timm:ghostnet_100",
    "timm:nfnet_f0",
    "timm:mixer_s32_224",
    "timm:vit_tiny_patch16_224",
    "timm:mobilevit_xxs",
    "timm:xcit_nano_12_p8_224",
    "timm:sequencer2d_s",
    "torchvision:shufflenet_v2_x1_0",
    "torchvision:swin_t",
    "torchvision:fcn_resnet50",
)

#: The bars: load over constructor; file over tensors, and bytes that come on top.
TIMES, SHARE, MORE = 2.0, 1.01, 100_000


def shrunk(name: str, widen: float) -> nn.Module:
    """The network at a share of its MACs, chosen at random."""
    torch.manual_seed(SEED)
    image = torch.empty(2, *default_size(name), device="meta")
    net: nn.Module = lwdna.shrink(
        lwdna.create(name),
        BUDGET,
        criterion="random",
        widen=widen,
        example_inputs=image,
        seed=SEED,
        progress=False,
    )
    return net.eval()


def measure(name: str, widen: float, repeats: int) -> dict[str, Any]:
    """Seconds, bytes, and whether the loaded network computes the same to the last bit."""
    net = shrunk(name, widen)
    images = torch.randn(2, *small_size(name))
    with tempfile.TemporaryDirectory() as folder:
        steps: dict[str, Callable[[], object]] = {
            "constructor": partial(lwdna.create, name),
            "load": partial(_load, folder),
            "save": partial(lwdna.save, net, folder),
        }
        lwdna.save(net, folder)
        again = lwdna.load(folder)
        pairs = zip(evaluated(net, images), evaluated(again, images), strict=True)
        identical = all(torch.equal(a, b) for a, b in pairs)
        del again
        gc.collect()
        seconds = medians(steps, repeats)
        written = sum(path.stat().st_size for path in Path(folder).iterdir())
    return {
        "network": name,
        "widen": widen,
        "seconds": {step: round(found, 4) for step, found in seconds.items()},
        "ratio": round(seconds["load"] / seconds["constructor"], 2),
        "tensor_bytes": tensor_bytes(net),
        "file_bytes": written,
        "identical": identical,
    }


def medians(steps: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Processor seconds of each step: medians, all run in turn."""
    runs: dict[str, list[float]] = {step: [] for step in steps}
    for _ in range(repeats):
        clock = Clock(time.process_time)
        for step, run in steps.items():
            with clock.stage(step):
                run()
            runs[step].append(clock.seconds[step])
    return {step: median(found) for step, found in runs.items()}


def _load(folder: str) -> nn.Module:
    KERNELS.forget()
    return lwdna.load(folder)


def tensor_bytes(net: nn.Module) -> int:
    """Bytes of all tensors of a network, each counted once."""
    unique = {id(t): t for _, t in named_tensors(net)}
    return sum(t.numel() * t.element_size() for t in unique.values())


def bars(records: Sequence[Mapping[str, Any]]) -> Bars:
    """The bars with whether they are met."""
    slow = sorted((r for r in records if r["ratio"] > TIMES), key=lambda r: -r["ratio"])
    large = [r for r in records if r["file_bytes"] > SHARE * r["tensor_bytes"] + MORE]
    other = [r for r in records if not r["identical"]]
    of = f"of {len(records)} networks"
    texts = (
        (slow, f"loaded in at most {TIMES:g} times the constructor's seconds"),
        (large, f"files of at most {SHARE:g} times the tensors' bytes + {MORE:,}"),
        (other, "the same outputs to the last bit"),
    )
    return [
        (not missed, f"{text}: {len(records) - len(missed)} {of}{_named(missed)}")
        for missed, text in texts
    ]


def _named(missed: Sequence[Mapping[str, Any]]) -> str:
    names = ", ".join(f"{r['network']}, widen {r['widen']:g}: {r['ratio']:g}" for r in missed[:3])
    return f"; not {names}" if names else ""


def table(records: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: one line per network and widening."""
    rows = [
        (
            r["network"],
            f"{r['widen']:g}",
            *(f"{1e3 * r['seconds'][step]:.0f}" for step in ("constructor", "load", "save")),
            f"{r['ratio']:.2f}",
            f"{r['tensor_bytes'] / 1e6:.1f}",
            f"{(r['file_bytes'] - r['tensor_bytes']) / 1e3:.0f}",
        )
        for r in records
    ]
    head = ("network", "widen", "constructor, ms", "load, ms", "save, ms", "load / constructor")
    head += ("tensors, MB", "more in files, kB")
    return tabulate(rows, head, tablefmt="github", disable_numparse=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", default=NETWORKS, metavar="LIBRARY:NAME")
    parser.add_argument("--widen", nargs="+", type=float, default=WIDEN)
    parser.add_argument("--repeats", type=int, default=5, help="medians of this many (default 5)")
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="FILE")
    args = parser.parse_args()
    torch.set_num_threads(1)
    record: dict[str, Any] = {
        "environment": environment(),
        "settings": {
            "seed": SEED,
            "budget": BUDGET,
            "repeats": args.repeats,
            "threads": 1,
            "units": "processor seconds (medians), bytes",
        },
        "records": [],
    }
    for widen in args.widen:
        for name in args.networks:
            record["records"].append(measure(name, widen, args.repeats))
            print(table(record["records"][-1:]).splitlines()[-1], flush=True)
            found = bars(record["records"])
            write(args.output, record, found)  # an interrupted run counts
    if args.output == OUTPUT:
        refill(PAGE, "files", {"load": table(record["records"])})
    return verdict(found)


if __name__ == "__main__":
    sys.exit(main())
