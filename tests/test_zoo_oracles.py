"""The sweep's oracles on values that amplify rounding errors."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

import lwdna
from benchmarks.zoo import oracles
from lwdna.errors import VerificationError
from lwdna.fx_passes.verify import masked_equivalence

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Waves(nn.Module):
    """Every layer makes a difference a thousand times as large, unless its norm normalises."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 8, 8, 8, 8, 8, 8, 8)
        pairs = pairwise(widths)
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in pairs)
        self.norms = nn.ModuleList(nn.BatchNorm2d(b) for b in widths[1:])
        for conv in self.convs:
            nn.init.normal_(conv.weight, std=1e3)

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = torch.sin(norm(conv(x)))
        return x.mean((2, 3))


@pytest.fixture(scope="module")
def case() -> oracles.Case:
    torch.manual_seed(0)
    model = Waves().eval()
    gm = lwdna.capture(model, X)
    graph = lwdna.analyse(gm, X)
    copies = graph.keep_all()
    for group in graph.groups:
        if group.prunable:
            copies[group.units[::3]] = 0
    net = lwdna.resize(gm, graph, copies)
    return oracles.Case("toy", model, gm, graph, copies, net, (((3, 8, 8),),), 0)


def test_values_that_explode_are_compared_with_batch_norms_that_normalise(
    case: oracles.Case,
) -> None:
    with pytest.raises(VerificationError, match="the last bit of inputs"):
        masked_equivalence(case.gm, case.graph, case.copies, case.net, X[:1])
    said = oracles._masked(case, (X[:1],), (X,))
    assert said.endswith("with the input's statistics in batch norms")
    assert float(said.split("within ")[1].split()[0]) < 1e-9


def test_a_wrong_channel_is_found_all_the_same(case: oracles.Case) -> None:
    other = case.copies.copy()
    group = next(g for g in case.graph.groups if g.prunable)
    other[group.units] = 1 - other[group.units]
    wrong = lwdna.resize(case.gm, case.graph, other)
    with pytest.raises(VerificationError):
        oracles._masked(replace(case, net=wrong), (X[:1],), (X,))
    spoilt = lwdna.resize(case.gm, case.graph, case.copies)
    with torch.no_grad():
        spoilt.get_parameter("convs.2.weight")[0, 0] += 1e-3
    with pytest.raises(VerificationError):
        oracles._masked(replace(case, net=spoilt), (X[:1],), (X,))
