"""The channel graph and its costs, against networks small enough to count by hand."""

from __future__ import annotations

from typing import Any

import networkx as nx
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule

from lwdna.channels import Slot
from lwdna.cost import METRICS, Cost, CostModel, Term
from lwdna.fx_passes import verify
from lwdna.fx_passes.analyse import analyse
from lwdna.fx_passes.capture import capture
from lwdna.fx_passes.resize import resize
from lwdna.graph import ChannelGraph, Copies
from lwdna.graph_builder import _by_first_unit


class Plain(nn.Module):
    """The three layers whose costs are counted by hand below."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.act1 = nn.ReLU()
        self.conv2 = nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False)
        self.act2 = nn.ReLU()
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act2(self.conv2(self.act1(self.bn(self.conv1(x)))))
        out: Tensor = self.fc(x.mean((2, 3)))
        return out


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.inner = nn.Conv2d(8, 5, 1)
        self.outer = nn.Conv2d(5, 8, 1)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        out: Tensor = self.head(x + self.outer(self.inner(x).relu()))
        return out


def sequential(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers)


class Concat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.p = nn.Conv2d(3, 6, 1)
        self.q = nn.Conv2d(3, 4, 1)
        self.bn = nn.BatchNorm2d(10)
        self.head = nn.Conv2d(10, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.bn(torch.cat([self.p(x), self.q(x)], 1)))
        return out


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 12, 2, 2)
        self.norm = nn.LayerNorm(12)
        self.qkv = nn.Linear(12, 36)
        self.proj = nn.Linear(12, 12)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        n, length, width = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(n, length, 3, 2, 6).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, length, width)
        out: Tensor = self.head((x + self.proj(y)).mean(1))
        return out


NETS: dict[str, Any] = {
    "plain": Plain,
    "residual": Residual,
    "depthwise": lambda: sequential(
        nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 4, 1)
    ),
    "grouped": lambda: sequential(
        nn.Conv2d(3, 8, 1), nn.Conv2d(8, 12, 3, groups=2), nn.Conv2d(12, 4, 1)
    ),
    "concat": Concat,
    "attention": Attention,
}
#: group name -> width, of the groups that may change
PRUNABLE = {
    "plain": {"conv1": 8, "conv2": 16},
    "residual": {"stem": 8, "inner": 5},
    "depthwise": {"0": 8},
    "grouped": {"0": 4, "1": 6},
    "concat": {"p": 6, "q": 4},
    "attention": {"embed": 12, "qkv": 6},
}
X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
every_net = pytest.mark.parametrize("name", NETS)


def analysed(model: nn.Module, x: Any = X, **kwargs: Any) -> tuple[GraphModule, ChannelGraph]:
    gm = capture(model, x)
    return gm, analyse(gm, x, **kwargs)


def graph_of(name: str) -> ChannelGraph:
    return analysed(NETS[name]())[1]


def group(graph: ChannelGraph, name: str) -> Any:
    (found,) = (g for g in graph.groups if g.name == name)
    return found


def at_widths(graph: ChannelGraph, widths: dict[str, int]) -> Copies:
    """Copies that give the named groups these widths (surplus goes to the first units)."""
    copies = graph.keep_all()
    for name, width in widths.items():
        units = group(graph, name).units
        every, extra = divmod(width, len(units))
        copies[units] = every
        copies[units[:extra]] += 1
    return copies


# --- groups ---


@every_net
def test_prunable_groups(name: str) -> None:
    graph = graph_of(name)
    assert {g.name: g.width for g in graph.groups if g.prunable} == PRUNABLE[name]
    assert [g.index for g in graph.groups] == list(range(len(graph.groups)))
    for g in graph.groups:
        assert (graph.group_of[g.units] == g.index).all()
    assert sum(g.width for g in graph.groups) == graph.units


@every_net
def test_groups_are_the_components_of_the_networkx_graph(name: str) -> None:
    graph = graph_of(name)
    components = list(nx.connected_components(graph.nx))
    for component in components:
        assert len({index for _, index in component}) == 1
    for g in graph.groups:
        if g.slots:
            nodes = {(slot, g.index) for slot, _ in g.slots}
            (component,) = (c for c in components if nodes & c)
            assert nodes <= component


@every_net
def test_edges_carry_the_graph_node_and_the_operator(name: str) -> None:
    gm, graph = analysed(NETS[name]())
    names = {node.name for node in gm.graph.nodes}
    edges = list(graph.nx.edges(data=True))
    assert edges
    for *_, data in edges:
        assert data["node"] in names
        assert data["op"]


def test_the_edge_of_a_skip_connection_names_its_addition() -> None:
    graph = graph_of("residual")
    stem = group(graph, "stem")
    ends = [(Slot(name, 0), stem.index) for name in ("stem.weight", "outer.weight")]
    causes = {(d["node"], d["op"]) for d in graph.nx.get_edge_data(*ends).values()}
    assert causes == {("add", "add")}
    assert [(str(slot), times) for slot, times in stem.slots if slot.kind == "parameter"] == [
        ("stem.weight[0]", 1),
        ("stem.bias[0]", 1),
        ("inner.weight[1]", 1),
        ("outer.weight[0]", 1),
        ("outer.bias[0]", 1),
        ("head.weight[1]", 1),
    ]


def test_a_concatenated_slot_belongs_to_both_groups() -> None:
    graph = graph_of("concat")
    shared = Slot("head.weight", 1)
    assert [g.name for g in graph.groups if shared in dict(g.slots)] == ["p", "q"]
    p, q = group(graph, "p"), group(graph, "q")
    assert np.array_equal(graph.tensors["head.weight"][1], np.concatenate([p.units, q.units]))
    assert np.array_equal(graph.tensors["bn.running_var"][0], np.concatenate([p.units, q.units]))
    assert Slot("bn.running_var", 0, "buffer") in dict(p.slots)
    assert graph.buffers & graph.tensors.keys() == {"bn.running_mean", "bn.running_var"}


def test_units_of_a_flattened_map_occur_once_per_position() -> None:
    _, graph = analysed(sequential(nn.Conv2d(3, 6, 1), nn.Flatten(), nn.Linear(6 * 64, 4)))
    assert dict(group(graph, "0").slots)[Slot("2.weight", 1)] == 64


def test_frozen_groups_say_why_and_where() -> None:
    graph = graph_of("plain")
    reasons = {g.name: g.reasons for g in graph.groups if not g.prunable}
    assert reasons["fc"] == (("network output", "output"),)
    assert reasons["conv1.weight[1]"] == (("network input", "x"),)
    assert all(reasons.values())
    assert [g.name for g in graph.groups if g.feeds_classifier] == ["conv2"]


def test_an_operator_without_a_rule_freezes_and_is_named() -> None:
    class Sorted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.c(self.b(self.a(x).renorm(2, 0, 1.0)))
            return out

    _, graph = analysed(Sorted())
    ((reason, node),) = group(graph, "a").reasons
    assert "aten.renorm" in reason and "no channel rule" in reason and node == "renorm"
    assert group(graph, "b").prunable


# --- configurations ---


@every_net
@pytest.mark.parametrize("factor", [0.5, 1.5, 2])
def test_restriction_is_what_an_analysis_of_the_result_finds(name: str, factor: float) -> None:
    gm, graph = analysed(NETS[name]())
    widths = {g: max(2, round(factor * width)) for g, width in PRUNABLE[name].items()}
    copies = at_widths(graph, widths)
    resized = resize(gm, graph, copies)
    verify.restriction(graph, copies, resized)
    restricted = graph.restrict(copies)
    assert {g.name: g.width for g in restricted.groups if g.prunable} == widths
    assert np.array_equal(restricted.origin, np.repeat(np.arange(graph.units), copies))
    assert restricted.cost() == graph.cost(copies)
    for key, value in resized.state_dict().items():
        lengths = [None if v is None else len(v) for v in restricted.tensors.get(key, ())]
        assert all(n in (None, size) for n, size in zip(lengths, value.shape, strict=False))


def test_restrictions_compose() -> None:
    graph = graph_of("residual")
    wide = at_widths(graph, {"stem": 12, "inner": 10})
    once = graph.restrict(wide)
    narrow = at_widths(once, {"stem": 3, "inner": 4})
    twice = once.restrict(narrow)
    assert np.array_equal(twice.origin, once.origin[narrow > 0])
    direct = np.bincount(twice.origin, minlength=graph.units)
    assert graph.cost(direct) == twice.cost()


@every_net
def test_keep_all_is_the_identity(name: str) -> None:
    graph = graph_of(name)
    ones = graph.keep_all()
    assert ones.shape == (graph.units,) and (ones == 1).all()
    same = graph.restrict(ones)
    assert np.array_equal(same.group_of, graph.group_of)
    for key, vectors in graph.tensors.items():
        for a, b in zip(vectors, same.tensors[key], strict=True):
            assert (a is None) == (b is None) and np.array_equal(a, b)
    assert graph.cost(ones) == graph.cost()
    assert np.array_equal(graph.widths_of(ones), graph.widths)


def test_impossible_configurations_are_refused_by_name() -> None:
    graph = graph_of("plain")
    for wrong in (np.ones(graph.units + 1, dtype=np.int64), -graph.keep_all()):
        with pytest.raises(ValueError, match="non-negative integers"):
            graph.check(wrong)
    frozen = graph.keep_all()
    frozen[group(graph, "fc").units[0]] = 0
    with pytest.raises(ValueError, match=r"'fc' is fixed \(network output at output\)"):
        graph.check(frozen)
    frozen[group(graph, "fc").units[0]] = 2
    with pytest.raises(ValueError, match="'fc' is fixed"):
        graph.restrict(frozen)
    with pytest.raises(ValueError, match="'conv1' would be empty"):
        graph.check(at_widths(graph, {"conv1": 0}))
    graph.check(at_widths(graph, {"conv1": 1}))


def test_the_policy_of_a_graph_makes_the_same_choices_again() -> None:
    model = sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 12, 3, groups=4), nn.Conv2d(12, 4, 1))
    widths = {}
    for policy in ("outer", "inner"):
        gm, graph = analysed(model, policy=policy)
        again = analyse(gm, X, policy=graph.policy)
        widths[policy] = {g.name: g.width for g in graph.groups if g.prunable}
        assert widths[policy] == {g.name: g.width for g in again.groups if g.prunable}
    assert widths == {"outer": {"0": 4}, "inner": {"0": 2, "1": 3}}


# --- costs ---


def by_hand(w1: int, w2: int) -> Cost:
    """Plain on 3 x 8 x 8: conv1 at 8 x 8, conv2 at 4 x 4, 10 classes."""
    macs = 9 * 3 * w1 * 64 + 9 * w1 * w2 * 16 + w2 * 10
    norm, relu = 2 * w1 * 64, w1 * 64 + w2 * 16
    params = (9 * 3 * w1 + w1) + 2 * w1 + 9 * w1 * w2 + (w2 * 10 + 10)
    activations = w1 * 64 + w2 * 16 + 10
    return Cost(macs, macs + norm + relu, params, activations)


@pytest.mark.parametrize("widths", [(8, 16), (1, 1), (3, 16), (8, 5), (20, 9), (13, 33)])
def test_the_cost_of_three_layers_counted_by_hand(widths: tuple[int, int]) -> None:
    gm, graph = analysed(Plain())
    copies = at_widths(graph, dict(zip(("conv1", "conv2"), widths, strict=True)))
    assert graph.cost(copies) == by_hand(*widths)
    verify.cost(graph, copies, resize(gm, graph, copies))


def test_convolution_costs_count_groups_and_strides() -> None:
    _, graph = analysed(
        sequential(
            nn.Conv2d(3, 8, 1),
            nn.Conv2d(8, 8, 3, groups=8, padding=1),
            nn.Conv2d(8, 12, 3, groups=2, stride=2, padding=1),
            nn.ConvTranspose2d(12, 6, 2, stride=2),
        )
    )
    macs = 3 * 8 * 64 + 9 * 8 * 64 + 9 * 4 * 12 * 16 + 4 * 12 * 6 * 16
    assert graph.cost().macs == macs
    assert graph.cost().params == (3 * 8 + 8) + (9 * 8 + 8) + (9 * 4 * 12 + 12) + (4 * 12 * 6 + 6)


def test_attention_costs_count_both_matrix_products_but_not_in_the_paper_s_flops() -> None:
    graph = graph_of("attention")
    linear = 4 * 3 * 12 * 16 + 16 * 12 * 36 + 16 * 12 * 12 + 12 * 5
    products = 2 * (2 * 16 * 16 * 6)  # heads x queries x keys x width, twice
    assert graph.cost().macs == linear + products
    assert graph.cost().flops_paper == linear
    halved = graph.cost(at_widths(graph, {"qkv": 3}))
    assert graph.cost().macs - halved.macs == products // 2 + 16 * 12 * 18 + 16 * 6 * 12


def test_a_relu_object_is_counted_at_its_last_call_and_a_tied_weight_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 1, bias=False), nn.Conv2d(8, 8, 1, bias=False)
            self.c, self.act = nn.Conv2d(8, 8, 1, stride=2, bias=False), nn.ReLU()
            self.b.weight = self.c.weight
            self.head = nn.Conv2d(8, 4, 1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.act(self.c(self.act(self.b(self.a(x).relu())))))
            return out

    _, graph = analysed(Tied())
    macs = 3 * 8 * 64 + 8 * 8 * 64 + 8 * 8 * 16 + 8 * 4 * 16
    assert graph.cost().macs == macs
    assert graph.cost().flops_paper == macs + 8 * 16  # tensor.relu() is no module
    assert graph.cost().params == 3 * 8 + 8 * 8 + 8 * 4
    assert {g.name: g.width for g in graph.groups if g.prunable} == {"a": 8}


def test_macs_are_half_of_what_people_call_flops() -> None:
    """Complaint 7 of the peers' users: FLOPs against MACs."""
    from torch.utils.flop_counter import FlopCounterMode

    model, graph = Plain(), graph_of("plain")
    with FlopCounterMode(display=False) as counter:
        model.eval()(X[:1])
    assert 2 * graph.cost().macs == counter.get_total_flops()


