"""How every stage grows with depth and with width: ResNets of 18 to 1,000 layers, and wide ones.

    python -m benchmarks.bm_scaling [--repeats 3] [--output FILE]

Processor seconds of capture, analysis, selection to 70 % of the MACs by random saliencies, and
resizing, on the meta device; medians. Exit code 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from timm.models.resnet import BasicBlock, ResNet

from benchmarks.pruners import prune, selection
from benchmarks.record import RESULTS, Bars, environment, verdict, write

OUTPUT = RESULTS / "bm_scaling.json"
SEED, SHARE = 0, 0.7
#: Layers of the deep networks; channels of the last stage of the wide ones, which have 18 layers.
DEPTHS = (18, 34, 66, 130, 258, 514, 1002)
WIDTHS = (512, 1024, 2048, 4096, 8192, 16384)
STAGES = ("capture", "analyse", "select", "resize")

#: The bars: seconds of the deepest network, exponents of the total over nodes and units.
DEEPEST_S, EXPONENT = 60.0, 1.15


def network(layers: int, channels: int) -> ResNet:
    """A ResNet of basic blocks, one quarter of them in each stage, on the meta device.

    Args:
        layers: convolutions of the longest path and the classifier.
        channels: of the last stage; each stage before has half of the next one's.
    """
    quarter, rest = divmod((layers - 2) // 2, 4)
    blocks = [quarter + (stage < rest) for stage in range(4)]
    with torch.device("meta"):
        return ResNet(BasicBlock, blocks, channels=[channels >> stage for stage in (3, 2, 1, 0)])


def measure(layers: int, channels: int, repeats: int) -> dict[str, Any]:
    """Median seconds of each stage, and the sizes that they grow with."""
    images = torch.empty(2, 3, 224, 224, device="meta")
    runs = []
    for _ in range(repeats):
        seconds, graph, _ = prune(
            network(layers, channels), images, SEED, time.process_time, selection(SHARE)
        )
        runs.append(seconds)
    return {
        "layers": layers,
        "channels": channels,
        "nodes": len(graph.values),
        "units": graph.units,
        "groups": len(graph.groups),
        "seconds": {stage: round(median(r[stage] for r in runs), 4) for stage in runs[0]},
    }


def exponent(found: list[dict[str, Any]], size: str, stage: str = "total") -> float:
    """B of the least-squares fit seconds = a * size**b in logarithms."""
    x, y = (
        np.log([value(r) for r in found])
        for value in (lambda r: r[size], lambda r: r["seconds"][stage])
    )
    return float(np.polyfit(x, y, 1)[0])


def bars(record: dict[str, Any]) -> Bars:
    """The bars with whether they are met."""
    deepest = max(record["depth"], key=lambda r: r["layers"])
    seconds = deepest["seconds"]["total"]
    found = [(seconds < DEEPEST_S, f"{deepest['layers']} layers: {seconds:.1f} s < {DEEPEST_S:g}")]
    for kind, size in (("depth", "nodes"), ("width", "units")):
        power = exponent(record[kind], size)
        found.append((power <= EXPONENT, f"{kind}: seconds ∝ {size}^{power:.2f} <= {EXPONENT}"))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3, help="medians of this many (default 3)")
    parser.add_argument("--depths", nargs="+", type=int, default=DEPTHS, metavar="LAYERS")
    parser.add_argument("--widths", nargs="+", type=int, default=WIDTHS, metavar="CHANNELS")
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="FILE")
    args = parser.parse_args()
    torch.set_num_threads(1)
    measure(18, 512, 1)  # first-use imports
    record: dict[str, Any] = {
        "environment": environment() | {"device": "meta"},
        "settings": {"seed": SEED, "share": SHARE, "repeats": args.repeats, "threads": 1},
        "depth": [],
        "width": [],
    }
    jobs = [("depth", layers, 512) for layers in args.depths]
    jobs += [("width", 18, channels) for channels in args.widths]
    for kind, layers, channels in jobs:
        found = measure(layers, channels, args.repeats)
        record[kind].append(found)
        print(kind, json.dumps(found), flush=True)
    write(args.output, record, bars(record))
    return verdict(bars(record))


if __name__ == "__main__":
    sys.exit(main())
