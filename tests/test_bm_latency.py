"""The latency benchmark: its errors, its bar, and a run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import bm_latency


def network(error: float) -> dict[str, Any]:
    result = {"predicted": 1.0, "measured": 1.0, "error": error, "of_baseline": 0.7}
    names = [f"{metric} {share:g}" for metric, share in bm_latency.BUDGETS]
    return {"results": {"baseline": result | {"error": 0.5}, **dict.fromkeys(names, result)}}


def test_the_bar_counts_networks_whose_worst_error_is_small() -> None:
    found = {str(k): network(-0.09) for k in range(9)} | {"bad": network(0.2)}
    ((met, text),) = bm_latency.bars(found)
    assert not met and "on 9 of 10 networks" in text
    ((met, _),) = bm_latency.bars(found | {"good": network(0.1)})
    assert met
    assert "| 70% (-9.0%) |" in bm_latency.table({"0": found["0"]})


def test_the_benchmark_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "found.json"
    options = ["--networks", "timm:test_resnet", "--batch", "2", "--divisor", "1"]
    options += ["--repeats", "1", "--threads", "1", "--output", str(file)]
    monkeypatch.setattr(sys, "argv", ["bm_latency", *options])
    bm_latency.main()
    (found,) = json.loads(file.read_text())["networks"].values()
    results = found["results"]
    assert list(results) == ["baseline", "latency 0.7", "latency 0.5", "macs 0.7", "macs 0.5"]
    for r in results.values():
        assert r["error"] == pytest.approx(r["predicted"] / r["measured"] - 1, abs=0.01)
    share = results["latency 0.7"]["predicted"] / results["baseline"]["predicted"]
    assert 0.6 < share <= 0.7001