def test_cost_model_is_coefficient_times_lengths() -> None:
    a, b = np.array([0, 1, 0, 1]), np.array([2, 0, 1])  # group 0 = units 0 and 1, group 1 = unit 2
    terms = [Term("conv", 3, (a, b), "n"), Term("relu", 5, (b,), "n"), Term("params", 7, (), "n")]
    model = CostModel(terms, np.array([0, 0, 1]), np.array([2, 1]))
    assert model.per_term(np.array([2, 1])).tolist() == [3 * 4 * 3, 5 * 3, 7]
    assert model.per_term(np.array([6, 10])).tolist() == [3 * 12 * 16, 5 * 16, 7]
    assert model(np.array([6, 10])) == Cost(3 * 12 * 16, 3 * 12 * 16 + 5 * 16, 7, 0)


def test_costs_are_read_by_metric_name() -> None:
    figures = {"macs": 1, "flops_paper": 2, "params": 3, "activations": 4, "latency": 5}
    cost = Cost(**figures)
    assert {m: cost[m] for m in METRICS} == cost.as_dict() == figures
    assert "latency" not in Cost(1, 2, 3, 4).as_dict()
    with pytest.raises(KeyError, match="flops_paper"):
        cost["flops"]


# --- what the peers' users complain about ---


def test_a_one_channel_convolution_is_not_taken_for_depthwise() -> None:
    """Torch-Pruning #9 #328 #179: in = out = groups = 1."""
    _, graph = analysed(
        sequential(nn.Conv2d(1, 8, 3), nn.Conv2d(8, 1, 3), nn.Conv2d(1, 6, 3), nn.Conv2d(6, 2, 1)),
        torch.randn(2, 1, 9, 9),
    )
    assert {g.name: g.width for g in graph.groups if g.prunable} == {"0": 8, "2": 6}


