"""The support contract: docs/support.md, and code that the analysis has never seen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lwdna
from lwdna.fx_passes import literals, modules, verify
from lwdna.fx_passes.rules import registry
from lwdna.graph import ChannelGraph
from tests.documents import run_page

PAGE = Path(__file__).parents[1] / "docs" / "support.md"
X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def declarations() -> Iterator[None]:
    """What a test declares, the next one does not know."""
    registries: tuple[dict[Any, Any], ...] = (
        registry._RULES,
        literals._REPAIRS,
        modules._RESIZERS,
        modules._COUPLERS,
    )
    before = [dict(r) for r in registries]
    yield
    for known, old in zip(registries, before, strict=True):
        known.clear()
        known.update(old)


class Between(nn.Module):
    """conv a -> ``f(self, x)`` -> conv b; ``gain`` has one entry per channel of a."""

    def __init__(self, f: Callable[[Any, Tensor], Tensor], **layers: Any) -> None:
        super().__init__()
        self.f = f
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1)
        self.gain = nn.Parameter(torch.rand(8) + 0.5)
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(self.f(self, self.a(x)))
        return out


def analysed(model: nn.Module) -> ChannelGraph:
    return lwdna.analyse(lwdna.capture(model, X), X)


def prunable(model: nn.Module) -> set[str]:
    return {g.name for g in analysed(model).groups if g.prunable}


def reasons(model: nn.Module) -> str:
    return str([g.reasons for g in analysed(model).groups])


# --- custom autograd functions ---


class Sign(torch.autograd.Function):
    """Straight-through: the gradient is not that of ``forward``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.sign()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return 3 * grad


