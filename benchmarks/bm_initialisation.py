"""Activation variances of freshly initialised shrunk networks, beside the baselines'.

    python -m benchmarks.bm_initialisation [--networks unet ...] [--seeds 9] [--output FILE]

Every network is widened by 2 and shrunk to 90 % of its MACs by several criteria with the paper's
floors (0.4 of the widened width, 0.45 before the classifier), and to widths of 0.8 or 2 times the
regular ones at random. The variance of the output of every convolution and linear layer, in
training mode on one random batch, is divided by that of the freshly initialised baseline; both are
medians over seeds. `kept` is what lwdna.fx_passes.reinitialise draws, `literal` the baseline's law
at the new fans. Exit code 1 if a ratio of `kept` leaves 0.5 to
2 by more than chance.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from math import hypot, log
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
from benchmarks import small_networks
from benchmarks.networks import build
from lwdna.fx_passes.init_law import draw, fans_of, laws
from lwdna.fx_passes.reinitialise import reinitialise
from lwdna.graph import ChannelGraph

OUTPUT = Path(__file__).resolve().parent / "results" / "bm_initialisation.json"
FACTOR = 2.0  # the bar
SHARE = 0.9  # of the baseline's MACs
FLOORS = lwdna.Floors(fraction=0.4, classifier=0.45)
CRITERIA = ("random", "magnitude", "uniform")
LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
FUNCTIONS = (F.conv2d, F.conv_transpose2d, F.linear)
SILENT = 1e-18  # variance of a branch that is initialised to zero

Redraw = Callable[..., GraphModule]


def _zoo(name: str) -> nn.Module:
    return build(name)[0]


#: name -> (builder, batch shape): the networks of the paper, or small ones of their kind.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int, int]]] = {
    "torchvision:resnet50": (partial(_zoo, "torchvision:resnet50"), (8, 3, 96, 96)),
    "timm:regnetx_040": (partial(_zoo, "timm:regnetx_040"), (8, 3, 96, 96)),
    "timm:mobilenetv3_small_100": (partial(_zoo, "timm:mobilenetv3_small_100"), (16, 3, 128, 128)),
    "torchvision:mobilenet_v3_small": (
        partial(_zoo, "torchvision:mobilenet_v3_small"),
        (16, 3, 128, 128),
    ),
    "timm:mobilenetv1_100": (partial(_zoo, "timm:mobilenetv1_100"), (16, 3, 64, 64)),
    "timm:mobilenetv2_100": (partial(_zoo, "timm:mobilenetv2_100"), (16, 3, 64, 64)),
    "srresnet": (small_networks.srresnet, (4, 3, 24, 24)),
    "edsr": (small_networks.edsr, (4, 3, 24, 24)),
    "dncnn": (small_networks.dncnn, (8, 1, 32, 32)),
    "unet": (small_networks.UNet, (8, 1, 32, 32)),
}


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
class Worst:
    """The layers whose median variance differs most from the baseline's.

    Attributes:
        beyond: layers that leave the factor by more than two standard errors of the medians: a
            squeeze to 8 channels varies threefold from seed to seed.
    """

    lowest: float
    lowest_layer: str
    highest: float
    highest_layer: str
    beyond: tuple[str, ...]
    layers: int


def worst(fresh: Mapping[str, list[float]], baseline: Mapping[str, list[float]]) -> Worst:
    """Compare variances; branches that are silent in the baseline are left out."""
    heard = [n for n, values in baseline.items() if median(values) > SILENT]
    ratios = {n: median(fresh[n]) / median(baseline[n]) for n in heard}
    low, high = min(ratios, key=ratios.__getitem__), max(ratios, key=ratios.__getitem__)
    beyond = tuple(
        n
        for n, ratio in ratios.items()
        if abs(log(ratio)) > log(FACTOR) + 2 * hypot(_error(fresh[n]), _error(baseline[n]))
    )
    return Worst(ratios[low], low, ratios[high], high, beyond, len(ratios))


def _error(values: list[float]) -> float:
    """Standard error of the logarithm of the median (normal logarithms)."""
    logs = np.log(np.maximum(values, SILENT))
    return float(1.2533 * logs.std() / len(values) ** 0.5)


def literal(gm: GraphModule, like: GraphModule, _graph: ChannelGraph, *, seed: int) -> GraphModule:
    """The baseline's laws at the fans of ``gm``, as its own code would draw them."""
    old, new = fans_of(like), fans_of(gm)
    found = laws(dict(like.named_parameters()), old)
    generator = torch.Generator().manual_seed(seed)
    result = lwdna.capture(gm, ())
    for name, p in result.named_parameters():
        law = found[name]
        assert law is not None, name
        ratio = new[name].of(law.scale) / old[name].of(law.scale) if name in old else 1.0
        p.data = draw(law, p, ratio, generator)
    return result


