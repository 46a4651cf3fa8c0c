"""What the recipes come to: parameters at the published FLOPs, beside the published ones.

    python -m benchmarks.recipe_costs [--recipes edsr-x4 ...] [--seeds 3] [--output FILE]

Every recipe's network is widened, scored and cut to the recipe's budget, by five criteria and with
both allocations. `latent-grad` sees two batches of noise, and so does `latent-magnitude` of
classifiers, with the SGD step of the released code after each; that of the other networks is |z| at
the draw. So this shows what budgets and floors make of a saliency, not what real images would give.
Networks, noise and scores have one seed per run. It takes 4 minutes of one CPU, and 8 GB. `table`
makes the tables of docs/recipes.md; a test compares them with the results.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from tqdm import tqdm

from lwdna import recipes
from lwdna.constraints import Constraints
from lwdna.dna import versions
from lwdna.fx_passes.analyse import analyse
from lwdna.fx_passes.capture import capture
from lwdna.fx_passes.module import meta_twin
from lwdna.fx_passes.widen import widen
from lwdna.graph import ChannelGraph
from lwdna.recipes import Recipe
from lwdna.scoring import SGD, Saliency, Scoring, ScoringContext, as_batches, score
from lwdna.scoring.criteria import get
from lwdna.selection import Allocation, Selection, select

OUTPUT = Path(__file__).parent / "results" / "recipe_costs.json"
CRITERIA = ("uniform", "random", "magnitude", "latent-magnitude", "latent-grad")
#: With one limit, as here, "balanced" is "threshold".
ALLOCATIONS: tuple[Allocation, ...] = ("threshold", "saliency-per-cost")
#: Super-resolution multiplies the side by 4: the input patches of the SRResNet protocol.
SIDE, SIDE_SUPER_RESOLUTION = 64, 24
BATCHES = 2
#: Embedding size of the published ResNet-50 command, for `latent-magnitude` of all networks: the
#: default of 8 would take four times the memory for weights, gradients and momenta.
EMBEDDING = 2


def side_of(recipe: Recipe) -> int:
    """Pixels of the noise images along each side."""
    return SIDE_SUPER_RESOLUTION if recipe.task == "super-resolution" else SIDE


def noise(recipe: Recipe, network: nn.Module, batch: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Batches of noise, with random labels, or with noise in the shape of the output."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, recipe.input_shape[0], side_of(recipe), side_of(recipe))
    out = tree_leaves(meta_twin(network)(torch.empty(shape, device="meta")))[0].shape
    made = []
    for _ in range(BATCHES):
        x = torch.randn(shape, generator=generator)
        labels = torch.randint(out[1], (batch,), generator=generator)
        classifies = recipe.loss == "cross_entropy"
        made.append((x, labels if classifies else torch.randn(out, generator=generator)))
    return made


def energy(outputs: Any, _targets: Tensor) -> Tensor:
    """A loss of all outputs, for the network whose own loss belongs to its application."""
    total: Tensor = sum(out.square().mean() for out in tree_leaves(outputs))
    return total


def steps_of(recipe: Recipe) -> SGD | None:
    """The released code's SGD for classifiers; EDSR, which has no norms, diverges in one step."""
    return SGD() if recipe.task == "classification" else None


def saliencies(context: ScoringContext, sgd: SGD | None) -> Iterator[tuple[str, Saliency]]:
    """Criterion and its saliency, for each criterion."""
    trained = replace(context, options=Scoring(batches=BATCHES, sgd=sgd))
    for name in CRITERIA:
        if name == "latent-magnitude":
            yield name, score(trained, get(name, embedding=EMBEDDING))
        else:
            yield name, score(context, name)
        for used in (trained, context):
            used.finished.clear()  # hypernetworks, kept to generate weights


