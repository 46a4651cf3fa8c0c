"""torchvision's detectors, and the code of docs/regions.md."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import lwdna
from benchmarks.detectors import DETECTORS, detector, pictures
from benchmarks.zoo.shares import figures
from lwdna.fx_passes import verify
from lwdna.fx_passes.analyse import analyse
from lwdna.fx_passes.capture import capture
from tests.documents import run_page
from tests.toy_detector import losses, step


def test_the_code_of_the_documentation_runs() -> None:
    torch.manual_seed(0)
    names = run_page("docs/regions.md")
    dna = names["small"].meta["lwdna"]
    assert dna.after.macs <= 0.7 * dna.before.macs


QUICK = "fasterrcnn_mobilenet_v3_large_320_fpn"


def seeded(name: str) -> nn.Module:
    torch.manual_seed(0)
    return detector(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", DETECTORS)
def test_torchvision_detectors_keep_all_invariants(name: str) -> None:
    model = seeded(name)
    data = pictures(name, 2)
    verify.verify(model, data)
    net = capture(model, data)
    assert figures(model, net, analyse(net, data))["share"]["macs"] > 0.9


@pytest.mark.parametrize(
    "name", [n if n == QUICK else pytest.param(n, marks=pytest.mark.slow) for n in DETECTORS]
)
def test_torchvision_detectors_shrink_train_and_detect(name: str) -> None:
    model = seeded(name)
    data = pictures(name, 2)
    net = lwdna.shrink(model, 0.7, data=[data], step_fn=step, widen=1.0, progress=False)
    assert type(net) is type(model)
    assert list(net.state_dict()) == list(model.state_dict())
    assert net.meta["lwdna"].after.macs <= 0.7 * net.meta["lwdna"].before.macs
    losses(net.train(), data).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())
    found = net.eval()([torch.rand(3, 80, 60)])
    assert found[0]["boxes"].shape[1] == 4
