"""The throughput benchmark: what it compares, runs and demands."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import bm_throughput
from benchmarks.running import Mode, Runner

NETWORKS = ("baseline", "uniform", "divisor 1", "latency")


def record(gain: float, saving: float = 0.5, budget: float = 0.5) -> dict[str, Any]:
    networks = ("baseline", *(f"divisor {d}" for d in bm_throughput.DIVISORS))
    return {
        "network": bm_throughput.BAR_NETWORK,
        "budget": budget,
        "mode": "fp32, contiguous, eager",
        "seconds": {name: {"batch": 1.0} for name in networks},
        "saving": dict.fromkeys(networks, saving),
        "gain": dict.fromkeys(networks, gain) | {"divisor 1": -1.0},
    }


def test_bars_are_about_aligned_widths() -> None:
    (slow, time) = bm_throughput.bars([record(0.44)])
    assert slow[0] and time[0] and "88% of the saving becomes time" in time[1]
    (slow, time) = bm_throughput.bars([record(0.40)])
    assert slow[0] and not time[0]
    (slow,) = bm_throughput.bars([record(-0.01, budget=0.9)])
    assert not slow[0] and "-1.0%" in slow[1]


def test_a_latency_budget_has_a_bar_in_the_mode_it_was_measured_in() -> None:
    other = record(0.1, budget=0.9)
    own = other | {"mode": bm_throughput.MEASURED}
    other["gain"] |= {"latency": -0.2}
    own["gain"] = own["gain"] | {"latency": 0.05}
    (latency, every) = bm_throughput.bars([other, own])
    assert latency[0] and "5.0%" in latency[1]
    assert not every[0] and "-20.0%" in every[1]


def test_a_network_that_a_divisor_cannot_make_is_left_out_of_the_table() -> None:
    full, less = record(0.4), record(0.4)
    del less["gain"]["divisor 32"]
    (_, _, first, _) = bm_throughput.table([less, full]).splitlines()
    assert first.split("|")[-2].strip() == "–"


def test_networks_are_compiled_at_the_least_budget_with_channels_last() -> None:
    args = argparse.Namespace(dtypes=["fp32"], budgets=[0.9, 0.5], compile=["x"])
    assert [m.compiled for m in bm_throughput.modes("x", 0.9, args)] == [False, False]
    assert Mode("fp32", True, True) in bm_throughput.modes("x", 0.5, args)
    assert not any(m.compiled for m in bm_throughput.modes("y", 0.5, args))
    assert Mode("fp32", False, True) not in bm_throughput.modes("x", 0.5, args)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_runner_trains_and_runs_its_own_copy(dtype: str) -> None:
    torch.manual_seed(0)
    network, _ = bm_throughput.build("timm:test_resnet")
    before = network.get_parameter("conv1.0.weight").clone()
    runner = Runner(network, Mode(dtype, True, False), torch.randn(2, 3, 32, 32))
    runner.forward(1)()
    runner.train()
    assert torch.equal(before, network.get_parameter("conv1.0.weight"))
    trained = runner.network.get_parameter("conv1.0.weight")
    assert not torch.equal(before, trained)
    assert trained.is_contiguous(memory_format=torch.channels_last)
    assert trained.dtype == torch.float32


def test_the_benchmark_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "found.json"
    options = ["--networks", "timm:test_resnet", "--budgets", "0.7", "--dtypes", "fp32"]
    options += ["--batch", "2", "--repeats", "1", "--threads", "1", "--output", str(file)]
    monkeypatch.setattr(sys, "argv", ["bm_throughput", *options])
    monkeypatch.setattr(bm_throughput, "DIVISORS", (1, 8))  # the network is too narrow for more
    monkeypatch.setattr(bm_throughput, "LATENCY_DIVISOR", 4)
    monkeypatch.setattr(bm_throughput, "ASKED", 0.3)  # within reach however busy the machine is
    bm_throughput.main()
    found = json.loads(file.read_text())
    eager = [r["mode"] for r in found["records"]]
    assert eager == ["fp32, contiguous, eager", "fp32, channels_last, eager"]
    for r in found["records"]:
        assert set(r["seconds"]) == {*NETWORKS, "divisor 8"}
        assert all(set(s) == {"image", "batch", "train"} for s in r["seconds"].values())
        assert all(set(s) == {"products", "norms", "other"} for s in r["kinds"].values())
        assert r["kinds"]["baseline"]["products"] > 0
        assert r["saving"]["latency"] >= 0.3
        assert r["saving"]["baseline"] == 0 and 0.29 < r["saving"]["uniform"] < 0.36
    assert bm_throughput.table(found["records"]).count("\n") == 3
    assert bm_throughput.kinds_table(found["records"]).count("\n") == 11
