"""Times one network in a process of its own: lwdna, the peer, and one forward pass.

Started by ``bm_compile``; prints one line of JSON. The memory comes first, while the process is
fresh; then every repetition runs lwdna, the peer and the forward, in alternating order.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import ctypes
import gc
import io
import json
import re
import resource
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.networks import build
from lwdna.fx_passes.analyse import analyse
from lwdna.fx_passes.capture import capture
from lwdna.fx_passes.resize import resize
from lwdna.graph import ChannelGraph, Copies

SHARE = 0.3  # of every group is removed
_MB = 2**20

Seconds = dict[str, float]


class _TimeLimitError(BaseException):  # no ``except Exception`` of the peer may swallow it
    pass


def removal(graph: ChannelGraph, share: float, seed: int) -> Copies:
    """Remove ``share`` of every prunable group, at random, and at least leave one channel."""
    random = np.random.default_rng(seed)
    copies = graph.keep_all()
    for group in graph.groups:
        if group.prunable:
            removed = min(int(share * group.width), group.width - 1)
            copies[random.choice(group.units, removed, replace=False)] = 0
    return copies


class _Clock:
    """Seconds of each stage; garbage of the stage before is not on the bill."""

    def __init__(self) -> None:
        self.seconds: Seconds = {}

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        gc.collect()
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start


def _ours(network: nn.Module, batch: Tensor, seed: int) -> tuple[Seconds, ChannelGraph, nn.Module]:
    clock = _Clock()
    with clock.stage("capture"):
        gm = capture(network, batch)
    with clock.stage("analyse"):
        graph = analyse(gm, batch)
    copies = removal(graph, SHARE, seed)
    with clock.stage("resize"):
        small = resize(gm, graph, copies, seed=seed)
    clock.seconds["total"] = sum(clock.seconds.values())
    return clock.seconds, graph, small


def _attention_heads(model: nn.Module) -> dict[Any, Any]:
    """Attention modules with the layer that gives their heads, which the peer must be told."""
    return {
        m: layer
        for m in model.modules()
        for layer in (getattr(m, "qkv", None), getattr(m, "qkv_proj", None))
        if hasattr(m, "num_heads") and isinstance(layer, nn.Linear)
    }


def _peer(
    network: nn.Module, image: Tensor, seed: int, last: set[str]
) -> tuple[Seconds, nn.Module]:
    """Torch-Pruning's two steps, each on a copy of its own, which is not timed.

    ``build`` is the dependency graph alone. ``total`` is what a user runs: the pruner, whose
    constructor builds the graph itself, and its step.
    """
    import torch_pruning as tp  # only the benchmark's extra installs it

    torch.manual_seed(seed)
    clock = _Clock()
    model = copy.deepcopy(network)
    with clock.stage("build"):
        tp.DependencyGraph().build_dependency(model, example_inputs=image)
    model = copy.deepcopy(network)
    heads = _attention_heads(model)
    ignored: list[Any] = [model.get_submodule(path) for path in sorted(last)]
    ignored += [p for name, p in model.named_parameters() if "relative_position_bias_table" in name]
    with clock.stage("total"):
        pruner = tp.pruner.BasePruner(
            model,
            image,
            importance=tp.importance.RandomImportance(),
            pruning_ratio=SHARE,
            ignored_layers=ignored,
            num_heads={layer: attention.num_heads for attention, layer in heads.items()},
            in_channel_groups={},  # the defaults are shared by all pruners of a process
            out_channel_groups={},
        )
        pruner.step()
    for attention, layer in heads.items():  # as the peer's example for timm does by hand
        attention.num_heads = pruner.num_heads[layer]
        attention.head_dim = layer.out_features // (3 * attention.num_heads)
    return clock.seconds, model


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise _TimeLimitError(f"stopped after {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)  # again, should a bare except swallow it
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _described(stage: str, error: BaseException) -> str:
    """Type and first line of an error, without this machine's paths."""
    lines = str(error).strip().splitlines() or [""]
    text = re.sub(r"(?:/[\w.@+-]+)+/", "", lines[0])[:200]
    return f"{stage}: {type(error).__name__.strip('_')}: {text}"


