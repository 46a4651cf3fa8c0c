"""What a first user broke, and what a graph cannot carry over."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lwdna
from lwdna.fx_passes import verify

X = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))


class Between(nn.Module):
    """conv a -> f -> conv b -> mean -> fc."""

    def __init__(self, f: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 12, 3)
        self.fc = nn.Linear(12, 10)
        self.f = f

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.b(self.f(self.a(x))).mean((2, 3)))
        return out


def in_place(x: Tensor) -> Tensor:
    y = x
    x **= 2
    x /= 3
    x %= 2
    return y + x


def without_gradients(x: Tensor) -> Tensor:
    with torch.no_grad():
        scale = x.amax((2, 3), keepdim=True)
    return x / (scale + 1)


@torch.jit.script
def scripted(x: Tensor) -> Tensor:
    return x * x.sigmoid()


@pytest.mark.parametrize(
    "f",
    [
        lambda x: torch.max(x, x.sin()) + torch.min(x, x.cos()),
        lambda x: x / x[0].numel() ** 0.5,
        in_place,
        without_gradients,
        lambda x: scripted(x),
    ],
    ids=["max of two tensors", "numel", "in-place operators", "no_grad", "script"],
)
def test_every_invariant_holds(f: Any) -> None:
    torch.manual_seed(0)
    lwdna.verify(Between(f), X)


def test_verify_works_on_networks_with_dropout_and_leaves_the_random_state() -> None:
    model = Between(nn.Dropout(0.5))
    state = torch.get_rng_state()
    lwdna.verify(model, X)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("f", "message"),
    [
        (lambda x: torch.vmap(lambda t: t * 2)(x), "cannot be traced"),
        (lambda x: x if bool(x.max() > 0) else -x, "decides the control flow"),
    ],
    ids=["vmap", "values"],
)
def test_what_a_graph_cannot_express_is_refused_with_its_line(f: Any, message: str) -> None:
    with pytest.raises(lwdna.CaptureError, match=message) as caught:
        lwdna.capture(Between(f), X)
    assert "test_regressions.py" in str(caught.value)


def test_a_module_that_cannot_be_copied_is_refused() -> None:
    with pytest.raises(lwdna.UnsupportedModelError, match="cannot be copied"):
        lwdna.capture(Between(scripted), X)


def test_a_batch_size_in_the_model_is_an_analysis_error() -> None:
    gm = lwdna.capture(Between(lambda x: x.reshape(2, 16, 10, 10)), X)
    with pytest.raises(lwdna.AnalysisError, match="batch of one sample"):
        lwdna.analyse(gm, X)


def test_hooks_of_the_model_itself_are_refused() -> None:
    model = Between(F.relu)
    model.register_forward_hook(lambda m, args, out: out * 3)
    with pytest.raises(lwdna.UnsupportedModelError, match="hooks"):
        lwdna.shrink(model, 0.7, example_inputs=X)


def test_an_overridden_train_is_said_to_be_lost() -> None:
    class Frozen(Between):
        def train(self, mode: bool = True) -> Frozen:
            return super().train(mode)

    with pytest.warns(UserWarning, match=r"overrides train\(\)"):
        lwdna.capture(Frozen(F.relu), X)


def test_long_objects_have_short_reprs(capsys: pytest.CaptureFixture[str]) -> None:
    model = Between(F.relu)
    explanation = lwdna.explain(model, X)
    dna = lwdna.shrink(model, 0.8, criterion="random", example_inputs=X).meta["lwdna"]
    assert len(repr(explanation)) < 100
    assert len(repr(dna)) < 300
    assert "vanishes with the group" in capsys.readouterr().out


@pytest.mark.parametrize(
    "check",
    [
        lambda x: torch._check(x.shape[1] == 16, lambda: "channels"),
        lambda x: torch._check_value(x.dim() == 4 and x.shape[2] == 10),
    ],
    ids=["channels", "resolution"],
)
def test_what_the_model_checks_of_sizes_is_no_obstacle(check: Callable[[Tensor], None]) -> None:
    def checked(x: Tensor) -> Tensor:
        check(x)
        return x

    lwdna.verify(Between(checked), X)


def test_a_padding_mask_made_in_forward() -> None:
    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.fc = nn.Linear(5, 12), nn.Linear(12, 3)
            self.mha = nn.MultiheadAttention(12, 4, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            padded = torch.arange(x.shape[1])[None].expand(x.shape[0], -1) > 4
            h = self.a(x)
            out: Tensor = self.fc(self.mha(h, h, h, key_padding_mask=padded)[0])
            return out

    lwdna.verify(Padded(), torch.randn(2, 7, 5))


class Pair(nn.Module):
    """Two heads on one layer; ``join`` says how they are returned."""

    def __init__(self, join: Callable[[Tensor, Tensor], Any] = lambda a, b: (a, b)) -> None:
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 4, 1), nn.Conv2d(16, 5, 1)
        self.join = join

    def forward(self, x: Tensor) -> Any:
        h = self.stem(x)
        return self.join(self.a(h), self.b(h))


@dataclass
class Maps:
    a: Tensor
    b: Tensor


@dataclass
class Known:
    a: Tensor
    b: Tensor


class Holder:
    def __init__(self, a: Tensor, b: Tensor) -> None:
        self.a, self.b = a, b


torch.export.register_dataclass(Known)


@pytest.mark.parametrize(
    ("join", "message"),
    [(Maps, r"type Maps, .*register_dataclass\(Maps\)"), (Holder, "type Holder, .* use one of")],
)
def test_objects_that_hide_tensors_are_refused(join: Any, message: str) -> None:
    """The outputs in them would not be known as outputs, and lose channels."""
    with pytest.raises(lwdna.CaptureError, match=f"Pair hands on an object of {message}"):
        lwdna.capture(Pair(join), X)
    given = (join(X, X),)
    with pytest.raises(lwdna.CaptureError, match=f"example inputs hold an object of {message}"):
        lwdna.capture(Pair(), given)


def test_registered_dataclasses_are_like_dicts() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 4, 1)

        def forward(self, x: Known) -> Known:
            h = self.a(x.a) + self.a(x.b)
            return Known(self.b(h), h)

    lwdna.verify(Pair(Known), X)
    inputs = (Known(X, X.sin()),)
    lwdna.verify(Sum(), inputs)
    graph = lwdna.analyse(lwdna.capture(Sum(), inputs), inputs, outputs={"b": "free"})
    assert [(g.name, g.width) for g in graph.groups if g.prunable] == [("a", 16)]


def test_a_list_of_maps_is_one_argument() -> None:
    class Levels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 4, 1)

        def forward(self, maps: list[Tensor]) -> list[Tensor]:
            return [self.b(self.a(x)) for x in maps]

    lwdna.verify(Levels(), ([X, X[..., ::2, ::2]],))


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("stacked", [True, False])
def test_a_list_of_images_is_a_batch_of_any_number(stacked: bool, channels: int) -> None:
    """Dimension 0 of an image is no batch; the layers are captured, the list is not."""

    class Images(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(channels, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 3))

        def forward(self, images: list[Tensor]) -> list[Tensor]:
            if stacked:
                return list(self.body(torch.stack(images)))
            return [self.body(x[None])[0] for x in images]

    images = [torch.randn(channels, 12, 12) for _ in range(3)]
    model = Images()
    lwdna.verify(model, (images,))
    small = lwdna.shrink(model, 0.9, criterion="random", example_inputs=(images,))
    assert [len(small(images[:n])) for n in (1, 2)] == [1, 2]
    with pytest.raises(lwdna.CaptureError, match="give real example inputs"):
        lwdna.capture(model, ([x.to("meta") for x in images],))


class Coordinates(nn.Module):
    """A bias from a table of coordinates (Swin V2), or from fixed random features of it."""

    def __init__(self, features: int = 0) -> None:
        super().__init__()
        self.stem, self.fc = nn.Linear(5, 16), nn.Linear(16, 3)
        self.register_buffer("table", torch.randn(7, 2))
        self.register_buffer("waves", torch.randn(2, features) if features else None)
        self.mlp = nn.Sequential(nn.Linear(features or 2, 12), nn.ReLU(), nn.Linear(12, 16))

    def forward(self, x: Tensor) -> Tensor:
        given = self.table if self.waves is None else (self.table @ self.waves).sin()
        out: Tensor = self.fc((self.stem(x) + self.mlp(given)).relu().mean(1))
        return out


@pytest.mark.parametrize(
    ("features", "expected"),
    [(0, {"stem", "mlp.0"}), (6, {"stem", "mlp.0", "waves[1]"})],
    ids=["coordinates", "random features"],
)
def test_a_table_of_constants_is_data_and_fixed_weights_have_channels(
    features: int, expected: set[str]
) -> None:
    model, x = Coordinates(features), torch.randn(2, 7, 5)
    lwdna.verify(model, x)
    graph = lwdna.analyse(lwdna.capture(model, x), x)
    assert {g.name for g in graph.groups if g.prunable} == expected
    table = next(g for g in graph.groups if "table[1]" in {str(slot) for slot, _ in g.slots})
    assert any("entries of the constant" in reason for reason, _ in table.reasons)


def test_a_choice_that_leaves_one_unit_is_none() -> None:
    """Six groups after four: whole groups of both are linked, positions within them are not."""
    model = nn.Sequential(
        nn.Conv2d(3, 24, 3),
        nn.Conv2d(24, 24, 3, groups=4),
        nn.Conv2d(24, 24, 3, groups=6),
        nn.Conv2d(24, 12, 1),
        nn.Conv2d(12, 4, 1),
    )
    graph = lwdna.analyse(lwdna.capture(model, X), X)
    widths = {g.name: g.width for g in graph.groups if g.prunable}
    assert widths == {"0": 6, "1": 2, "2": 4, "3": 12}
    lwdna.verify(model, X)


@pytest.mark.parametrize("policy", ["auto", "inner", "outer", "both"])
def test_einsum_over_two_axes_agrees_with_the_einsum_that_made_them(policy: str) -> None:
    """It flattens them in another order: what is the inner axis of one is the outer of the other.

    Chosen apart, the two wanted different numbers of heads.
    """

    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.into = nn.Parameter(torch.randn(5, 4, 6))
            self.out = nn.Parameter(torch.randn(4, 6, 10))
            self.fc = nn.Linear(10, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.einsum("bnc,chd->bnhd", x, self.into).relu()
            out: Tensor = self.fc(torch.einsum("bnhd,hde->bne", h, self.out).mean(1))
            return out

    lwdna.verify(Heads(), torch.randn(2, 7, 5), policy=policy)


class Mixture(nn.Module):
    """``kernel`` gives each sample its own 12 filters of 8 channels, mixed from four (CondConv)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.route = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)
        self.weight = nn.Parameter(torch.randn(4, 12, 8, 3, 3) * 0.1)
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        b, c, h, w = y.shape
        mixed = torch.einsum("bk,k...->b...", self.route(y.mean((2, 3))).sigmoid(), self.weight)
        o = F.conv2d(y.reshape(1, b * c, h, w), mixed.flatten(0, 1), padding=1, groups=b)
        out: Tensor = self.fc(o.reshape(b, -1, h, w).mean((2, 3)))
        return out


