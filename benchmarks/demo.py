"""The main job, end to end: ResNet-50 -> its LW-DNA form on photographs -> a few training steps.

``python -m benchmarks.demo`` (or ``make demo``). Setting of the paper's ResNet-50: widened twice,
floors 0.4 and 0.45 of the widened widths, 90.6 % of the paper FLOPs.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from tabulate import tabulate

import lwdna
from benchmarks.photos import PHOTOS, batches
from lwdna import tables

BUDGET = lwdna.Budget(flops_paper=3.7307e9)  # Li et al., CVPR 2021: 90.60 % of ResNet-50's
FLOORS = lwdna.Floors(fraction=0.4, absolute=4, classifier=0.45)


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    say("Photographs, from scikit-image:")
    for name, shows, licence, _ in PHOTOS:
        say(f"  {name}: {shows} ({licence})")
    model = torchvision.models.resnet50(weights=None)
    say("\nShrinking ResNet-50 on two batches of crops; this takes a minute or two.")
    started = time.perf_counter()
    net = lwdna.shrink(
        model,
        BUDGET,
        data=batches(2, args.batch, seed=args.seed),
        widen=2.0,
        constraints=lwdna.Constraints(FLOORS),
        seed=args.seed,
    )
    dna: lwdna.Dna = net.meta["lwdna"]
    seconds = time.perf_counter() - started
    say(f"\nResNet-50 -> LW-DNA in {seconds:.1f} s (criterion {dna.criterion})\n")
    say(width_table(dna))
    say("\n" + cost_table(dna))
    picture = args.output / "resnet50_widths.png"
    dna.plot("widths").savefig(picture, dpi=130)
    page = lwdna.report(net, args.output / "resnet50.html", groups="layer1.0.conv3")
    (args.output / "resnet50_dna.json").write_text(dna.to_json())
    say(f"\nPicture: {picture}   Widths as JSON: {args.output / 'resnet50_dna.json'}")
    say(f"Report: {page}\n")
    losses = train(net, args.steps, args.batch, args.seed)
    if args.record is not None:
        args.record.write_text(json.dumps(summary(dna, losses, seconds), indent=1) + "\n")
    if dna.after.flops_paper > BUDGET.limits(dna.before)["flops_paper"]:
        sys.exit("the budget is exceeded: this is a defect of lwdna")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=16, help="photograph crops per batch")
    parser.add_argument("--steps", type=int, default=6, help="training steps of the result")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--output", type=Path, default=Path("out"), help="folder for picture and JSON"
    )
    parser.add_argument("--record", type=Path, help="also write the figures to this JSON file")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    return args


def say(text: str) -> None:
    print(text, flush=True)


def width_table(dna: lwdna.Dna) -> str:
    return tabulate(tables.width_rows(dna), headers=tables.WIDTH_HEADERS)


def cost_table(dna: lwdna.Dna) -> str:
    return tabulate(tables.cost_rows(dna), headers=tables.COST_HEADERS, disable_numparse=True)


def summary(dna: lwdna.Dna, losses: list[float], seconds: float) -> dict[str, Any]:
    """The figures that documents may quote."""
    return {
        "setting": "torchvision resnet50, widen 2, floors 0.4 / 0.45, paper FLOPs 3.7307 G",
        "criterion": dna.criterion,
        "seed": dna.seed,
        "before": dna.before.as_dict(),
        "after": dna.after.as_dict(),
        "widths": {g.name: [g.baseline, g.widened, g.width] for g in dna.groups if g.prunable},
        "losses": losses,
        "seconds": round(seconds, 1),
        "versions": dict(dna.versions),
        "device": platform.machine(),
    }


def train(net: torch.nn.Module, steps: int, size: int, seed: int) -> list[float]:
    """A few steps of the paper's protocol (SGD, momentum 0.9, weight decay 1e-4).

    Its learning rate of 0.1 is for batches of 256; it goes down in proportion (Goyal et al., 2017).
    """
    optimiser = torch.optim.SGD(
        net.parameters(), lr=0.1 * size / 256, momentum=0.9, weight_decay=1e-4
    )
    net.train()
    losses = []
    for step, (images, labels) in enumerate(batches(steps, size, seed=seed + 1), 1):
        loss = F.cross_entropy(net(images), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(round(loss.item(), 4))
        say(f"training step {step}: loss {losses[-1]:.4f}")
    return losses


if __name__ == "__main__":
    main()
