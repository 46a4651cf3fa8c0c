"""Where copies stand, and what is left of an axis of one unit: grouped layers after one another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import lwdna
from lwdna.channels import Ids
from lwdna.copies import entry_map
from lwdna.fx_passes import verify
from lwdna.fx_passes.resize import resize
from lwdna.graph import ChannelGraph

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def conv(into: int, out: int, groups: int = 1) -> nn.Module:
    return nn.Conv2d(into, out, 3, padding=1, groups=groups)


def chain(*layers: nn.Module, last: int) -> nn.Module:
    tail = nn.Conv2d(last, 10, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(10, 5)
    return nn.Sequential(conv(3, layers[0].in_channels), *layers, *tail)  # type: ignore[arg-type]


class Residual(nn.Module):
    """Convolutions of four and of three groups on one residual stream."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.g, self.h = conv(3, 24), conv(24, 24, 4), conv(24, 24, 3)
        self.fc = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        x = x + self.g(x)
        x = x + self.h(x)
        out: Tensor = self.fc(x.mean((2, 3)))
        return out


class Shuffled(nn.Module):
    """ShuffleNet's unit with the shuffle written out."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = conv(3, 24), conv(24, 24, 4), conv(24, 24, 4)
        self.d, self.fc = conv(24, 24, 24), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(self.stem(x))
        n, c, h, w = y.shape
        y = y.view(n, 4, c // 4, h, w).transpose(1, 2).reshape(n, c, h, w)
        out: Tensor = self.fc(self.b(self.d(y)).mean((2, 3)))
        return out


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "multiplier": lambda: chain(conv(8, 16, 8), nn.BatchNorm2d(16), last=16),
    "multiplier and groups": lambda: chain(
        conv(8, 32, 8), nn.ReLU(), conv(32, 16, 16), nn.ReLU(), conv(16, 16, 4), last=16
    ),
    "unequal groups": lambda: chain(conv(24, 24, 4), nn.ReLU(), conv(24, 24, 6), last=24),
    "residual": Residual,
    "shuffled": Shuffled,
}


def analysed(name: str, policy: str) -> tuple[GraphModule, ChannelGraph]:
    torch.manual_seed(0)
    model = NETWORKS[name]().eval()
    verify.stir(model)
    gm = lwdna.capture(model, X)
    return gm, lwdna.analyse(gm, X, policy=policy)


def test_padding_on_one_side_alone_is_no_joint() -> None:
    """BoTNet's relative positions are padded behind; nothing stands before them."""

    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.fc = conv(3, 12), conv(3, 16), nn.Linear(16, 5)

        def forward(self, x: Tensor) -> Tensor:
            wider = self.a(x)
            for _ in range(2):
                wider = nn.functional.pad(wider, (0, 0, 0, 0, 0, 2))
            out: Tensor = self.fc((wider + self.b(x)).mean((2, 3)))
            return out

    lwdna.verify(Padded(), X)


def without_new_inputs(net: nn.Module, graph: ChannelGraph, copies: Ids) -> nn.Module:
    """A widened network whose layers disregard the inputs that are copies."""
    for name, role in graph.roles.items():
        vector = graph.tensors[name][role.in_dim]
        if vector is not None:
            number = torch.as_tensor(entry_map(vector, copies, graph.factors)[1])
            weight = net.get_parameter(name).data.movedim(role.in_dim, 0)
            weight[number > 0] = 0
    return net


cases = pytest.mark.parametrize("policy", ["auto", "inner", "outer", "both"])
networks = pytest.mark.parametrize("name", NETWORKS)


@cases
@networks
def test_a_widened_network_that_disregards_its_copies_is_the_original(
    name: str, policy: str
) -> None:
    """Copies stood between the groups of a layer, whose channels then belonged to others.

    A round trip does not see that: it takes out what it has put in.
    """
    gm, graph = analysed(name, policy)
    free = graph.prunable[graph.group_of]
    for seed in range(4):
        drawn = np.random.default_rng(seed).integers(1, 3, graph.units)
        copies = graph.completed(np.where(free, drawn, 1))
        wide = without_new_inputs(resize(gm, graph, copies).double(), graph, copies)
        (got,), (expected,) = (verify.evaluated(net, X.double()) for net in (wide, gm.double()))
        gm.float()
        torch.testing.assert_close(got, expected)


@cases
@networks
def test_all_invariants_hold_down_to_one_unit(name: str, policy: str) -> None:
    """An axis of one unit is gone from the shrunk network, which computes what it should."""
    gm, graph = analysed(name, policy)
    verify.verify(NETWORKS[name](), X, policy=policy)
    mine: list[Any] = [g for g in graph.groups if g.prunable]
    for group in (*mine, None):
        copies = graph.keep_all()
        for other in mine:
            if group in (other, None):
                copies[other.units[1:]] = 0
        copies = graph.completed(copies)
        small = resize(gm, graph, copies)
        verify.masked_equivalence(gm, graph, copies, small, X)
        verify.restriction(graph, copies, small)
        verify.cost(graph, copies, small)


def test_where_products_clash_the_axis_that_stays_is_repeated() -> None:
    """Removal makes another axis the longest one; the choice is not made anew."""
    _, graph = analysed("multiplier and groups", "both")
    assert "both:0" in graph.policy.values()
    widths = {g.name: g.width for g in graph.groups if g.prunable}
    assert widths == {"0": 4, "5:inner": 4, "6": 10}