def _run_error(network: nn.Module, image: Tensor) -> str | None:
    """Why a network does not run, or None if it does."""
    try:
        with torch.no_grad():
            network(image)
    except Exception as error:
        return _described("forward of the result", error)
    return None


def _params(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def _forward_seconds(network: nn.Module, image: Tensor) -> float:
    clock = _Clock()
    with torch.no_grad(), clock.stage("forward"):
        network(image)
    return clock.seconds["forward"]


def _resident() -> tuple[float, float]:
    """(MB in use, MB in use at most so far)."""
    status = Path("/proc/self/status")
    if status.exists():
        kb = dict(re.findall(r"(VmRSS|VmHWM):\s+(\d+) kB", status.read_text()))
        return int(kb["VmRSS"]) / 1024, int(kb["VmHWM"]) / 1024
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / _MB
    return peak, peak


def _peak_memory(step: Callable[[], object]) -> float:
    """MB by which ``step`` raises the resident memory at most.

    Free heap pages go back to the system first and the kernel's high-water mark is reset, so that
    neither hides what the step needs. Where there is no /proc, the increase of ``ru_maxrss`` is a
    lower bound.
    """
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    before, _ = _resident()
    step()
    return _resident()[1] - before


def _warm_up(seed: int) -> None:
    """First-use imports of torch, lwdna and the peer."""
    tiny = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
    images = torch.randn(2, 3, 16, 16)
    _ours(tiny.eval(), images, seed)
    with contextlib.suppress(ImportError):
        _peer(tiny, images[:1], seed, {"3"})
    _forward_seconds(tiny, images[:1])


def measure(name: str, repeats: int, seed: int, peer: bool, limit: float) -> dict[str, Any]:
    """All figures of one network.

    Args:
        name: see ``benchmarks.networks``.
        repeats: number of repetitions.
        seed: of the weights, the input and the removed channels.
        peer: whether to run the peer.
        limit: seconds after which one repetition of the peer is given up.
    """
    _warm_up(seed)
    torch.manual_seed(seed)
    network, size = build(name)
    network.eval()
    images = torch.randn(2, *size)  # two, so that capture can trace batch norms in training mode
    image = images[:1].clone()
    result: dict[str, Any] = {
        "input": list(size),
        "params": _params(network),
    }
    result["peak_mb"] = _peak_memory(lambda: analyse(capture(network, images), images))
    _forward_seconds(network, image)
    runs: dict[str, list[Any]] = {"lwdna": [], "peer": [], "forward": []}
    failure = None if peer else "not run"
    last: set[str] = set()

    def ours() -> None:
        seconds, graph, small = _ours(network, images, seed)
        runs["lwdna"].append(seconds)
        last.update(k.rpartition(".")[0] for k, role in graph.roles.items() if role.classifier)
        result["params_left"] = _params(small)
        result["prunable_groups"] = int(graph.prunable.sum())
        result["groups"] = len(graph.groups)
        result["failure"] = _run_error(small, image)

    def theirs() -> None:
        nonlocal failure
        if failure is not None:
            return
        try:
            with _time_limit(limit):
                seconds, small = _peer(network, image, seed, last)
        except (Exception, _TimeLimitError) as error:
            failure = _described("pruning", error)
        else:
            runs["peer"].append(seconds)
            result["peer_params_left"] = _params(small)
            result["peer_result_failure"] = _run_error(small, image)

    for k in range(repeats):
        for step in (ours, theirs) if k % 2 == 0 else (theirs, ours):
            step()
        runs["forward"].append(_forward_seconds(network, image))
    return {**result, "peer_failure": failure, "seconds": runs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network")
    parser.add_argument("--repeats", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--limit", type=float, required=True)
    parser.add_argument("--no-peer", action="store_true")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(args.threads)
    with contextlib.redirect_stdout(io.StringIO()):  # the peer prints
        try:
            found = measure(args.network, args.repeats, args.seed, not args.no_peer, args.limit)
        except Exception as error:
            found = {"failure": _described("lwdna", error)}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
