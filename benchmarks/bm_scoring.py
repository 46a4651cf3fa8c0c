"""Time and memory of every criterion, beside a training step of the same widened network.

    python -m benchmarks.bm_scoring [--device cuda --side 224 --batch 64] [--output FILE]

A training step is forward, backward and SGD with momentum at the same batch, on the same network;
a criterion scores two batches. Each recipe has a process of its own. Seconds are medians over
repetitions in which all take turns; peak memory is what the process holds above its state before
the network was built. Exit code 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tabulate import tabulate
from torch import Tensor

import lwdna
from benchmarks.measure import device_name, in_turn, peak_memory, resident_mb
from benchmarks.record import RESULTS, ROOT, Bars, environment, verdict, with_steady_memory, write
from lwdna import recipes
from lwdna.fx_passes.analyse import analyse
from lwdna.fx_passes.capture import capture
from lwdna.fx_passes.widen import widen
from lwdna.scoring import ScoringContext, as_batches, score

OUTPUT = RESULTS / "bm_scoring.json"
#: recipe -> input resolution in pixels and batch size, which a CPU can do in minutes.
RECIPES = {
    "resnet50-imagenet": (64, 16),
    "regnetx-4gf-imagenet": (64, 16),
    "mobilenetv3-small-imagenet": (64, 64),
    "edsr-x4": (16, 4),
}
SEED = 0
STEP = "training step"

#: The bars: the paper's criterion on two batches against one training step.
PAPER, TIME_RATIO, MEMORY_RATIO = "latent-grad", 3.0, 1.3
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

    def scorer(self, criterion: str) -> Callable[[], None]:
        def run() -> None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # some scores of new networks are 0
                score(self.context, criterion)
            self.context.finished.clear()

        return run

    def trainer(self) -> Callable[[], None]:
        # The criteria go on to score the same network: it must not change, let alone diverge.
        optimizer = torch.optim.SGD(self.network.parameters(), lr=1e-12, momentum=0.9)
        first = self.context.batches[0]

        def step() -> None:
            self.network.train()
            optimizer.zero_grad()
            self.loss_fn(self.network(*first.inputs), first.targets).backward()
            optimizer.step()

        return step


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds and peak memory of a step and of each criterion, on one recipe's network.

    Without repeats, only the peak memory of the criteria.
    """
    before = resident_mb()
    subject = Subject(args.recipe, args.side, args.batch, args.device)
    jobs, peaks, refused = {}, {}, {}
    for name in args.criteria:
        job = subject.scorer(name)
        try:
            peaks[name] = _peak(job, before, args.device)
        except lwdna.ScoringError as error:  # say, it needs batch norms
            refused[name] = str(error)
        else:
            jobs[name] = job
    setting = {"pixels": args.side, "batch": args.batch, "refused": refused}
    if not args.repeats:
        return setting | {"peak_mb": {name: round(found) for name, found in peaks.items()}}
    jobs[STEP] = subject.trainer()  # last: its momentum stays
    jobs[STEP]()
    peaks[STEP] = _peak(jobs[STEP], before, args.device)
    seconds = in_turn(jobs, args.repeats, torch.device(args.device))
    return setting | {
        "seconds": {name: round(found, 4) for name, found in seconds.items()},
        "peak_mb": {name: round(found) for name, found in peaks.items()},
        "time_ratio": {n: round(s / seconds[STEP], 3) for n, s in seconds.items()},
        "memory_ratio": {n: round(mb / peaks[STEP], 3) for n, mb in peaks.items()},
    }


def _peak(job: Callable[[], None], before: float, device: str) -> float:
    """MB at the peak of a job: of the GPU, or of the process above its state before."""
    if device != "cuda":
        return peak_memory(job, above=before)
    torch.cuda.reset_peak_memory_stats()
    job()
    return torch.cuda.max_memory_allocated() / 2**20


def in_fresh_process(name: str, args: argparse.Namespace, **changes: Any) -> dict[str, Any]:
    """:func:`measure` of a recipe."""
    side, batch = RECIPES[name]
    options = {"recipe": name, "side": args.side or side, "batch": args.batch or batch}
    options |= {key: getattr(args, key) for key in ("device", "repeats", "threads")} | changes
    command = [sys.executable, "-m", "benchmarks.bm_scoring", "--criteria", *args.criteria]
    command += [f"--{key}={value}" for key, value in options.items()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{name} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def bars(record: dict[str, Any]) -> Bars:
    """The bars with whether they are met."""
    found = []
    for ratio, bar in (("time_ratio", TIME_RATIO), ("memory_ratio", MEMORY_RATIO)):
        ratios = {n: r[ratio][PAPER] for n, r in record["recipes"].items() if PAPER in r[ratio]}
        if ratios:
            worst = max(ratios, key=lambda name: ratios[name])
            text = f"{PAPER}, {ratio.replace('_', ' ')} to a training step"
            text += f": at most {ratios[worst]:.2f} ({worst}) <= {bar:g}"
            found.append((ratios[worst] <= bar, text))
    if "fit" in record:
        peak = record["fit"]["peak_mb"][PAPER]
        text = f"{FIT} at 224 pixels and a batch of 64: {peak:,} MB <= {FIT_MB:,}"
        found.append((peak <= FIT_MB, text))
    return found


def table(record: dict[str, Any]) -> str:
    """Markdown: time and memory of each criterion in training steps."""
    found = record["recipes"]
    names = dict.fromkeys(name for r in found.values() for name in r["peak_mb"] if name != STEP)
    rows = [
        (
            STEP,
            *(f"{r['seconds'][STEP]:.2f} s, {r['peak_mb'][STEP]:,} MB" for r in found.values()),
        ),
        *(
            (
                n,
                *(
                    f"{r['time_ratio'][n]:.2f} / {r['memory_ratio'][n]:.2f}"
                    if n in r["peak_mb"]
                    else "refused"
                    for r in found.values()
                ),
            )
            for n in names
        ),
    ]
    return tabulate(rows, ("time / memory", *found), tablefmt="github", disable_numparse=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--recipes", nargs="+", default=tuple(RECIPES), choices=tuple(RECIPES))
    parser.add_argument("--criteria", nargs="+", default=lwdna.criteria(), metavar="NAME")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--side", type=int, help="input resolution in pixels")
    parser.add_argument("--batch", type=int, help="samples")
    parser.add_argument("--repeats", type=int, default=5, help="medians of this many (default 5)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="FILE")
    parser.add_argument("--fit", action="store_true", help=f"add the peak memory of {FIT}")
    parser.add_argument("--recipe", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.recipe:
        print(json.dumps(measure(args)))
        return 0
    record: dict[str, Any] = {
        "environment": environment() | {"device": device_name(args.device)},
        "settings": {"seed": SEED, "repeats": args.repeats, "threads": args.threads},
        "recipes": {},
    }
    if args.fit:  # joins what is there
        record = json.loads(args.output.read_text())
        args.criteria = (PAPER,)
        record["fit"] = in_fresh_process(FIT, args, side=224, batch=64, repeats=0)
    else:
        for name in args.recipes:
            record["recipes"][name] = in_fresh_process(name, args)
            print(name, json.dumps(record["recipes"][name]), flush=True)
            write(args.output, record, bars(record))
    write(args.output, record, bars(record))
    print(table(record))
    return verdict(bars(record))


if __name__ == "__main__":
    with_steady_memory()
    sys.exit(main())
