"""Both axes of a rectangle at once: heads and head_dim, whole groups and the width within them."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.fx import GraphModule

import lwdna
from lwdna.channels import ChannelSpace, Ids, Slot
from lwdna.choices import resolve
from lwdna.constraints import Constraints, Floors
from lwdna.copies import completed, entry_map, restricted
from lwdna.cost import Cost
from lwdna.errors import ConstraintError
from lwdna.explanation import explain_graph
from lwdna.fx_passes import verify
from lwdna.fx_passes.analyse import analyse
from lwdna.fx_passes.capture import capture
from lwdna.fx_passes.resize import resize
from lwdna.fx_passes.widen import widen_copies
from lwdna.graph import ChannelGraph
from lwdna.scoring import ScoringContext, as_batches, score

TOKENS = torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(0))
IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Attention(nn.Module):
    """Tokens of 5 -> 3 scores: ``heads`` query heads of 4 on ``kv`` heads of keys and values."""

    def __init__(self, attend: Callable[..., Tensor], heads: int = 6, kv: int = 6) -> None:
        super().__init__()
        self.attend, self.heads, self.kv = attend, heads, kv
        self.embed = nn.Linear(5, 12)
        self.q = nn.Linear(12, heads * 4)
        self.k = nn.Linear(12, kv * 4)
        self.v = nn.Linear(12, kv * 4)
        self.out = nn.Linear(heads * 4, 12)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        b, n, _ = x.shape
        q = self.q(x).view(b, n, self.heads, 4).transpose(1, 2)
        k = self.k(x).view(b, n, self.kv, 4).transpose(1, 2)
        v = self.v(x).view(b, n, self.kv, 4).transpose(1, 2)
        o = self.attend(q, k, v).transpose(1, 2).reshape(b, n, self.heads * 4)
        return self.head(x + self.out(o)).mean(1)


def by_hand(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scale: float = q.shape[-1] ** -0.5
    return ((q @ k.transpose(-2, -1)) * scale).softmax(-1) @ v


def expanded(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    b, kv, n, d = k.shape
    k, v = (t[:, :, None].expand(b, kv, 3, n, d).reshape(b, kv * 3, n, d) for t in (k, v))
    return by_hand(q, k, v)


def repeated(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return by_hand(q, *(t.repeat_interleave(3, dim=1) for t in (k, v)))


def grouped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)


def attention(attend: Callable[..., Tensor] = by_hand, kv: int = 6) -> Attention:
    torch.manual_seed(0)
    return Attention(attend, kv=kv)


def convolutions(*layers: nn.Module, last: int = 24) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 24, 1),
        *layers,
        nn.Conv2d(last, 5, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


def grouped_conv() -> nn.Module:
    return convolutions(
        nn.Conv2d(24, 12, 3, groups=4), nn.BatchNorm2d(12), nn.PReLU(12), nn.ReLU(), last=12
    )


def timm_model(name: str, size: int, **kwargs: Any) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5, **kwargs).eval()
    return model, torch.randn(2, 3, size, size)


NETWORKS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "separate q, k, v": lambda: (attention(), TOKENS),
    "fused attention": lambda: (attention(F.scaled_dot_product_attention), TOKENS),
    "grouped query, expanded": lambda: (attention(expanded, kv=2), TOKENS),
    "grouped query, repeated": lambda: (attention(repeated, kv=2), TOKENS),
    "grouped query, sdpa": lambda: (attention(grouped, kv=2), TOKENS),
    "grouped conv": lambda: (grouped_conv(), IMAGE),
    "transposed": lambda: (convolutions(nn.ConvTranspose2d(24, 24, 2, groups=4)), IMAGE),
    "group norm": lambda: (convolutions(nn.GroupNorm(4, 24)), IMAGE),
    "shuffled": lambda: (
        convolutions(
            nn.Conv2d(24, 24, 3, groups=4), nn.ChannelShuffle(4), nn.Conv2d(24, 24, 3, groups=4)
        ),
        IMAGE,
    ),
    "fused qkv": lambda: timm_model(
        "vit_tiny_patch16_224", 32, img_size=32, depth=2, embed_dim=48, num_heads=4
    ),
    "swin": lambda: timm_model(
        "swin_tiny_patch4_window7_224",
        56,
        img_size=56,
        embed_dim=24,
        depths=(2, 2),
        num_heads=(3, 6),
    ),
    "xcit": lambda: timm_model(
        "xcit_nano_12_p16_224", 32, img_size=32, depth=2, embed_dim=32, num_heads=4
    ),
    "resnext": lambda: timm_model("resnext26ts", 32),
}


def analysed(name: str, policy: Any = "both") -> tuple[GraphModule, ChannelGraph, Tensor]:
    model, x = NETWORKS[name]()
    verify.stir(model)
    gm = capture(model, x)
    return gm, analyse(gm, x, policy=policy), x


def named(graph: ChannelGraph, name: str) -> Any:
    (group,) = (g for g in graph.groups if g.name == name)
    return group


# --- whole networks ---


@pytest.mark.parametrize("name", NETWORKS)
def test_all_invariants_hold_with_both_axes_removed_and_widened(name: str) -> None:
    model, x = NETWORKS[name]()
    verify.verify(model, x, policy="both")
    gm, graph, x = analysed(name)
    products = [g for g in graph.groups if g.factors]
    assert products
    fewer = verify.random_copies(graph, 0.6, np.random.default_rng(1))
    for product in products:
        live = [g for g in product.factors if graph.groups[g].width > 2]
        for g in live:
            assert (fewer[graph.groups[g].units] == 0).any()
    small = resize(gm, graph, fewer)
    verify.masked_equivalence(gm, graph, fewer, small, x)
    verify.restriction(graph, fewer, small)
    verify.cost(graph, fewer, small)
    uneven = graph.completed(np.where(np.arange(graph.units) % 3, graph.keep_all(), 2))
    uneven = np.where(graph.changeable[graph.group_of], uneven, 1)
    wide = resize(gm, graph, uneven)
    verify.restriction(graph, uneven, wide)
    verify.cost(graph, uneven, wide)
    verify.round_trip(gm, graph, uneven, x)


@pytest.mark.parametrize("policy", ["auto", "inner", "outer"])
@pytest.mark.parametrize("attend", [expanded, repeated, grouped])
def test_grouped_queries_under_one_axis(attend: Callable[..., Tensor], policy: str) -> None:
    verify.verify(attention(attend, kv=2), TOKENS, policy=policy)


def test_query_key_products_keep_their_scale() -> None:
    """Removed entries take products out of q·k; they do not rescale those that stay."""
    for attend in (by_hand, F.scaled_dot_product_attention):
        gm = capture(attention(attend), TOKENS)
        graph = analyse(gm, TOKENS, policy="both")
        copies = graph.keep_all()
        copies[named(graph, "q:inner").units[[1, 2, 3]]] = 0
        copies[named(graph, "q:outer").units[[0, 4]]] = 0
        small = resize(gm, graph, graph.completed(copies))
        assert small.get_parameter("q.weight").shape == (4, 12)
        model: Any = attention(attend)
        model.load_state_dict(gm.state_dict())
        with torch.no_grad():
            for layer in (model.q, model.k):  # entries 1, 2, 3 of every head
                layer.weight.view(6, 4, 12)[:, 1:] = 0
                layer.bias.view(6, 4)[:, 1:] = 0
            model.out.weight.view(12, 6, 4)[:, [0, 4]] = 0
            x = TOKENS.double()
            torch.testing.assert_close(small.double()(x), model.double()(x))


def test_what_the_groups_are() -> None:
    _, graph, _ = analysed("grouped query, expanded")
    widths = {g.name: g.width for g in graph.groups if g.prunable}
    assert widths == {
        "embed": 12,
        "q:outer": 2,  # heads of keys and values
        "q:middle": 3,  # query heads for each
        "q:inner": 4,  # entries that q and k share
        "v:inner": 4,
    }
    q = named(graph, "q")
    assert [graph.groups[g].name for g in q.factors] == ["q:outer", "q:middle", "q:inner"]
    assert not q.prunable and q.width == 24
    assert "product of those of 'q:outer' and 'q:middle' and 'q:inner'" in q.reasons[0][0]
    text = str(explain_graph(graph))
    assert "q:inner" in text and "axes both of (6, 4)" in text


# --- the arithmetic, against brute force ---


@given(st.data())
@settings(deadline=None, max_examples=150)
def test_entries_of_a_product_are_the_outer_product_of_its_axes(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(2, 4), min_size=2, max_size=4))
    ranks = st.sets(st.integers(0, len(sizes) - 1), min_size=2)
    live = sorted(data.draw(ranks))  # the others are fixed, and no factors
    bounds = np.cumsum([0, *(sizes[k] for k in live)])
    axes = {k: np.arange(a, b) for k, a, b in zip(live, bounds, bounds[1:], strict=False)}
    own = int(bounds[-1])
    position = np.indices(sizes).reshape(len(sizes), -1)
    tuples, vector = np.unique(
        np.stack([axes[k][position[k]] for k in live], axis=1), axis=0, return_inverse=True
    )
    vector = vector.reshape(-1) + own
    factors = np.concatenate([np.full((own, len(live)), -1), tuples])
    drawn = data.draw(st.lists(st.integers(0, 3), min_size=own, max_size=own))
    copies = completed(np.array(drawn + [9] * len(tuples)), factors)
    assert copies[own:].tolist() == [prod(drawn[u] for u in row) for row in tuples]

    fixed = {k: (np.arange(n), np.zeros(n, int)) for k, n in enumerate(sizes) if k not in live}
    maps = fixed | {k: entry_map(axis, copies) for k, axis in axes.items()}
    old = np.meshgrid(*(maps[k][0] for k in range(len(sizes))), indexing="ij")
    number = np.meshgrid(*(maps[k][1] for k in range(len(sizes))), indexing="ij")
    entries, copy = entry_map(vector, copies, factors)
    assert entries.tolist() == np.ravel_multi_index([o.reshape(-1) for o in old], sizes).tolist()
    first = np.cumsum(copies) - copies
    new = restricted(factors, copies)[first[vector[entries]] + copy]
    for column, k in enumerate(live):
        wanted = first[axes[k][old[k].reshape(-1)]] + number[k].reshape(-1)
        assert new[:, column].tolist() == wanted.tolist()


@pytest.mark.parametrize("name", ["grouped query, expanded", "grouped conv", "fused qkv"])
def test_cost_of_any_widths_is_what_counting_entries_gives(name: str) -> None:
    _, graph, _ = analysed(name)
    rng = np.random.default_rng(0)
    for _ in range(5):
        copies = graph.keep_all()
        for group in graph.groups:
            if group.prunable:
                copies[group.units] = rng.integers(0, 3, group.width)
                copies[group.units[0]] = 1
        copies = graph.completed(copies)
        counted = dict.fromkeys(("macs", "params", "activations"), 0)
        kinds = {"params": "params", "activations": "activations"}
        for term in graph.terms:
            value = term.coefficient * prod(int(copies[v].sum()) for v in term.vectors)
            metric = kinds.get(
                term.kind, "macs" if term.kind in ("conv", "linear", "matmul") else ""
            )
            if metric:
                counted[metric] += value
        predicted = graph.cost(copies)
        assert {m: predicted[m] for m in counted} == counted
        assert graph.restrict(copies).cost() == predicted
        stale = graph.widths_of(copies)
        stale[[g.index for g in graph.groups if g.factors]] = 7  # follows from the factors
        assert graph.cost_model(stale) == predicted


def test_copies_that_are_no_products_are_refused() -> None:
    gm, graph, _ = analysed("separate q, k, v")
    copies = graph.keep_all()
    copies[named(graph, "q:inner").units[0]] = 0
    with pytest.raises(
        ValueError, match=r"'q' are no products of those of 'q:outer' and 'q:inner'"
    ):
        resize(gm, graph, copies)
    graph.check(graph.completed(copies))


# --- choice points ---


def rectangle(*sizes: int) -> tuple[ChannelSpace, Ids, tuple[Ids, ...]]:
    space = ChannelSpace()
    whole = space.fresh(prod(sizes), Slot("w", 0))
    return space, whole, tuple(a for a in space.split(whole, sizes, "view") if a is not None)


def test_three_axes_that_can_change_are_all_factors() -> None:
    space, whole, axes = rectangle(2, 3, 4)
    resolve(space, "both")
    assert space.choices[0].chosen == "both"
    assert space.products.factors.shape == (24, 3)
    order = np.argsort(space.products.units)
    assert np.array_equal(space.products.units[order], space.find(whole))
    assert space.products.factors[-1].tolist() == [space.find(a)[-1] for a in axes]


def test_an_axis_that_is_fixed_is_no_factor() -> None:
    space, whole, axes = rectangle(3, 4, 5)
    space.freeze(axes[0], "q, k and v", "unbind")
    resolve(space, "both")
    assert space.products.factors.shape == (20, 2)
    assert len(np.unique(space.find(whole))) == 20  # the same products in each of the three
    space, whole, axes = rectangle(4, 5)
    space.freeze(axes[0][:1], "one head", "n")  # its entries are those of the other axis alone
    resolve(space, "both")
    assert np.array_equal(space.find(whole[:5]), space.find(axes[1]))
    assert len(space.products.units) == 15


def test_a_frozen_entry_freezes_its_row_and_column() -> None:
    space, whole, axes = rectangle(3, 4)
    space.freeze(whole[:1], "because", "n")
    resolve(space, "both")
    assert space.frozen(axes[0]).tolist() == [True, False, False]
    assert space.frozen(axes[1]).tolist() == [True, False, False, False]
    assert space.frozen(whole.reshape(3, 4)).tolist() == [
        [True, False, False, False],
        [False] * 4,
        [False] * 4,
    ]


def test_a_product_of_itself_has_no_other_factor() -> None:
    space, whole, (outer, inner) = rectangle(3, 4)
    space.unite(whole.reshape(3, 4)[:, 0].copy(), outer, "n", "add")
    resolve(space, "both")
    assert space.frozen(inner[:1]).all() and not space.frozen(inner[1:]).any()
    space, whole, (outer, inner) = rectangle(3, 4)
    deeper = space.split(outer.copy(), (3,), "n")[0]
    assert deeper is not None
    other = space.merge((3, 4), (whole.reshape(3, 4)[:, 1].copy(), inner), "flat")
    assert other is not None
    space.unite(other.reshape(3, 4)[:, 2].copy(), outer, "n", "add")  # through two rectangles
    resolve(space, "both")
    assert space.frozen(inner[1:3]).all() and not space.frozen(inner[[0, 3]]).any()


def test_equal_shapes_share_their_axes_and_other_shapes_give_way() -> None:
    space, whole, (outer, inner) = rectangle(4, 6)
    other = space.fresh(24, Slot("v", 0))
    rows, columns = space.split(other, (4, 6), "view_1")
    space.unite(whole, other, "n", "add")
    resolve(space, "both")
    assert np.array_equal(space.find(outer), space.find(rows))
    assert np.array_equal(space.find(inner), space.find(columns))

    space, whole, (outer, inner) = rectangle(4, 6)
    rows, columns = space.split(whole, (3, 8), "view_1")
    resolve(space, {"view*": "both"})
    assert [(c.chosen, c.decided) for c in space.choices] == [(1, "both"), (1, "both:1")]
    assert space.frozen(rows).all()
    assert [f.reason for f in space.freezes][:2] == [
        "choice point: axis 1 of (3, 8), as view has products of (4, 6)",
        "its copies would stand between the slices along axis 1 of (3, 8)",
    ]
    # Entries that are eight apart are one unit: that leaves one row, and even and odd columns.
    assert len(np.unique(space.find(outer))) == 1 and space.frozen(outer).all()
    assert space.find(inner).tolist() == space.find(inner[[0, 1] * 3]).tolist()


def test_a_choice_that_came_to_nothing_is_made_again() -> None:
    """The analysis of a resized network repeats the choices, or fixed units differ."""
    space, whole, _ = rectangle(3, 3)
    space.freeze(whole.reshape(3, 3).diagonal().copy(), "because", "n")
    resolve(space, "both")
    assert space.frozen(whole).all()
    assert (space.choices[0].chosen, space.choices[0].decided) == (None, "both")


def test_the_policy_may_name_the_places() -> None:
    _, graph, x = analysed("fused qkv")
    first, *_ = graph.policy  # where the first block's qkv is taken apart
    gm, graph, x = analysed("fused qkv", {first: "both"})  # its output follows
    factors = {g.name for g in graph.groups if ":" in g.name}
    assert factors == {"blocks.0.attn.qkv:outer", "blocks.0.attn.qkv:inner"}
    copies = verify.random_copies(graph, 0.5, np.random.default_rng(0))
    verify.masked_equivalence(gm, graph, copies, resize(gm, graph, copies), x)
    with pytest.raises(ValueError, match="'both' or an axis"):
        resolve(ChannelSpace(), "all")


def test_a_part_of_a_product_that_is_no_rectangle_freezes_an_axis() -> None:
    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.g = nn.Conv2d(3, 24, 1), nn.Conv2d(24, 24, 1, groups=4)
            self.b, self.c = nn.Conv2d(9, 5, 1), nn.Conv2d(15, 5, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.g(self.a(x))
            return (self.b(y[:, :9]) + self.c(y[:, 9:])).mean((2, 3))  # one group and a half

    torch.manual_seed(0)
    verify.verify(Cut(), IMAGE, policy="both")


# --- scores, constraints, budgets ---


@pytest.mark.parametrize("criterion", ["magnitude", "fpgm", "snip", "taylor", "synflow", "fisher"])
def test_a_factor_scores_what_it_would_score_alone(criterion: str) -> None:
    model = attention()
    batches = [(TOKENS, torch.tensor([0, 2]))]
    found = {}
    for policy in ("both", "outer", "inner"):
        gm = capture(model, TOKENS)
        graph = analyse(gm, TOKENS, policy=policy)
        context = ScoringContext(gm, graph, as_batches(batches, 1, network=gm))
        scores = score(context, criterion)
        found[policy] = {g.name: scores[g.units] for g in graph.groups}
    for position in ("outer", "inner"):
        np.testing.assert_allclose(found["both"][f"q:{position}"], found[position]["q"], rtol=1e-9)
    assert found["both"]["q:outer"].any()


def shrunk(**kwargs: Any) -> tuple[GraphModule, Any]:
    model, x = NETWORKS["fused qkv"]()
    net = lwdna.shrink(
        model, policy="both", example_inputs=x, criterion="magnitude", progress=False, **kwargs
    )
    return net, net.meta["lwdna"]


def test_shrink_meets_its_budget_and_can_be_rebuilt_from_json() -> None:
    model, x = NETWORKS["fused qkv"]()
    floors = Constraints(floors=Floors(0.1, 1, 0.1))
    for widen in (1.0, 1.5, {"*:inner": 2.0}):
        net, dna = shrunk(budget=0.6, widen=widen, constraints=floors)
        macs, params = verify.measured_cost(net, x)
        assert Cost(macs, dna.after.flops_paper, params, dna.after.activations) == dna.after
        assert macs <= dna.limits["macs"] and (dna.used["macs"] > 0.99 or dna.note)
        gm = capture(model, x)
        graph = analyse(gm, x, policy="both")
        wide = graph.restrict(widen_copies(graph, widen))
        again = type(dna).from_json(dna.to_json())
        assert wide.cost(again.copies(wide)) == dna.after
        assert net(x).shape == (2, 5)


def test_the_attainable_range_is_attained() -> None:
    model, x = NETWORKS["fused qkv"]()
    floors = Constraints(floors=Floors(0.0, 1, 0.0))
    ranges = lwdna.attainable(model, widen=1.5, policy="both", example_inputs=x, constraints=floors)
    graph = analyse(capture(model, x), x, policy="both")
    wide = graph.restrict(widen_copies(graph, 1.5))
    least = wide.keep_all()
    for group in wide.groups:
        if group.prunable:
            least[group.units[1:]] = 0
    assert ranges["macs"] == (wide.cost(wide.completed(least)).macs, wide.cost().macs)


def test_constraints_hold_for_each_axis() -> None:
    constraints = Constraints(
        floors=Floors(0.1, 1, 0.1, {"*:outer": 2}),
        divisor={"*:inner": 4},
        tie=[["*:outer"]],
        max_growth={"*:inner": 1.0},
        freeze=["blocks.1.attn.qkv:inner"],
    )
    net, dna = shrunk(budget=0.6, widen=2.0, constraints=constraints)
    width = {g.name: g.width for g in dna.groups}
    heads = {width[f"blocks.{k}.attn.qkv:outer"] for k in (0, 1)}
    assert len(heads) == 1 and heads.pop() >= 2
    inner = width["blocks.0.attn.qkv:inner"]
    assert inner % 4 == 0 and inner <= 12
    assert width["blocks.1.attn.qkv:inner"] == 12
    for k in (0, 1):
        qkv = width[f"blocks.{k}.attn.qkv"]
        assert qkv == width[f"blocks.{k}.attn.qkv:outer"] * width[f"blocks.{k}.attn.qkv:inner"]
        assert net.get_parameter(f"blocks.{k}.attn.qkv.weight").shape[0] == 3 * qkv


def test_a_constraint_on_a_product_names_its_factors() -> None:
    with pytest.raises(ConstraintError, match=r"product of those of 'blocks.0.attn.qkv:outer' and"):
        shrunk(budget=0.6, constraints=Constraints(divisor={"blocks.0.attn.qkv": 8}))
