"""Time and memory of scoring, beside a training step of the same widened network.

    python -m benchmarks.bm_scoring [--device cuda --side 224 --batch 64] [--output FILE]

A training step is forward, backward and SGD with momentum at the same batch, on the same network.
Seconds are medians over repetitions that alternate step and scoring in one process; peak memory is
what the process holds above its state before the network was built, one fresh process each. Exit
code 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from tabulate import tabulate
from torch import Tensor

from lwdna import recipes
from lwdna.dna import versions
from lwdna.fx_passes.analyse import analyse
from lwdna.fx_passes.capture import capture
from lwdna.fx_passes.widen import widen
from lwdna.scoring import ScoringContext, as_batches, score

OUTPUT = Path(__file__).parent / "results" / "bm_scoring.json"
#: recipe -> input resolution in pixels and batch size that a CPU can do; 64 is the paper's batch.
RECIPES = {
    "resnet50-imagenet": (64, 64),
    "regnetx-4gf-imagenet": (64, 64),
    "mobilenetv3-small-imagenet": (64, 64),
    "edsr-x4": (16, 16),
}
SEED = 0

#: The bars: a scoring on two batches against one training step.
TIME_RATIO = 3.0
MEMORY_RATIO = 1.3
#: One scoring of this recipe at 224 pixels and a batch of 64 has to fit.
FIT, FIT_MB = "regnetx-4gf-imagenet", 24_000


class Subject:
    """A widened network with two batches, ready to be scored or trained."""

    def __init__(self, name: str, side: int, batch: int, device: str) -> None:
        recipe = recipes.get(name)
        torch.manual_seed(SEED)
        model = recipe.build()
        channels = recipe.input_shape[0]
        example = torch.zeros(2, channels, side, side, device="meta")
        captured = capture(model, example)
        wide, graph = widen(captured, analyse(captured, example), recipe.widen, seed=SEED)
        del model, captured
        gc.collect()
        self.network = wide.to(device)
        classifies = recipe.loss == "cross_entropy"
        self.loss_fn: Callable[[Tensor, Tensor], Tensor]
        self.loss_fn = F.cross_entropy if classifies else F.l1_loss
        out = graph.values["output"].shape[1:]

        def one() -> tuple[Tensor, Tensor]:
            x = torch.randn(batch, channels, side, side)
            return x, torch.randint(out[0], (batch,)) if classifies else torch.rand(batch, *out)

        batches = as_batches([one(), one()], 2, network=self.network)
        self.context = ScoringContext(self.network, graph, batches, self.loss_fn, SEED)

    def score(self) -> None:
        score(self.context, "latent-grad")
        self.context.finished.clear()

    def trainer(self) -> Callable[[], None]:
        optimizer = torch.optim.SGD(self.network.parameters(), lr=1e-3, momentum=0.9)
        first = self.context.batches[0]

        def step() -> None:
            self.network.train()
            optimizer.zero_grad()
            self.loss_fn(self.network(*first.inputs), first.targets).backward()
            optimizer.step()

        return step


def measure_time(args: argparse.Namespace) -> dict[str, Any]:
    subject = Subject(args.recipe, args.side, args.batch, args.device)
    step = subject.trainer()
    step()
    subject.score()
    seconds: dict[str, list[float]] = {"step": [], "score": []}
    for _ in range(args.repeats):
        for what, run in (("step", step), ("score", subject.score)):
            started = time.perf_counter()
            run()
            if args.device == "cuda":
                torch.cuda.synchronize()
            seconds[what].append(round(time.perf_counter() - started, 4))
    return seconds


def measure_memory(args: argparse.Namespace) -> float:
    """MB above the state before the network is built, at the peak of one step or scoring."""
    before = _resident("VmRSS")
    subject = Subject(args.recipe, args.side, args.batch, args.device)
    if args.measure == "memory-step":
        run = subject.trainer()
        run()  # the optimiser's state is made in the first step
    else:
        run = subject.score
    if args.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated() / 1e6
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # restart the peak (man 5 proc)
    run()
    return _resident("VmHWM") - before


def _resident(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(field))
    return int(line.split()[1]) * 1024 / 1e6


def in_fresh_process(measure: str, name: str, args: argparse.Namespace) -> Any:
    side, batch = RECIPES[name]
    options = {"recipe": name, "measure": measure}
    options |= {"side": args.side or side, "batch": args.batch or batch}
    options |= {"device": args.device, "repeats": args.repeats, "threads": args.threads}
    command = [sys.executable, "-m", "benchmarks.bm_scoring"]
    command += [f"--{key}={value}" for key, value in options.items()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{measure} of {name} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def run_recipe(name: str, args: argparse.Namespace) -> dict[str, Any]:
    seconds = in_fresh_process("time", name, args)
    step, scored = (in_fresh_process(f"memory-{what}", name, args) for what in ("step", "score"))
    return {
        "pixels": args.side or RECIPES[name][0],
        "batch": args.batch or RECIPES[name][1],
        "seconds": seconds,
        "time_ratio": round(median(seconds["score"]) / median(seconds["step"]), 3),
        "peak_mb": {"step": round(step), "score": round(scored)},
        "memory_ratio": round(scored / step, 3),
    }


def run_fit(args: argparse.Namespace) -> int:
    """Add the peak of one scoring at the paper's batch and resolution to the JSON file."""
    args.side, args.batch = 224, 64
    peak = in_fresh_process("memory-score", FIT, args)
    record = json.loads(args.output.read_text())
    record["fit"] = {"recipe": FIT, "pixels": 224, "batch": 64, "peak_mb": round(peak)}
    args.output.write_text(json.dumps(record, indent=1) + "\n")
    print(record["fit"])
    return round(peak)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--recipes", nargs="+", default=tuple(RECIPES), choices=tuple(RECIPES))
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--side", type=int, help="input resolution in pixels")
    parser.add_argument("--batch", type=int, help="samples")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--fit", action="store_true", help=f"only the peak memory of {FIT}")
    parser.add_argument("--recipe", help=argparse.SUPPRESS)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    if args.measure:
        print(json.dumps((measure_time if args.measure == "time" else measure_memory)(args)))
        return
    if args.fit:
        sys.exit("a bar is missed" if run_fit(args) > FIT_MB else 0)
    results = {}
    for name in args.recipes:
        results[name] = run_recipe(name, args)
        print(f"{name}: {results[name]}", flush=True)
    device = torch.cuda.get_device_name() if args.device == "cuda" else platform.machine()
    record = {
        "setting": {key: getattr(args, key) for key in ("repeats", "threads")},
        "criterion": "latent-grad on two batches, embedding size 8",
        "bars": {"time_ratio": TIME_RATIO, "memory_ratio": MEMORY_RATIO},
        "results": results,
        "seed": SEED,
        "device": device,
        "date": datetime.date.today().isoformat(),
        "versions": versions(),
    }
    args.output.write_text(json.dumps(record, indent=1) + "\n")
    rows = [
        (
            name,
            median(r["seconds"]["step"]),
            r["time_ratio"],
            r["peak_mb"]["step"],
            r["memory_ratio"],
        )
        for name, r in results.items()
    ]
    print(tabulate(rows, headers=("recipe", "step s", "time ratio", "step MB", "memory ratio")))
    if any(
        r["time_ratio"] > TIME_RATIO or r["memory_ratio"] > MEMORY_RATIO for r in results.values()
    ):
        sys.exit("a bar is missed")


if __name__ == "__main__":
    main()
