"""The scoring benchmark: its bars, and a run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import bm_scoring
from benchmarks.bm_scoring import PAPER, STEP


def recipe(time: float, memory: float) -> dict[str, Any]:
    other = {"snip": 9.0, STEP: 1.0}
    return {
        "seconds": {PAPER: time, **other},
        "peak_mb": {PAPER: 100, "snip": 900, STEP: 100},
        "time_ratio": {PAPER: time, **other},
        "memory_ratio": {PAPER: memory, **other},
    }


def test_the_bars_are_those_of_the_papers_criterion_on_the_worst_recipe() -> None:
    record: dict[str, Any] = {"recipes": {"a": recipe(2.9, 1.2), "b": recipe(1.0, 1.4)}}
    (fast, _), (small, text) = bm_scoring.bars(record)
    assert fast and not small and "1.40 (b)" in text
    record["fit"] = {"peak_mb": {PAPER: bm_scoring.FIT_MB + 1}}
    assert [met for met, _ in bm_scoring.bars(record)] == [True, False, False]
    assert record["recipes"]["b"]["peak_mb"].pop("snip") and "refused" in bm_scoring.table(record)
    assert "| snip " in bm_scoring.table(record) and "9.00 / 9.00" in bm_scoring.table(record)


def test_the_benchmark_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "found.json"
    options = [
        "--recipes",
        "edsr-x4",
        "--criteria",
        PAPER,
        "random",
        "bn-scale",
        "--side",
        "6",
        "--batch",
        "1",
    ]
    options += ["--repeats", "1", "--threads", "1", "--output", str(file)]
    monkeypatch.setattr(sys, "argv", ["bm_scoring", *options])
    bm_scoring.main()
    record = json.loads(file.read_text())
    found = record["recipes"]["edsr-x4"]
    assert "bn-scale" in found["refused"], "a network without batch norms"
    assert set(found["seconds"]) == set(found["peak_mb"]) == {PAPER, "random", STEP}
    for name, ratio in found["time_ratio"].items():
        assert ratio == pytest.approx(found["seconds"][name] / found["seconds"][STEP], rel=0.05)
    assert found["time_ratio"]["random"] < found["time_ratio"][PAPER]
    assert len(record["bars"]) == 2
