"""Activation variances of freshly initialised shrunk networks, beside the baselines'.

    python -m benchmarks.bm_initialisation [--recipes unet-denoising ...] [--output FILE]

Every recipe's network is widened and shrunk to the recipe's budget with the recipe's floors by
several criteria, and, as a stress, to widths of 0.8 or 2 times the regular ones at random. The
variance of the output of every convolution and linear layer, in training mode on one batch of
synthetic images, is divided by that of the freshly initialised baseline; both are medians over
seeds. `kept` is what lwdna.fx_passes.reinitialise draws, `literal` every law at its new fan. Exit
code 1 if a ratio of `kept` leaves 0.5 to 2 at the widths of a criterion, however noisy it is.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import json
import platform
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from math import exp, hypot
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule, Node

import lwdna
from benchmarks.synthetic import CASES, Case, batch
from lwdna import recipes
from lwdna.dna import versions
from lwdna.fx_passes.init_law import draw, fans_of, laws
from lwdna.fx_passes.reinitialise import reinitialise
from lwdna.graph import ChannelGraph
from lwdna.recipes import Recipe
from lwdna.scoring import as_batches

OUTPUT = Path(__file__).resolve().parent / "results" / "bm_initialisation.json"
FACTOR = 2.0  # the bar
CRITERIA = ("latent-grad", "random", "uniform", "magnitude")
STRESS = "extreme"
LITERAL = ("latent-grad", "magnitude")  # the widths at which the literal laws are measured, too
LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
FUNCTIONS = (F.conv2d, F.conv_transpose2d, F.linear)
SILENT = 1e-18  # variance of a branch that is initialised to zero

#: For who reads the results alone.
NOTE = (
    "Ratios of median variances, with two standard errors of the medians on either side; seeds of "
    "the baseline are three times the case's. Budgets are counted at the recipe's resolution, and "
    "variances and latent-grad are measured on synthetic images of the case's side (4 times that "
    "for super-resolution targets). The tracker's loss is replaced by its outputs' mean squares. "
    "kept: lwdna.fx_passes.reinitialise (weights keep Var * fan_in, biases Var); literal: every "
    "law at its new fan. Where literal misses, it is for weights drawn by the fan-out (ResNet, "
    "RegNet, DiMP) or for biases drawn by 1 / fan_in (the gates of MobileNetV3, the U-Net)"
)

Redraw = Callable[..., GraphModule]


class _Variances(torch.fx.Interpreter):
    """Runs a captured network and notes the variance of every layer's output, by node name."""

    def __init__(self, gm: GraphModule) -> None:
        super().__init__(gm)
        self.found: dict[str, float] = {}

    def run_node(self, n: Node) -> Any:
        out = super().run_node(n)
        module = self.submodules[n.target] if n.op == "call_module" else None
        if isinstance(module, LAYERS) or n.target in FUNCTIONS:
            self.found[n.name] = float(out.double().var())
        return out


def variances(network: GraphModule, x: Tensor) -> dict[str, float]:
    """Variance of every layer's output, all entries together, in training mode.

    Args:
        network: a captured network; its batch-norm statistics move.
        x: a batch.
    """
    run = _Variances(network.train())
    with torch.no_grad():
        run.run(x)
    return run.found


def runs(networks: Iterable[GraphModule], x: Tensor) -> dict[str, list[float]]:
    """The variances of each layer in several networks."""
    found = [variances(network, x) for network in networks]
    return {layer: [run[layer] for run in found] for layer in found[0]}


@dataclass(frozen=True)
class Ratio:
    """Median variance of one layer, in terms of the baseline's.

    Attributes:
        low: two standard errors of the medians below, for information: the verdict is on the
            ratio itself.
        high: two standard errors above.
    """

    layer: str
    ratio: float
    low: float
    high: float

    @property
    def within(self) -> bool:
        return 1 / FACTOR <= self.ratio <= FACTOR


@dataclass(frozen=True)
class Comparison:
    """All layers of one network beside the baseline's, and those that leave the factor."""

    layers: int
    lowest: Ratio
    highest: Ratio
    missed: tuple[Ratio, ...]


def compare(fresh: Mapping[str, list[float]], baseline: Mapping[str, list[float]]) -> Comparison:
    """Compare variances; branches that are silent in the baseline are left out."""
    heard = [n for n, values in baseline.items() if median(values) > SILENT]
    ratios = [_ratio(n, fresh[n], baseline[n]) for n in heard]
    low, high = min(ratios, key=lambda r: r.ratio), max(ratios, key=lambda r: r.ratio)
    return Comparison(len(ratios), low, high, tuple(r for r in ratios if not r.within))


def _ratio(layer: str, fresh: list[float], baseline: list[float]) -> Ratio:
    ratio = median(fresh) / median(baseline)
    spread = exp(2 * hypot(_error(fresh), _error(baseline)))
    return Ratio(layer, *(round(r, 4) for r in (ratio, ratio / spread, ratio * spread)))


def _error(values: list[float]) -> float:
    """Standard error of the logarithm of the median (normal logarithms)."""
    logs = np.log(np.maximum(values, SILENT))
    return float(1.2533 * logs.std() / len(values) ** 0.5)