def run_seed(
    recipe: Recipe, batch: int, seed: int
) -> tuple[ChannelGraph, dict[Allocation, dict[str, Selection]]]:
    """(graph of the regular network, allocation -> criterion -> selection)."""
    example = recipe.example_inputs()
    captured = capture(recipe.build(seed), example)
    graph = analyse(captured, example)
    wide, wide_graph = widen(captured, graph, recipe.widen, seed=seed)
    data = noise(recipe, captured, batch, seed)
    batches = as_batches(data, BATCHES, network=wide)
    context = ScoringContext(wide, wide_graph, batches, recipe.loss_fn() or energy, seed)
    limits, constraints = recipe.budget.limits(graph.cost()), Constraints(recipe.floors)
    selections: dict[Allocation, dict[str, Selection]] = {each: {} for each in ALLOCATIONS}
    for criterion, saliency in saliencies(context, steps_of(recipe)):
        for allocation in ALLOCATIONS:
            selections[allocation][criterion] = select(
                wide_graph, saliency, limits, constraints=constraints, allocation=allocation
            )
    return graph, selections


def run_recipe(recipe: Recipe, seeds: int, batch: int) -> dict[str, Any]:
    """One recipe's entry of the record: a list of figures, one per seed, for each selection."""
    runs = []
    for seed in range(seeds):
        graph, selections = run_seed(recipe, batch, seed)
        runs.append(selections)
    before, metric = graph.cost(), recipe.counter

    def figures(allocation: Allocation, criterion: str) -> dict[str, list[float]]:
        chosen = [run[allocation][criterion] for run in runs]
        return {
            "flops_ratio": [round(s.cost.flops_paper / before.flops_paper, 5) for s in chosen],
            "params_m": [round(s.cost.params / 1e6, 4) for s in chosen],
            "params_ratio": [round(s.cost.params / before.params, 5) for s in chosen],
            "used": [round(s.used[metric], 5) for s in chosen],
        }

    return {
        "side": side_of(recipe),
        "sgd": None if (sgd := steps_of(recipe)) is None else asdict(sgd),
        "baseline": {
            "flops_g": round(before.flops_paper / 1e9, 4),
            "params_m": round(before.params / 1e6, 4),
        },
        "budget": round(recipe.budget.limits(before)[metric] / before[metric], 5),
        "published_params_ratio": recipe.published.params_ratio,
        "selections": {a: {c: figures(a, c) for c in CRITERIA} for a in ALLOCATIONS},
    }


def table(record: dict[str, Any], allocation: Allocation) -> str:
    """Markdown: params in % of the baseline's, mean and deviation over the seeds."""

    def cell(figures: dict[str, list[float]]) -> str:
        ratios = [100 * ratio for ratio in figures["params_ratio"]]
        spread = stdev(ratios) if len(ratios) > 1 else 0.0
        return f"{mean(ratios):.1f}" + (f" ± {spread:.1f}" if len(set(ratios)) > 1 else "")

    rows = []
    for name, result in record["results"].items():
        chosen, published = result["selections"][allocation], result["published_params_ratio"]
        used = min(ratio for figures in chosen.values() for ratio in figures["used"])
        known = "–" if published is None else f"{100 * published:.1f}"
        budget = f"{100 * result['budget']:.2f}"
        rows.append((name, budget, f"{100 * used:.2f}", known, *map(cell, chosen.values())))
    headers = ("recipe", "FLOPs", "used", "published", *CRITERIA)
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--recipes", nargs="+", default=recipes.names())
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    chosen = tqdm([recipes.get(name) for name in args.recipes])
    record = {
        "setting": {key: getattr(args, key) for key in ("seeds", "batch", "threads")},
        "data": f"{BATCHES} batches of Gaussian noise",
        "results": {recipe.name: run_recipe(recipe, args.seeds, args.batch) for recipe in chosen},
        "seed": list(range(args.seeds)),
        "device": platform.machine(),
        "date": datetime.date.today().isoformat(),
        "versions": versions(),
    }
    args.output.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    for allocation in ALLOCATIONS:
        print(f"\n{allocation}: params in % of the baseline's\n{table(record, allocation)}")


if __name__ == "__main__":
    main()
