"""The oracles on networks that make them difficult."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import lwdna
from lwdna.fx_passes import verify


class _NamesItsPrecision(nn.Module):
    """Computes in float32 where it says so, and with tensors that it creates."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second, self.third = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        scaled = x.float() / 3 + torch.linspace(0, 1, x.shape[-1])
        ramp = torch.arange(x.shape[-1], dtype=torch.float32) / 7
        return self.third(self.second((scaled * ramp.sin()).float()).to(torch.float32))


def test_masked_equivalence_is_in_float64_whatever_the_graph_says() -> None:
    torch.manual_seed(0)
    model, x = _NamesItsPrecision(), torch.randn(2, 3, 8, 8)
    gm = lwdna.capture(model, x)
    graph = lwdna.analyse(gm, x)
    copies = verify.random_copies(graph, 0.5, np.random.default_rng(0))
    net = lwdna.resize(gm, graph, copies)
    assert net.first.out_channels == 4
    verify.masked_equivalence(gm, graph, copies, net, x, tolerance=1e-14)
    assert torch.get_default_dtype() == torch.float32
    assert gm(x).dtype == net(x).dtype == torch.float32, "copies were worked on"


def test_costs_are_measured_where_a_parameter_is_a_modules_argument() -> None:
    class Query(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query = nn.Parameter(torch.randn(1, 4, 8))
            self.norm, self.fc = nn.LayerNorm(8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x + self.norm(self.query))

    assert verify.measured_cost(Query(), torch.randn(1, 4, 8)) == (4 * 8 * 8, 32 + 16 + 72)


class _Chaotic(nn.Module):
    """Makes a difference in the last bit a billion times as large."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 64, 3)
        self.second, self.third = nn.Conv2d(64, 64, 3), nn.Conv2d(64, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.third((self.second(self.first(x)) * 1e9).sin())


def test_rounding_errors_that_a_network_amplifies_are_no_wrong_channels() -> None:
    torch.manual_seed(0)
    model, x = _Chaotic().double(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    gm = lwdna.capture(model, x)
    graph = lwdna.analyse(gm, x)
    copies = verify.random_copies(graph, 0.5, np.random.default_rng(0))
    net = lwdna.resize(gm, graph, copies)
    with torch.no_grad():  # as another order of summation would
        net.first.weight.mul_(1 + torch.finfo(torch.float64).eps)
    said = verify.masked_equivalence(gm, graph, copies, net, x)
    assert "of which the last bit is worth" in said
    with torch.no_grad():  # every channel in its neighbour's place
        net.third.weight.copy_(net.third.weight.roll(1, dims=1))
    with pytest.raises(lwdna.VerificationError, match=r"is off by [01]\..*worth"):
        verify.masked_equivalence(gm, graph, copies, net, x)