def test_a_depthwise_convolution_follows_its_input() -> None:
    gm, graph = analysed(NETS["depthwise"]())
    small = resize(gm, graph, at_widths(graph, {"0": 5}))
    conv = small.get_submodule("1")
    assert (conv.in_channels, conv.out_channels, conv.groups) == (5, 5, 5)
    assert conv.weight.shape == (5, 1, 3, 3)


def test_a_feature_pyramid_is_grouped_correctly() -> None:
    """Torch-Pruning #147 #415 #360 #181: concatenation, upsampling, splitting and addition."""

    class Pyramid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c1, self.c2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, 2, 1)
            self.l1, self.l2 = nn.Conv2d(8, 6, 1), nn.Conv2d(12, 6, 1)
            self.mix = nn.Conv2d(6 + 8, 10, 1)
            self.p, self.q = nn.Conv2d(4, 2, 1), nn.Conv2d(6, 2, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            c1 = self.c1(x)
            c2 = self.c2(c1)
            top = F.interpolate(self.l2(c2), scale_factor=2.0)
            left, right = self.mix(torch.cat([self.l1(c1) + top, c1], 1)).split([4, 6], 1)
            return self.p(left), self.q(right)

    model = Pyramid()
    gm, graph = analysed(model)
    assert {g.name: g.width for g in graph.groups if g.prunable} == {
        "c1": 8,
        "c2": 12,
        "l2": 6,  # called first; l1 with it
        "mix": 4,
        "mix#2": 6,
    }
    copies = at_widths(graph, {"c1": 5, "c2": 7, "l2": 3, "mix": 2, "mix#2": 4})
    small = resize(gm, graph, copies)
    verify.masked_equivalence(gm, graph, copies, small, X)
    assert small.get_submodule("mix").weight.shape == (6, 8, 1, 1)


def test_parameters_outside_modules_have_channels() -> None:
    """Torch-Pruning #167: a scale held by the network itself."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)
            self.gamma = nn.Parameter(torch.linspace(1, 2, 8).view(8, 1, 1))
            self.positions = nn.Parameter(torch.randn(1, 8, 8, 8))

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.b(self.gamma * self.a(x) + self.positions)
            return out

    gm, graph = analysed(Scaled())
    copies = graph.keep_all()
    copies[group(graph, "a").units[[0, 7]]] = 0
    small = resize(gm, graph, copies)
    assert small.gamma.shape == (6, 1, 1) and small.positions.shape == (1, 6, 8, 8)
    assert torch.equal(small.gamma.detach(), gm.gamma.detach()[1:7])
    verify.masked_equivalence(gm, graph, copies, small, X)


def test_groups_are_numbered_by_their_first_unit() -> None:
    label = np.array([7, 3, 7, 0, 3, 9])
    assert _by_first_unit(label).tolist() == [0, 1, 0, 2, 1, 3]
    assert _by_first_unit(np.zeros(0, dtype=np.int64)).tolist() == []
