"""The benchmark of selections: its graphs without a network, and its record."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import bm_selection


def test_a_chain_costs_what_its_layers_cost() -> None:
    graph = bm_selection.chain([5, 2])
    assert graph.cost().macs == 3 * 5 + 5 * 2 + 2 * 10  # from 3 channels to 10


def test_the_benchmark_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "found.json"
    monkeypatch.setattr(bm_selection, "NETWORKS", {"chain": [16] * 8})
    options = ["--networks", "chain", "--repeats", "1", "--output", str(file)]
    monkeypatch.setattr(sys, "argv", ["bm_selection", *options])
    assert bm_selection.main() == 0
    found = json.loads(file.read_text())
    assert found["bars"][0]["met"]
    runs = found["networks"]["chain"]["runs"]
    assert [len(run["limits"]) for run in runs] == [1, 1, 1, 2, 2, 2]
    for run in runs:
        assert all(0.9 < used <= 1 for used in run["used"].values() if len(run["used"]) == 1)
    kept = {run["allocation"]: run["kept_saliency"] for run in runs[:3]}
    assert kept["saliency-per-cost"] >= kept["threshold"] == kept["balanced"]  # of one limit
