"""The paper's counter reproduces the paper's figures."""

from __future__ import annotations

import timm
import torch
import torchvision

import lwdna
from lwdna.cost import Cost


def cost_of(model: torch.nn.Module) -> Cost:
    x = torch.empty(2, 3, 224, 224)
    return lwdna.analyse(lwdna.capture(model, x), x).cost()


def test_resnet50_as_in_table_1() -> None:
    cost = cost_of(torchvision.models.resnet50(weights=None))
    assert cost.macs == 4_089_184_256
    assert f"{cost.flops_paper / 1e9:.4f}" == "4.1177"
    batch_norm_and_relu = cost.flops_paper - cost.macs
    assert f"{batch_norm_and_relu / 1e9:.6f}" == "0.028550"  # 0.022228 G + 0.006322 G
    assert cost.params == 25_557_032


def test_regnetx_4gf_as_in_table_1() -> None:
    cost = cost_of(timm.create_model("regnetx_040"))
    assert f"{cost.flops_paper / 1e9:.4f}" == "4.0005"
    assert f"{cost.params / 1e6:.3f}" == "22.118"