class Experts(nn.Module):
    """Every token through four experts of 10 hidden channels each, gated."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.gate, self.fc = nn.Linear(5, 8), nn.Linear(8, 4), nn.Linear(8, 3)
        self.up, self.down = (
            nn.Parameter(torch.randn(4, 8, 10)),
            nn.Parameter(torch.randn(4, 10, 8)),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        h = torch.einsum("bnc,ech->bneh", x, self.up).relu()
        y = torch.einsum("bneh,ehc,bne->bnc", h, self.down, self.gate(x).softmax(-1))
        out: Tensor = self.fc(x + y).mean(1)
        return out


@pytest.mark.parametrize(
    ("model", "x", "expected"),
    [
        (Mixture, X, {"stem": 8, "route": 4, "weight[1]": 12}),
        (Experts, torch.randn(2, 7, 5), {"stem": 8, "gate": 4, "up[2]": 10}),
    ],
)
def test_products_of_tensors_that_flatten_in_passing_leave_no_choice(
    model: type[nn.Module], x: Tensor, expected: dict[str, int]
) -> None:
    graph = lwdna.analyse(lwdna.capture(model(), x), x)
    assert {g.name: g.width for g in graph.groups if g.prunable} == expected
    lwdna.verify(model(), x)


class Bias(nn.Module):
    """A mask of 4 x 4 positions, read from a table of 7 offsets by a one-hot constant."""

    def __init__(self, constant: bool) -> None:
        super().__init__()
        look_up = torch.stack([torch.eye(7)[i : i + 4] for i in range(4)])
        self.table = nn.Parameter(torch.randn(8, 7))
        if constant:
            self.register_buffer("look_up", look_up)
        else:
            self.look_up = nn.Parameter(look_up)
        self.stem, self.fc = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x).transpose(1, 2)
        bias = torch.einsum("cv,ijv->cij", self.table, self.look_up)
        y = torch.einsum("bci,cij->bjc", y, bias)
        out: Tensor = self.fc(y).mean(1)
        return out


@pytest.mark.parametrize(
    ("constant", "expected"),
    [(True, {"stem": 8}), (False, {"stem": 8, "table[1]": 7, "look_up[1]": 4})],
)
def test_a_table_that_a_constant_addresses_keeps_its_entries(
    constant: bool, expected: dict[str, int]
) -> None:
    x = torch.randn(2, 4, 5)
    graph = lwdna.analyse(lwdna.capture(Bias(constant), x), x)
    assert {g.name: g.width for g in graph.groups if g.prunable} == expected
    lwdna.verify(Bias(constant), x)


class Deep(nn.Module):
    """As many residual blocks as no recursion limit allows to be nested."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 1), nn.Linear(8, 5)
        self.blocks = nn.ModuleList(nn.Conv2d(8, 8, 1) for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x).relu()
        out: Tensor = self.head(x.mean((2, 3)))
        return out


def test_a_deep_network_neither_hangs_nor_recurses() -> None:
    with torch.device("meta"):
        model = Deep(400)
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(350)
    start = time.perf_counter()
    try:
        gm = lwdna.capture(model, X)
        graph = lwdna.analyse(gm, X)
        copies = verify.random_copies(graph, 0.5, np.random.default_rng(0))
        small = lwdna.resize(gm, graph, copies)
    finally:
        sys.setrecursionlimit(limit)
    assert time.perf_counter() - start < 60
    assert len(gm.graph.nodes) > 1200
    assert {g.name: g.width for g in graph.groups if g.prunable} == {"stem": 8}
    assert {block.out_channels for block in small.blocks.children()} == {4}
    verify.cost(graph, copies, small)
