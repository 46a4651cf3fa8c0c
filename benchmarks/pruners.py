"""lwdna and its peer, Torch-Pruning, doing the same job on the same network."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.measure import Clock, Seconds, Timer, described
from lwdna.budget import Budget
from lwdna.fx_passes.analyse import analyse
from lwdna.fx_passes.capture import capture
from lwdna.fx_passes.kernels import KERNELS
from lwdna.fx_passes.resize import resize
from lwdna.graph import ChannelGraph, Copies
from lwdna.selection import select

#: Which copies to keep, from the channel graph and a seed.
Choose = Callable[[ChannelGraph, int], Copies]

SHARE = 0.3  # of every group is removed
PEER_STEPS = 100

#: name -> what Torch-Pruning ranks channels by. DepGraph's group norm is the group magnitude; its
#: pruner adds a penalty for training, which has no part in ranking.
IMPORTANCES = {
    "random": "RandomImportance",
    "group-taylor": "GroupTaylorImportance",
    "group-norm": "GroupMagnitudeImportance",
}


def removal(graph: ChannelGraph, seed: int) -> Copies:
    """Remove :data:`SHARE` of every prunable group, at random, and at least leave one channel."""
    random = np.random.default_rng(seed)
    copies = graph.keep_all()
    for group in graph.groups:
        if group.prunable:
            removed = min(int(SHARE * group.width), group.width - 1)
            copies[random.choice(group.units, removed, replace=False)] = 0
    return copies


def selection(share: float) -> Choose:
    """Choose what to keep of ``share`` of the MACs by random saliencies, as ``shrink`` does."""

    def choose(graph: ChannelGraph, seed: int) -> Copies:
        saliency = np.random.default_rng(seed).random(graph.units)
        return select(graph, saliency, Budget.of(share).limits(graph.cost())).copies

    return choose


def prune(
    network: nn.Module,
    batch: Any,
    seed: int,
    timer: Timer = time.perf_counter,
    choose: Choose = removal,
) -> tuple[Seconds, ChannelGraph, nn.Module]:
    """Our stages: (seconds of each and in total, the channel graph, the result).

    Args:
        network: is left as it is.
        batch: example inputs.
        seed: of the removed channels.
        timer: see :class:`benchmarks.measure.Clock`.
        choose: gives the copies to keep; :func:`removal`, which costs no time worth counting, or a
            :func:`selection`, whose stage is ``"select"``.
    """
    KERNELS.forget()  # what an earlier run on the same network has taught is not on offer
    clock = Clock(timer)
    with clock.stage("capture"):
        gm = capture(network, batch)
    with clock.stage("analyse"):
        graph = analyse(gm, batch)
    with clock.stage("select"):
        copies = choose(graph, seed)
    if choose is removal:
        del clock.seconds["select"]
    with clock.stage("resize"):
        small = resize(gm, graph, copies, seed=seed)
    clock.seconds["total"] = sum(clock.seconds.values())
    return clock.seconds, graph, small


def classifiers(graph: ChannelGraph) -> set[str]:
    """Names of the layers that give the network's outputs, which the peer must leave alone."""
    return {name.rpartition(".")[0] for name, role in graph.roles.items() if role.classifier}


def peer_graph_seconds(network: nn.Module, image: Tensor) -> float:
    """Seconds of the peer's dependency graph alone, on a copy, which is not timed."""
    import torch_pruning as tp  # only the benchmark's extra installs it

    clock = Clock()
    model = copy.deepcopy(network)
    with clock.stage("build"):
        tp.DependencyGraph().build_dependency(model, example_inputs=image)
    return clock.seconds["build"]


