"""Which saliency gives parameter counts near the published ones, at the published FLOPs?

    python -m benchmarks.saliencies --data TINY_IMAGENET/train [--seeds 20] [--output FILE]

For ResNet-50 and RegNetX-4.0GF: |z| after the released code's two SGD steps, |∂L/∂z|, the same
normalised per latent vector, `random` and `uniform`. Every selection meets the recipe's budget.
The data is any image folder (one folder a class); images are resized and cropped to --side.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from tabulate import tabulate
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2
from tqdm import tqdm

from lwdna import recipes
from lwdna.constraints import Constraints
from lwdna.dna import versions
from lwdna.fx_passes.analyse import analyse
from lwdna.fx_passes.capture import capture
from lwdna.fx_passes.widen import widen
from lwdna.scoring import SGD, Saliency, Scoring, ScoringContext, as_batches, score
from lwdna.scoring.criteria import get
from lwdna.scoring.latent import per_group
from lwdna.selection import select

OUTPUT = Path(__file__).parent / "results" / "saliencies.json"
RECIPES = ("resnet50-imagenet", "regnetx-4gf-imagenet")
#: Embedding size of the published ResNet50 command, used for both networks.
EMBEDDING = 2
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def loader(folder: Path, side: int, batch: int, seed: int) -> DataLoader[tuple[Tensor, Tensor]]:
    """Shuffled batches of an image folder, cropped as ImageNet training does."""
    transform = v2.Compose(
        [
            v2.ToImage(),
            v2.RandomResizedCrop(side, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(_MEAN, _STD),
        ]
    )
    order = torch.Generator().manual_seed(seed)
    return DataLoader(ImageFolder(folder, transform), batch, shuffle=True, generator=order)


def saliencies(context: ScoringContext) -> Iterator[tuple[str, Saliency]]:
    """Name and saliency of every row of the table."""
    grads = score(context, get("latent-grad", normalize=False, embedding=EMBEDDING))
    yield "|∂L/∂z|", grads
    yield "|∂L/∂z|, normalised", per_group(context.graph, grads)
    trained = replace(context, options=Scoring(sgd=SGD()))
    yield "|z| after two steps", score(trained, get("latent-magnitude", embedding=EMBEDDING))
    yield "random", score(context, "random")
    yield "uniform", score(context, "uniform")


def run_seed(name: str, seed: int, args: argparse.Namespace) -> dict[str, float]:
    """Saliency name -> params in millions at the recipe's budget."""
    recipe = recipes.get(name)
    model = recipe.build(seed)
    example = torch.zeros(2, *recipe.input_shape, device="meta")
    captured = capture(model, example)
    graph = analyse(captured, example)
    wide, wide_graph = widen(captured, graph, recipe.widen, seed=seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # of the crops
        batches = as_batches(loader(args.data, args.side, args.batch, seed), 2, network=wide)
    context = ScoringContext(wide, wide_graph, batches, seed=seed)
    limits, constraints = recipe.budget.limits(graph.cost()), Constraints(recipe.floors)
    return {
        what: select(wide_graph, s, limits, constraints=constraints).cost.params / 1e6
        for what, s in saliencies(context)
    }


def summary(name: str, runs: list[dict[str, float]]) -> dict[str, Any]:
    published = recipes.get(name).published.lwdna
    assert published is not None and published.params is not None
    rows = {}
    for what in runs[0]:
        params = [run[what] for run in runs]
        rows[what] = {
            "params": [round(p, 3) for p in params],
            "mean": round(mean(params), 3),
            "std": round(stdev(params), 3) if len(params) > 1 else 0.0,
            "distance": round(float(np.abs(np.array(params) - published.params).mean()), 3),
        }
    return {"published_params": published.params, "saliencies": rows}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="image folder, one folder a class")
    parser.add_argument("--recipes", nargs="+", default=RECIPES)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--side", type=int, default=64, help="pixels")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    results = {}
    for name in args.recipes:
        runs = [run_seed(name, seed, args) for seed in tqdm(range(args.seeds), desc=name)]
        results[name] = summary(name, runs)
        table = [
            (what, row["mean"], row["std"], row["distance"])
            for what, row in results[name]["saliencies"].items()
        ]
        print(f"\n{name}: published {results[name]['published_params']} M")
        print(tabulate(table, headers=("saliency", "params M", "std", "mean |difference|")))
    record = {
        "setting": {key: getattr(args, key) for key in ("seeds", "side", "batch", "threads")},
        "data": args.data.parent.name,
        "embedding": EMBEDDING,
        "results": results,
        "device": platform.machine(),
        "date": datetime.date.today().isoformat(),
        "versions": versions(),
    }
    args.output.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
