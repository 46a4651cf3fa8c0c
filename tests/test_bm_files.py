"""The benchmark of files: what it measures and demands."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import bm_files


def record(**changes: Any) -> dict[str, Any]:
    return {
        "network": "timm:resnet18",
        "widen": 1.0,
        "ratio": 2.0,
        "tensor_bytes": 10**7,
        "file_bytes": 10_200_000,
        "identical": True,
    } | changes


def test_bars_are_about_the_worst() -> None:
    assert all(met for met, _ in bm_files.bars([record(), record()]))
    for change, position in (
        ({"ratio": 2.01}, 0),
        ({"file_bytes": 10_200_001}, 1),
        ({"identical": False}, 2),
    ):
        found = bm_files.bars([record(), record(network="x", **change)])
        assert [met for met, _ in found] == [k != position for k in range(3)]
        assert "1 of 2 networks; not x, widen 1" in found[position][1]


def test_the_benchmark_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "found.json"
    options = ["--networks", "timm:test_resnet", "--widen", "1", "--repeats", "1"]
    options += ["--output", str(file)]
    monkeypatch.setattr(sys, "argv", ["bm_files", *options])
    bm_files.main()
    found = json.loads(file.read_text())
    (r,) = found["records"]
    assert r["identical"] and set(r["seconds"]) == {"constructor", "load", "save"}
    assert r["tensor_bytes"] < r["file_bytes"] <= 1.01 * r["tensor_bytes"] + 100_000
    assert [bar["met"] for bar in found["bars"]][1:] == [True, True]
    assert bm_files.table(found["records"]).count("\n") == 2