class Peer:
    """Torch-Pruning's pruner on a copy of a network, set up as its users do.

    Making one is what builds the dependency graph; every step removes channels.

    Args:
        network: in the mode to prune it in; it is copied first.
        image: inputs at batch size 1.
        last: names of the layers to leave alone (:func:`classifiers`).
        ratio: of the channels of every group that all steps together remove.
        steps: number of steps.
        importance: what it ranks channels by, one of :data:`IMPORTANCES`; the gradients that one
            needs are those of ``model`` at each step.
        together: rank the channels of all groups together, and not each group for itself.
        clock: its stage ``"graph"`` times the construction, without the copy.
    """

    def __init__(
        self,
        network: nn.Module,
        image: Any,
        last: set[str],
        clock: Clock,
        *,
        ratio: float,
        steps: int = 1,
        importance: str = "random",
        together: bool = False,
    ) -> None:
        import torch_pruning as tp  # only the benchmark's extra installs it

        self.model, self.image = copy.deepcopy(network), image
        self._heads = _attention_heads(self.model)
        ignored: list[Any] = [self.model.get_submodule(path) for path in sorted(last)]
        named = self.model.named_parameters()
        ignored += [p for name, p in named if "relative_position_bias_table" in name]
        with clock.stage("graph"):
            self._pruner = tp.pruner.BasePruner(
                self.model,
                image,
                importance=getattr(tp.importance, IMPORTANCES[importance])(),
                global_pruning=together,
                pruning_ratio=ratio,
                max_pruning_ratio=1.0,
                iterative_steps=steps,
                ignored_layers=ignored,
                num_heads={layer: module.num_heads for module, layer in self._heads.items()},
                in_channel_groups={},  # the defaults are shared by all pruners of a process
                out_channel_groups={},
            )

    def step(self) -> None:
        """Remove one step's channels."""
        self._pruner.step()
        for attention, layer in self._heads.items():  # as its example for timm does by hand
            attention.num_heads = self._pruner.num_heads[layer]
            attention.head_dim = layer.out_features // (3 * attention.num_heads)
            if hasattr(attention, "attn_dim"):  # newer than that example
                attention.attn_dim = layer.out_features // 3

    def macs(self) -> float:
        """The multiply-accumulates that its own counter finds in a forward pass."""
        import torch_pruning as tp

        return float(tp.utils.count_ops_and_params(self.model, self.image)[0])


def _attention_heads(model: nn.Module) -> dict[Any, Any]:
    """Attention modules with the layer that gives their heads, which the peer must be told."""
    return {
        m: layer
        for m in model.modules()
        for layer in (getattr(m, "qkv", None), getattr(m, "qkv_proj", None))
        if hasattr(m, "num_heads") and isinstance(layer, nn.Linear)
    }


def prune_as_peer(
    network: nn.Module,
    image: Any,
    seed: int,
    last: set[str],
    timer: Timer = time.perf_counter,
) -> tuple[float, nn.Module]:
    """What a user of Torch-Pruning runs to remove :data:`SHARE` of every group, in one step.

    Args:
        network: see :class:`Peer`.
        image: inputs at batch size 1.
        seed: of the removed channels.
        last: see :class:`Peer`.
        timer: see :class:`benchmarks.measure.Clock`.

    Returns:
        (seconds, the pruned network).
    """
    torch.manual_seed(seed)
    clock = Clock(timer)
    peer = Peer(network, image, last, clock, ratio=SHARE)
    with clock.stage("step"):
        peer.step()
    return sum(clock.seconds.values()), peer.model


def shrink_as_peer(
    network: nn.Module,
    image: Any,
    seed: int,
    last: set[str],
    *,
    share: float,
    most_s: float,
    timer: Timer = time.perf_counter,
) -> tuple[float, float]:
    """What a user of Torch-Pruning runs to get to a number of MACs.

    It knows ratios of channels only, so one prunes in small steps and counts after each: source
    ``benchmarks/main_imagenet.py``, ``prune_to_target_flops`` of github.com/VainF/Torch-Pruning,
    whose number of steps (100) this keeps.

    Args:
        network: see :class:`Peer`.
        image: inputs at batch size 1.
        seed: of the removed channels.
        last: see :class:`Peer`.
        share: of the MACs that is to be left.
        most_s: seconds after which no further step is made.
        timer: see :class:`benchmarks.measure.Clock`.

    Returns:
        (seconds, the share of the MACs that is left then).
    """
    torch.manual_seed(seed)
    clock = Clock(timer)
    peer = Peer(network, image, last, clock, ratio=1.0, steps=PEER_STEPS)
    spent, left = clock.seconds["graph"], 1.0
    with clock.stage("count"):
        whole = peer.macs()
    spent += clock.seconds["count"]
    for _ in range(PEER_STEPS):
        if left <= share or spent >= most_s:
            break
        with clock.stage("step"):
            peer.step()
            left = peer.macs() / whole
        spent += clock.seconds["step"]
    return spent, left


def run_error(network: nn.Module, image: Any) -> str | None:
    """Why a network does not run on a tensor or a tuple of arguments, or None if it does."""
    try:
        with torch.no_grad():
            network(*image) if isinstance(image, tuple) else network(image)
    except Exception as error:
        return described("forward of the result", error)
    return None


def warm_up(seed: int, *, peer: bool) -> None:
    """First-use imports of torch, lwdna and, if ``peer``, Torch-Pruning."""
    tiny = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
    images = torch.randn(2, 3, 16, 16)
    prune(tiny.eval(), images, seed)
    if peer:
        prune_as_peer(tiny, images[:1], seed, {"3"})
    run_error(tiny, images[:1])