class Scale(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, channels: int | None) -> Tensor:
        ctx.save_for_backward(x, gain)
        return (x.reshape(len(x), channels or x.shape[1], -1) * gain[:, None]).reshape(x.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        x, gain = ctx.saved_tensors
        return grad * gain[:, None, None], (grad * x).sum((0, 2, 3)), None


@pytest.mark.parametrize(
    "f",
    [lambda self, h: Sign.apply(h), lambda self, h: Scale.apply(h, self.gain, None)],
    ids=["straight-through", "with a parameter"],
)
def test_an_autograd_function_keeps_its_own_gradient(f: Any) -> None:
    model = Between(f)
    gm = lwdna.capture(model, X)
    gradients = []
    for network in (model, gm):
        network(X).square().sum().backward()
        gradients.append({n: p.grad for n, p in network.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() >= {"a.weight", "b.weight"}
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name
    assert gradients[0]["a.weight"].abs().max() > 0
    assert prunable(model) == {"a"}  # by the operators in its forward
    lwdna.verify(model, X)


def test_autograd_functions_are_as_before_after_capture() -> None:
    before = vars(torch.autograd.Function)["apply"]
    lwdna.capture(Between(lambda self, h: Sign.apply(h)), X)
    assert vars(torch.autograd.Function)["apply"] is before


def test_sizes_given_to_an_autograd_function_follow_and_literals_are_refused() -> None:
    lwdna.verify(Between(lambda self, h: Scale.apply(h, self.gain, h.shape[1])), X)
    with pytest.raises(lwdna.ResizeError, match=r"Scale.*A literal of this node"):
        lwdna.verify(Between(lambda self, h: Scale.apply(h, self.gain, 8)), X)


# --- custom operators ---


@torch.library.custom_op("tests::gained", mutates_args=())
def gained(x: Tensor, gain: Tensor) -> Tensor:
    return x * gain[:, None, None]


@gained.register_fake
def _(x: Tensor, gain: Tensor) -> Tensor:
    return torch.empty_like(x)


def _setup(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> Any:
    x, gain = ctx.saved_tensors
    return grad * gain[:, None, None], (grad * x).sum((0, 2, 3))


gained.register_autograd(_backward, setup_context=_setup)
OPERATOR = torch.ops.tests.gained
CALLS = [lambda self, h: gained(h, self.gain), lambda self, h: OPERATOR(h, self.gain)]


def gained_rule(op: lwdna.rules.OpCall, x: Tensor, gain: Tensor) -> None:
    op.couple(op.vec(x)[1], op.vec(gain)[0])
    op.give(op.vec(x))


@pytest.mark.parametrize("f", CALLS, ids=["function", "torch.ops"])
def test_an_operator_without_a_rule_is_frozen_and_says_so(f: Any) -> None:
    model = Between(f)
    assert prunable(model) == set()
    assert "operator tests.gained.default has no channel rule" in reasons(model)
    assert "tests.gained.default" in str(lwdna.explain(model, X))
    lwdna.verify(model, X)


@pytest.mark.parametrize("f", CALLS, ids=["function", "torch.ops"])
def test_an_operator_with_a_rule_is_like_any_other(f: Any) -> None:
    lwdna.rules.rule(OPERATOR)(gained_rule)
    model = Between(f)
    (group,) = [g for g in analysed(model).groups if g.prunable]
    assert {str(slot) for slot, _ in group.slots} >= {"a.weight[0]", "gain[0]", "b.weight[1]"}
    lwdna.verify(model, X)


def test_a_rule_may_come_before_its_operator() -> None:
    lwdna.rules.rule("tests::later")(lambda op, x: op.give(op.vec(x)))
    with torch.library._scoped_library("tests", "FRAGMENT") as library:
        library.define("later(Tensor x) -> Tensor")
        library.impl("later", torch.relu, "CompositeExplicitAutograd")
        model = Between(lambda self, h: torch.ops.tests.later(h))
        assert prunable(model) == {"a"}


def test_a_rule_that_forgets_a_coupling_fails_verification() -> None:
    @lwdna.rules.rule(OPERATOR)
    def forgetful(op: lwdna.rules.OpCall, x: Tensor, gain: Tensor) -> None:
        op.give(op.vec(x))

    with pytest.raises((lwdna.LwdnaError, RuntimeError)):
        lwdna.verify(Between(CALLS[1]), X)


# --- modules that stay whole ---


class Whole(nn.Module):
    """``torch.vmap`` cannot be traced; ``channels`` has to follow the widths."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.gain = nn.Parameter(torch.rand(channels) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] != self.channels:
            raise RuntimeError(f"{self.channels} channels expected")
        return torch.vmap(lambda sample: sample * self.gain[:, None, None])(x)


def test_a_module_that_cannot_be_traced_is_refused_until_it_is_declared() -> None:
    model = Between(lambda self, h: self.whole(h), whole=Whole(8))
    with pytest.raises(lwdna.CaptureError, match="cannot be traced"):
        lwdna.capture(model, X)

    @lwdna.rules.resizes(Whole)
    def note(module: Whole, facts: Any, out_shape: Any) -> None:
        module.channels = len(module.gain)

    assert prunable(model) == {"a"}
    lwdna.verify(model, X)
    gm = lwdna.capture(model, X)
    graph = lwdna.analyse(gm, X)
    copies = verify.random_copies(graph, 0.7, np.random.default_rng(0))
    assert lwdna.resize(gm, graph, copies).whole.channels == 6


# --- a network of a user's own ---


class Own(nn.Module):
    """Patterns of the zoos in one network: gates, branches, shuffles, attention, positions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.PReLU(32))
        self.branches = nn.ModuleList(nn.Conv2d(32, 16, k, 1, k // 2) for k in (1, 3))
        self.depthwise = nn.Conv2d(32, 32, 3, 1, 1, groups=32)
        self.squeeze, self.excite = nn.Linear(32, 12), nn.Linear(12, 32)
        self.scale = nn.Parameter(torch.full((32,), 0.3))
        self.position = nn.Parameter(torch.randn(1, 16, 32))
        self.qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 32)
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = torch.cat([branch(x) for branch in self.branches], 1)
        y = y.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)  # channel shuffle
        y = self.depthwise(y)
        gate = self.excite(F.silu(self.squeeze(y.mean((2, 3))))).sigmoid()
        x = x + self.scale[:, None, None] * y * gate[..., None, None]
        tokens = x.flatten(2).transpose(1, 2) + self.position
        b, n, c = tokens.shape
        q, k, v = self.qkv(self.norm(tokens)).view(b, n, 3, 2, c // 2).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, -1)
        tokens = tokens + self.out(attended)
        out: Tensor = self.head(tokens.mean(1))
        return out


def test_a_network_of_ones_own() -> None:
    torch.manual_seed(0)
    model = Own()
    said = lwdna.verify(model, X)
    assert len(said.statements) == 7
    graph = analysed(model)
    in_use = [t for t in graph.terms if t.kind in ("conv", "linear", "matmul")]
    live = [t for t in in_use if any(graph.prunable[graph.group_of[v]].all() for v in t.vectors)]
    assert len(live) == len(in_use)  # every layer can shrink


# --- wrong declarations ---


def test_wrong_declarations_are_refused() -> None:
    with pytest.raises(TypeError, match=r"without an overload"):
        lwdna.rules.rule(OPERATOR.default)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="no module type"):
        lwdna.rules.resizes(OPERATOR)(lambda m, f, s: None)
    with pytest.raises(ValueError, match="Linear already has a resizer"):
        lwdna.rules.resizes(nn.Linear)(lambda m, f, s: None)
    with pytest.raises(ValueError, match="already has a coupling"):
        lwdna.rules.couples(nn.RNNBase)(lambda op, m: None)


# --- the documentation ---


def test_the_code_of_the_documentation_runs() -> None:
    torch.manual_seed(0)
    names = run_page("docs/support.md")
    assert "docs.scale.default has no channel rule" in str(names["without_rule"])
    assert len(names["with_rule"].statements) == 7
    assert prunable(names["Scaled"]()) == {"up"}
    network, small = names["network"], names["small"]
    dna = small.meta["lwdna"]
    assert 0.4 < dna.after.macs / dna.before.macs <= 0.5
    experts = small.get_submodule("1")
    assert experts.hidden == len(experts.first) == len(experts.second)
    assert any({"1.first[0]", "1.second[0]"} <= set(g.slots) for g in dna.groups)
    assert network[1].hidden == 24
    assert small(names["images"]).shape == (2, 64)


def test_what_one_mode_alone_changes_in_place_is_called_in_a_module_of_its_own() -> None:
    class Doubling(nn.Module):
        def __init__(self, *layers: nn.Module) -> None:
            super().__init__()
            self.layers = nn.Sequential(*layers)

        def forward(self, h: Tensor) -> Tensor:
            return self.layers(h.mul_(2) if self.training else h)

    layered = Doubling(nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1))
    assert prunable(Between(lambda self, h: self.doubling(h), doubling=layered)) == set()
    model = Between(lambda self, h: self.doubling(h), doubling=Doubling())
    gm = lwdna.capture(model, X)
    assert any(node.target == "doubling" for node in gm.graph.nodes)
    for training in (True, False):
        assert torch.equal(gm.train(training)(X), model.train(training)(X))
    assert prunable(model) == {"a"}


@pytest.mark.parametrize(
    ("f", "message"),
    [
        (lambda self, h: h if h.sum() > 0 else -h, "of a tensor's values decides the control flow"),
        (lambda self, h: h * h.sum().item(), "cannot be evaluated on meta tensors at"),
        (lambda self, h: torch.vmap(torch.sin)(h), "cannot be traced"),
        (
            lambda self, h: h.mul_(2) if self.training else h,
            "has a different structure in training and in evaluation",
        ),
    ],
    ids=["if", "item", "vmap", "in place in training"],
)
def test_refusals_read_as_documented(f: Any, message: str) -> None:
    with pytest.raises(lwdna.CaptureError, match=message):
        lwdna.capture(Between(f), X)
    assert message.removeprefix("of ").split(" at")[0] in PAGE.read_text()
