"""The compile-time benchmark: its ratios and its bars."""

from __future__ import annotations

from typing import Any

from benchmarks import bm_compile


def result(total: float, peer: float | None, forward: float = 0.1) -> dict[str, Any]:
    runs: dict[str, Any] = {"forward": [forward] * 3, "peer": []}
    runs["lwdna"] = [{"resize": total / 2, "total": total}] * 3
    runs["lwdna_shrink"], runs["peer_shrink"] = runs["lwdna"], []
    if peer is not None:
        runs["peer"] = [{"build": peer / 2, "total": peer}] * 3
        runs["peer_shrink"] = [{"total": 10 * peer, "left": 0.7}] * 3
    found: dict[str, Any] = {"seconds": runs, "peak_mb": 1.0}
    return found | bm_compile.summary(found)


def met(results: dict[str, dict[str, Any]]) -> dict[str, bool]:
    return {text: ok for ok, text in bm_compile.check_bars(results)}


def test_ratios_are_ours_over_theirs() -> None:
    ratios = {"forward": 10.0, "peer": 0.5, "peer_graph_only": 0.5, "peer_shrink": 0.05}
    assert result(1.0, 2.0)["ratios"] == ratios
    assert set(result(1.0, None)["ratios"]) == {"forward"}, "a stopped peer has no median"


def test_bars_name_the_networks_that_miss_them() -> None:
    results = {
        "timm:resnet18": result(0.2, 1.0),
        "timm:hrnet_w18": result(1.2, 1.0),
        "timm:vit_tiny": result(5.0, None),
        "timm:broken": result(0.2, 0.1) | {"peer_result_failure": "forward: RuntimeError"},
    }
    found = met(results)
    assert found[
        "removal: faster than the peer on 1 of 2 networks; slowest against it: timm:hrnet_w18"
    ] is (False)
    assert found["removal: the peer's seconds / ours, median: 2.92 >= 3"] is False
    assert found["shrink: the peer's seconds / ours, median: 29.17 >= 3"] is True
    assert found["at most 10 forward passes on 2 of 3 CNNs; more: timm:hrnet_w18"] is False
    good = met({"timm:resnet18": result(0.2, 1.0)})
    assert all(good.values()) and len(good) == 8
