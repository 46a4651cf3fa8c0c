"""The scaling benchmark: its networks and its fit."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from benchmarks import bm_scaling


def record(power: float) -> dict[str, Any]:
    sizes = [100, 1000, 10000]
    found = [
        {"layers": n, "nodes": n, "units": n, "seconds": {"total": 1e-4 * n**power}} for n in sizes
    ]
    return {"depth": found, "width": found}


def test_networks_have_the_layers_and_channels_they_should() -> None:
    for layers, channels in ((18, 512), (34, 512), (130, 1024)):
        network = bm_scaling.network(layers, channels)
        convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
        path = [m for m in convolutions if m.kernel_size != (1, 1)]
        assert len(path) + 1 == layers
        assert network.num_features == channels


def test_the_exponent_is_that_of_the_law() -> None:
    assert bm_scaling.exponent(record(1.3)["depth"], "nodes") == pytest.approx(1.3)
    assert [met for met, _ in bm_scaling.bars(record(1.0))] == [True, True, True]
    assert [met for met, _ in bm_scaling.bars(record(1.5))] == [False, False, False]


def test_the_benchmark_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "found.json"
    options = ["--repeats", "1", "--depths", "18", "34", "--widths", "64", "128"]
    monkeypatch.setattr(sys, "argv", ["bm_scaling", *options, "--output", str(out)])
    bm_scaling.main()
    found = json.loads(out.read_text())
    assert [r["layers"] for r in found["depth"]] == [18, 34]
    assert [r["channels"] for r in found["width"]] == [64, 128]
    assert found["width"][1]["units"] > found["width"][0]["units"]
    assert len(found["bars"]) == 3