def literal(gm: GraphModule, like: GraphModule, _graph: ChannelGraph, *, seed: int) -> GraphModule:
    """The baseline's laws at the fans of ``gm``, as its own code would draw them."""
    old, new = fans_of(like), fans_of(gm)
    found = laws(dict(like.named_parameters()), old)
    generator = torch.Generator().manual_seed(seed)
    result = copy.deepcopy(gm)
    for name, p in result.named_parameters():
        law = found[name]
        assert law is not None, name
        ratio = new[name].of(law.scale) / old[name].of(law.scale) if name in old else 1.0
        p.data = draw(law, p, ratio, generator)
    return result


def baselines(recipe: Recipe, gm: GraphModule, seeds: int) -> Iterator[GraphModule]:
    """The captured baseline with the weights of each seed."""
    for seed in range(seeds):
        twin = copy.deepcopy(gm)
        twin.load_state_dict(recipe.build(seed).state_dict())
        yield twin


def configurations(
    recipe: Recipe, case: Case, gm: GraphModule, graph: ChannelGraph
) -> Iterator[tuple[str, GraphModule]]:
    """(name, shrunk network): by criterion at the recipe's budget, and at the extremes."""
    wide, wide_graph = lwdna.widen(gm, graph, recipe.widen)
    limits, constraints = recipe.budget.limits(graph.cost()), lwdna.Constraints(recipe.floors)
    data = as_batches([batch(recipe, case, seed) for seed in (2, 3)], 2, network=wide)
    loss = recipe.loss_fn() or _power
    for name in CRITERIA:
        saliency = lwdna.score(lwdna.ScoringContext(wide, wide_graph, data, loss), name)
        selection = lwdna.select(wide_graph, saliency, limits, constraints=constraints)
        yield name, lwdna.shrink_graph(wide, wide_graph, selection.copies)
    rng = np.random.default_rng(0)
    copies = wide_graph.keep_all()
    for group in wide_graph.groups:
        if group.prunable and rng.random() < 0.5:
            copies[group.units[max(1, int(0.4 * group.width)) :]] = 0
    yield STRESS, lwdna.shrink_graph(wide, wide_graph, copies)


def _power(outputs: Any, _targets: Any) -> Tensor:
    """In place of the tracker's own loss: any scalar of all its outputs."""
    powers: Tensor = sum(out.square().mean() for out in outputs)
    return powers


def measure(
    recipe: Recipe, case: Case, *, ways: Mapping[str, Redraw] | None = None
) -> dict[str, dict[str, Comparison]]:
    """Variances of one network: configuration -> way of drawing -> :class:`Comparison`.

    Args:
        recipe: what is measured.
        case: how.
        ways: name -> ``redraw(gm, like, graph, seed=...)``; by default kept, and literal at the
            widths of ``LITERAL``.
    """
    x, _ = batch(recipe, case, 1)
    gm = lwdna.capture(recipe.build(), recipe.example_inputs())
    graph = lwdna.analyse(gm, recipe.example_inputs())
    baseline = runs(baselines(recipe, gm, 3 * case.seeds), x)
    found: dict[str, dict[str, Comparison]] = {}
    for widths, small in configurations(recipe, case, gm, graph):
        found[widths] = {}
        for way, redraw in (ways or _ways(widths)).items():
            drawn = (redraw(small, gm, graph, seed=seed) for seed in range(case.seeds))
            found[widths][way] = compare(runs(drawn, x), baseline)
    return found


def _ways(widths: str) -> dict[str, Redraw]:
    ways: dict[str, Redraw] = {"kept": reinitialise}
    return {**ways, "literal": literal} if widths in LITERAL else ways


def row(name: str, widths: str, way: str, c: Comparison) -> str:
    """One line of the table."""
    low, high = (f"{r.ratio:.2f} {r.layer}" for r in (c.lowest, c.highest))
    return f"{name:28}{widths:13}{way:9}{len(c.missed):3}/{c.layers:<5}{low:34}{high}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipes", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="FILE")
    args = parser.parse_args()
    header = ("recipe", "widths", "weights", "missed", "lowest variance / baseline", "highest")
    print("{:28}{:13}{:9}{:9}{:34}{}".format(*header), flush=True)
    results: dict[str, Any] = {}
    missed: dict[bool, list[str]] = {False: [], True: []}
    started = time.perf_counter()
    for name in args.recipes:
        results[name] = {}
        for widths, ways in measure(recipes.get(name), CASES[name]).items():
            results[name][widths] = {way: asdict(c) for way, c in ways.items()}
            for way, c in ways.items():
                print(row(name, widths, way, c), flush=True)
            layers = (f"{name}, {widths}: {r.layer} {r.ratio}" for r in ways["kept"].missed)
            missed[widths == STRESS] += layers
    verdict = {
        "bar": f"every layer's median variance within a factor of {FACTOR:g} of the baseline's, "
        "drawn as kept, at the widths of every criterion",
        "verdict": "missed" if missed[False] else "met",
        "missed": missed[False],
        "missed at extreme widths, outside the bar": missed[True],
    }
    record = {
        "note": NOTE,
        "verdict": verdict,
        "cases": {name: asdict(CASES[name]) for name in args.recipes},
        "results": results,
        "threads": torch.get_num_threads(),
        "seconds": round(time.perf_counter() - started),
        "device": platform.machine(),
        "date": datetime.date.today().isoformat(),
        "versions": versions(),
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(record, indent=1) + "\n")
    print(f"{verdict['verdict']} {missed[False]}, {record['seconds']} s")
    return int(bool(missed[False]))


if __name__ == "__main__":
    sys.exit(main())
