"""Times one network in a process of its own: lwdna, the peer, and one forward pass.

Started by ``bm_compile``; prints one line of JSON. The memory comes first, while the process is
fresh; then every repetition runs lwdna and the peer, in alternating order, and the forward.
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
    selection,
    shrink_as_peer,
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


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All figures of one network."""
    seed, limit, peer = args.seed, args.limit, not args.no_peer
    warm_up(seed, peer=peer)
    torch.manual_seed(seed)
    network, size = build(args.network)
    network.eval()
    images = torch.randn(2, *size)  # two, so that capture can trace batch norms in training mode
    image = images[:1].clone()
    result: dict[str, Any] = {
        "input": list(size),
        "params": _params(network),
    }
    result["peak_mb"] = peak_memory(lambda: analyse(capture(network, images), images))
    if peer:
        with contextlib.suppress(Exception, TimeLimitError), time_limit(limit):
            result["peer_peak_mb"] = peak_memory(lambda: peer_graph_seconds(network, image))
    _forward_seconds(network, image)
    tools = ("lwdna", "peer", "lwdna_shrink", "peer_shrink")
    runs: dict[str, list[Any]] = {key: [] for key in (*tools, "forward")}
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
        seconds, _, _ = prune(network, images, seed, choose=selection(args.share))
        runs["lwdna_shrink"].append(seconds)

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
            if "peer_shrink_failure" not in result:
                theirs_to_budget()

    def theirs_to_budget() -> None:
        most_s = args.times * runs["lwdna_shrink"][-1]["total"]
        try:
            with time_limit(limit + most_s):
                seconds, left = shrink_as_peer(
                    network, image, seed, last, share=args.share, most_s=most_s
                )
        except (Exception, TimeLimitError) as error:
            result["peer_shrink_failure"] = described("shrinking", error)
        else:
            runs["peer_shrink"].append({"total": seconds, "left": left})

    for k in range(args.repeats):
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
    parser.add_argument("network", help="see benchmarks.networks")
    parser.add_argument("--repeats", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True, help="of weights, inputs, removals")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument(
        "--limit", type=float, required=True, help="seconds of one repetition of the peer"
    )
    parser.add_argument("--share", type=float, required=True, help="of the MACs to shrink to")
    parser.add_argument(
        "--times", type=float, required=True, help="our time, then the peer starts no further step"
    )
    parser.add_argument("--no-peer", action="store_true")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(args.threads)
    with contextlib.redirect_stdout(io.StringIO()):  # the peer prints
        try:
            found = measure(args)
        except Exception as error:
            found = {"failure": described("lwdna", error)}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
