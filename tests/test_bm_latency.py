"""The latency benchmark: its errors, its bar, and a run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import bm_latency


def network(error: float) -> dict[str, Any]:
    result = {"predicted": 0.7, "measured": 0.7, "error": error}
    names = [f"{metric} {share:g}" for metric, share in bm_latency.BUDGETS]
    base = {"predicted": 1.5, "measured": 1.0}
    return {"drift": 0.5, "baseline": base, "results": dict.fromkeys(names[1:], result)}


def test_the_bar_counts_networks_whose_worst_error_is_small() -> None:
    found = {str(k): network(-0.09) for k in range(9)} | {"bad": network(0.2)}
    ((met, text),) = bm_latency.bars(found)
    assert not met and "on 9 of 10 networks" in text
    ((met, _),) = bm_latency.bars(found | {"good": network(0.1)})
    assert met
    row = bm_latency.table({"0": found["0"]}).splitlines()[-1]
    assert [cell.strip() for cell in row.split("|")[3:6]] == ["+50.0%", "–", "70% (-9.0%)"]


def test_the_benchmark_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "found.json"
    options = ["--networks", "timm:test_resnet", "--batch", "2", "--divisor", "1"]
    options += ["--repeats", "1", "--threads", "1", "--output", str(file)]
    monkeypatch.setattr(sys, "argv", ["bm_latency", *options])
    bm_latency.main()
    (found,) = json.loads(file.read_text())["networks"].values()
    results, base = found["results"], found["baseline"]
    assert found["drift"] == pytest.approx(base["predicted"] / base["measured"] - 1, rel=0.01)
    assert set(results) >= {"macs 0.7", "macs 0.5"}
    for what, r in results.items():
        assert r["error"] == pytest.approx(r["predicted"] / r["measured"] - 1, abs=0.01)
        if what.startswith("latency"):
            assert r["predicted"] <= float(what.split()[1]) + 1e-4
