"""Times one network in a process of its own: lwdna, the peer, and one forward pass.

Started by ``bm_compile``; prints one line of JSON. The memory comes first, while the process is
fresh; then every repetition runs lwdna, the peer and the forward, in alternating order.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.measure import Clock, TimeLimitError, described, peak_memory, time_limit
from benchmarks.networks import build
from benchmarks.pruners import (
    classifiers,
    peer_graph_seconds,
    prune,
    prune_as_peer,
    run_error,
    warm_up,
)
from lwdna.fx_passes.analyse import analyse
from lwdna.fx_passes.capture import capture
from lwdna.fx_passes.verify import verify


def _params(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def _forward_seconds(network: nn.Module, image: Tensor) -> float:
    clock = Clock()
    with torch.no_grad(), clock.stage("forward"):
        network(image)
    return clock.seconds["forward"]


def measure(name: str, repeats: int, seed: int, peer: bool, limit: float) -> dict[str, Any]:
    """All figures of one network.

    Args:
        name: see ``benchmarks.networks``.
        repeats: number of repetitions.
        seed: of the weights, the input and the removed channels.
        peer: whether to run the peer.
        limit: seconds after which one repetition of the peer is given up.
    """
    warm_up(seed, peer=peer)
    torch.manual_seed(seed)
    network, size = build(name)
    network.eval()
    images = torch.randn(2, *size)  # two, so that capture can trace batch norms in training mode
    image = images[:1].clone()
    result: dict[str, Any] = {
        "input": list(size),
        "params": _params(network),
    }
    result["peak_mb"] = peak_memory(lambda: analyse(capture(network, images), images))
    _forward_seconds(network, image)
    runs: dict[str, list[Any]] = {"lwdna": [], "peer": [], "forward": []}
    failure = None if peer else "not run"
    last: set[str] = set()

    def ours() -> None:
        seconds, graph, small = prune(network, images, seed)
        runs["lwdna"].append(seconds)
        last.update(classifiers(graph))
        result["params_left"] = _params(small)
        result["prunable_groups"] = int(graph.prunable.sum())
        result["groups"] = len(graph.groups)
        result["failure"] = run_error(small, image)

    def theirs() -> None:
        nonlocal failure
        if failure is not None:
            return
        try:
            with time_limit(limit):
                build_s = peer_graph_seconds(network, image)
                total_s, small = prune_as_peer(network, image, seed, last)
        except (Exception, TimeLimitError) as error:
            failure = described("pruning", error)
        else:
            runs["peer"].append({"build": build_s, "total": total_s})
            result["peer_params_left"] = _params(small)
            result["peer_result_failure"] = run_error(small, image)

    for k in range(repeats):
        for step in (ours, theirs) if k % 2 == 0 else (theirs, ours):
            step()
        runs["forward"].append(_forward_seconds(network, image))
    clock = Clock()
    with clock.stage("verify"):
        verify(network, images)
    result["verify_s"] = clock.seconds["verify"]
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
            found = {"failure": described("lwdna", error)}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
