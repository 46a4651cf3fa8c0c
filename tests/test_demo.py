"""The demo's tables, on a network that is quickly made."""

from __future__ import annotations

import pytest
import timm
import torch

import lwdna


def test_the_costs_of_a_network_are_shown_before_and_after() -> None:
    demo = pytest.importorskip("benchmarks.demo", exc_type=ImportError)
    net = lwdna.shrink(
        timm.create_model("test_resnet"),
        0.9,
        widen=1.0,
        criterion="random",
        example_inputs=torch.zeros(2, 3, 32, 32),
    )
    dna = net.meta["lwdna"]
    _, _, *rows = demo.cost_table(dna).splitlines()
    assert [row.split()[0] for row in rows] == ["macs", "flops_paper", "params", "activations"]
    assert rows[0].split()[-1] == f"{dna.after.macs / dna.before.macs:.2%}"
    assert len(demo.width_table(dna).splitlines()) == 2 + sum(g.prunable for g in dna.groups)