def configurations(gm: GraphModule, graph: ChannelGraph) -> Iterable[tuple[str, GraphModule]]:
    """(name, shrunk network): by criterion, and at the extremes of the floors."""
    wide, wide_graph = lwdna.widen(gm, graph, 2.0)
    limits = lwdna.Budget(macs=SHARE).limits(graph.cost())
    for name in CRITERIA:
        saliency = lwdna.score(lwdna.ScoringContext(wide, wide_graph), name)
        selection = lwdna.select(wide_graph, saliency, limits, floors=FLOORS)
        yield name, lwdna.shrink_graph(wide, wide_graph, selection.copies)
    rng = np.random.default_rng(0)
    copies = wide_graph.keep_all()
    for group in wide_graph.groups:
        if group.prunable and rng.random() < 0.5:
            copies[group.units[max(1, int(FLOORS.fraction * group.width)) :]] = 0
    yield "extreme", lwdna.shrink_graph(wide, wide_graph, copies)


def measure(
    name: str, seeds: int, *, ways: Mapping[str, Redraw] | None = None
) -> dict[str, dict[str, Worst]]:
    """Worst ratios of one network: configuration -> way of drawing -> :class:`Worst`.

    Args:
        name: a key of ``NETWORKS``.
        seeds: medians of this many, on both sides.
        ways: name -> ``redraw(gm, like, graph, seed=...)``; kept and literal by default.
    """
    make, shape = NETWORKS[name]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        gm = lwdna.capture(make(), x)
        twins = [lwdna.capture(gm, x) for _ in range(seeds)]
        for twin in twins:
            twin.load_state_dict(make().state_dict())
        baseline = runs(twins, x)
    graph = lwdna.analyse(gm, x)
    found: dict[str, dict[str, Worst]] = {}
    for configuration, small in configurations(gm, graph):
        found[configuration] = {
            way: worst(runs((f(small, gm, graph, seed=s) for s in range(seeds)), x), baseline)
            for way, f in (ways or {"kept": reinitialise, "literal": literal}).items()
        }
    return found


def row(name: str, configuration: str, way: str, w: Worst) -> str:
    """One line of the table."""
    low, high = f"{w.lowest:.2f} {w.lowest_layer}", f"{w.highest:.2f} {w.highest_layer}"
    return f"{name:32}{configuration:11}{way:9}{len(w.beyond):3}/{w.layers:<5}{low:38}{high}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--seeds", type=int, default=9, help="medians of this many (default 9)")
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="FILE")
    args = parser.parse_args()
    header = ("network", "widths", "weights", "beyond", "lowest variance / baseline", "highest")
    print("{:32}{:11}{:8}{:10}{:38}{}".format(*header), flush=True)
    results: dict[str, Any] = {}
    missed = False
    for name in args.networks:
        results[name] = {}
        for configuration, ways in measure(name, args.seeds).items():
            results[name][configuration] = {way: asdict(w) for way, w in ways.items()}
            for way, w in ways.items():
                print(row(name, configuration, way, w), flush=True)
            missed |= bool(ways["kept"].beyond)
    settings = {
        "torch": torch.__version__,
        "seeds": args.seeds,
        "macs": SHARE,
        "floors": asdict(FLOORS),
        "batches": {name: NETWORKS[name][1] for name in args.networks},
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps({"settings": settings, "networks": results}, indent=1) + "\n")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
