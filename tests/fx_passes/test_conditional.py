"""What one mode alone needs runs, and is counted, in that mode alone."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter

from lwdna.errors import CaptureError
from lwdna.fx_passes import verify
from lwdna.fx_passes.analyse import analyse
from lwdna.fx_passes.capture import capture
from lwdna.fx_passes.conditional import Condition, conditions
from tests.quality import resized

X = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def plain(s: Any, x: Tensor) -> Tensor:
    out: Tensor = s.aux(x)
    return out


def in_place(s: Any, x: Tensor) -> Tensor:
    y = s.aux(x)
    z = y.view(-1)
    z.mul_(2)
    return F.relu(y, inplace=True)


def guarded(s: Any, x: Tensor) -> Tensor:
    y: Tensor = s.aux(x)
    return y * 2 if y.shape[-1] == 4 else y


def dropped(s: Any, x: Tensor) -> Tensor:
    y = F.dropout(s.aux(x), 0.5, training=s.training)
    return y / y.detach().abs().max()


class Headed(nn.Module):
    """Two heads, the second of which is for training alone, and wants large pictures."""

    def __init__(self, f: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.f, self.stem = f, nn.Conv2d(3, 8, 1)
        self.aux = nn.Sequential(
            nn.Conv2d(8, 6, 5), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 5)
        )
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        aux = self.f(self, x) if self.training else None
        x = self.head(x.relu())
        return (x, aux) if self.training else x


def outputs(network: nn.Module, x: Tensor, *, training: bool) -> list[Tensor]:
    network = copy.deepcopy(network).train(training)
    torch.manual_seed(0)
    out = network(x)
    return list(out) if isinstance(out, tuple) else [out]


def same_in_both_modes(model: nn.Module, gm: nn.Module) -> None:
    for training in (True, False):
        pairs = zip(*(outputs(m, X, training=training) for m in (model, gm)), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


def shrunk(gm: GraphModule) -> GraphModule:
    """At random widths, after the invariants."""
    _, small = resized(gm, X)
    verify.trains(small, X)
    assert small.aux[0].out_channels < 6
    return small


@pytest.mark.parametrize("f", [plain, in_place, guarded, dropped])
def test_a_head_for_training_neither_runs_nor_counts_in_evaluation(
    f: Callable[[Any, Tensor], Tensor],
) -> None:
    model = Headed(f)
    gm = capture(model, X)
    graph = analyse(gm, X)
    cost = graph.cost(graph.keep_all())
    assert (cost.macs, cost.params) == verify.measured_cost(model, X)
    assert cost.flops_paper < 2 * cost.macs  # of the counted activations, none is of this head
    little = X[:, :, :3, :3]  # the head would not take it
    for network in (gm, shrunk(gm), copy.deepcopy(gm), pickle.loads(pickle.dumps(gm))):
        ran: list[bool] = []
        network.aux[0].register_forward_hook(lambda *_, ran=ran: ran.append(True))
        network.eval()(little)
        assert not ran
        network.train()(X)
        assert ran
    assert torch.equal(capture(model, X).eval()(little), model.eval()(little))
    same_in_both_modes(model, capture(model, X))


def test_interpreters_run_every_node() -> None:
    gm = capture(Headed(plain), X).eval()
    kept = Interpreter(gm, garbage_collect_values=False)
    kept.run(X)
    assert {n.target for n in kept.env if n.op == "call_module"} >= {"aux.0", "aux.3"}
    assert set(conditions(gm.graph).values()) == {Condition("training", True)}


class Both(nn.Module):
    """Another layer in each mode."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(3, 3, 1) for _ in "abc")

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        out: Tensor = self.b(x).relu() if self.training else self.c(x).sigmoid()
        return out + 1


def test_the_flag_of_the_module_that_chooses_decides() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), Both())
    gm = capture(model, X)
    same_in_both_modes(model, gm)
    ran: list[str] = []
    for name in "bc":
        gm.get_submodule(f"1.{name}").register_forward_hook(lambda *_, name=name: ran.append(name))
    gm.train()(X), gm.eval()(X)
    assert ran == ["b", "c"]
    assert {str(c) for c in conditions(gm.graph).values()} == {
        'getattr(self, "1").training',
        'not getattr(self, "1").training',
    }


def test_a_value_of_another_kind_is_named() -> None:
    class Cut(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return (x, torch.arange(x.shape[-1])) if self.training else (x, None)

    class Uses(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cut, self.conv = Cut(), nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            x, kept = self.cut(self.conv(x))
            return x if kept is None else x[..., kept]

    with pytest.raises(CaptureError, match="is a Tensor in that mode and a NoneType in the other"):
        capture(Uses(), X)
