"""Capture of regions of mixed precision, and of checkpoints however they are reached."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils.checkpoint import checkpoint
from torch.utils.checkpoint import checkpoint as by_another_name

from lwdna.errors import AnalysisError, CaptureError, ResizeError
from lwdna.fx_passes.analyse import analyse
from lwdna.fx_passes.autocast import SWITCHES
from lwdna.fx_passes.capture import capture
from lwdna.fx_passes.timing import time_nodes
from tests.fx_passes.test_capture_torch import TOKENS, Body, checked, same_gradients
from tests.quality import resized


def exact_under_autocast(model: nn.Module, gm: GraphModule) -> None:
    """Bit-equal, of one dtype, with and without mixed precision around the network."""
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled):
            expected, given = model(TOKENS), gm(TOKENS)
            state = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")
        assert expected.dtype is given.dtype
        assert torch.equal(expected, given)
        assert state == (enabled, torch.bfloat16)
    assert not torch.is_autocast_enabled("cpu")


def sensitive(s: Any, x: Tensor) -> Tensor:
    with torch.autocast(device_type=x.device.type, enabled=False):
        return s.a(x.float()).relu()


def unless_on_meta(s: Any, x: Tensor) -> Tensor:
    if x.device.type != "meta" and not x.is_meta:  # as in timm's LiteMLA
        return sensitive(s, x)
    return s.a(x).relu()


def by_name(s: Any, x: Tensor) -> Tensor:
    with torch.amp.autocast("cpu", dtype=torch.bfloat16):
        y = s.a(x)
        with torch.autocast("cpu", enabled=False):
            return y.float() + s.b(x.float())


@torch.autocast("cpu", enabled=False)
def decorated(s: Any, x: Tensor) -> Tensor:
    out: Tensor = s.a(x.float())
    return out


@pytest.mark.parametrize("f", [sensitive, unless_on_meta, by_name, decorated])
def test_regions_of_mixed_precision_are_carried_over(f: Callable[..., Tensor]) -> None:
    model = Body(f, a=nn.Linear(16, 16), b=nn.Linear(16, 16)).eval()
    gm, prunable = checked(model)
    assert "a.weight" in prunable
    exact_under_autocast(model, gm)
    exact_under_autocast(model, copy.deepcopy(gm))
    exact_under_autocast(model, pickle.loads(pickle.dumps(gm)))
    same_gradients(model, gm)


class Cautious(nn.Module):
    """Exact in training mode only."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False) if self.training else torch.enable_grad():
            out: Tensor = self.a(x.float())
        return out


def test_a_region_of_one_mode_alone_stays_in_its_module() -> None:
    model = Body(lambda s, x: s.gate(x), gate=Cautious())
    gm = capture(model, TOKENS)
    assert not [n for n in gm.graph.nodes if n.target in SWITCHES]
    for training in (True, False):
        exact_under_autocast(model.train(training), gm.train(training))


def test_a_failing_capture_leaves_no_region_open() -> None:
    def body(s: Any, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return x if x.sum() > 0 else -x

    with pytest.raises(CaptureError, match="values decides the control flow"):
        capture(Body(body), TOKENS)
    assert not torch.is_autocast_enabled("cpu")


def of_seven_tokens(s: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        y = s.a(x)
        with torch.autocast("cpu", enabled=False):
            return y + x.reshape(len(x), 7, 16)


@pytest.mark.parametrize("ambient", [False, True])
def test_an_error_inside_leaves_the_ambient_precision(ambient: bool) -> None:
    model = Body(of_seven_tokens, a=nn.Linear(16, 16)).eval()
    for network in (model, capture(model, TOKENS)):
        with torch.autocast("cpu", torch.float16, ambient):
            with pytest.raises(RuntimeError, match="shape"):
                network(TOKENS[:, :5])
            state = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")
        assert state == (ambient, torch.float16)
    assert not torch.is_autocast_enabled("cpu")


class OfSixteen(torch.autograd.Function):
    """Its literal means a channel count, which nothing repairs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, channels: int) -> Tensor:
        return x.reshape(*x.shape[:-1], channels).clone()


def of_sixteen_channels(s: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        out: Tensor = OfSixteen.apply(s.a(x), 16)
    return s.b(out.float())


@pytest.mark.parametrize("ambient", [False, True])
def test_passes_that_fail_inside_leave_the_ambient_precision(ambient: bool) -> None:
    fails = capture(Body(of_seven_tokens, a=nn.Linear(16, 16)).eval(), TOKENS)
    literal = Body(of_sixteen_channels, a=nn.Linear(16, 16), b=nn.Linear(16, 16))
    with torch.autocast("cpu", torch.float16, ambient):
        state = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")
        for run, error in (
            (lambda: analyse(fails, TOKENS[:, :5]), AnalysisError),
            (lambda: resized(capture(literal, TOKENS), TOKENS), ResizeError),
            (lambda: time_nodes(fails, (TOKENS[:, :5],), 1), RuntimeError),
        ):
            with pytest.raises(error):
                run()
            assert state == (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu"))
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.skipif(
    torch.torch_version.TorchVersion(torch.__version__) < (2, 15),
    reason="torch.compile of 2.11 refuses to enter a region by a call; tried again with 2.15",
)
def test_regions_of_mixed_precision_compile() -> None:
    model = Body(by_name, a=nn.Linear(16, 16), b=nn.Linear(16, 16)).eval()
    compiled: Any = torch.compile(capture(model, TOKENS), backend="eager", fullgraph=True)
    assert torch.equal(compiled(TOKENS), model(TOKENS))


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints_imported_by_name_are_traced_through(reentrant: bool) -> None:
    def body(s: Any, x: Tensor) -> Tensor:
        out: Tensor = checkpoint(s.a, x, use_reentrant=reentrant)
        return out

    model = Body(body, a=nn.Linear(16, 16))
    original = checkpoint
    with pytest.warns(UserWarning, match="the memory of all activations"):
        gm, prunable = checked(model)
    assert checkpoint is original
    assert "a.weight" in prunable
    same_gradients(model, gm)


def test_checkpoints_by_another_name_are_traced_through() -> None:
    model = Body(lambda s, x: by_another_name(s.a, x, use_reentrant=True), a=nn.Linear(16, 16))
    with pytest.warns(UserWarning, match="the memory of all activations"):
        _, prunable = checked(model)
    assert "a.weight" in prunable


def test_what_is_checkpointed_only_if_it_learns_is_told_too() -> None:
    def body(s: Any, x: Tensor) -> Tensor:
        frozen = x.detach()
        assert not frozen.requires_grad
        if not x.requires_grad:
            return s.a(x)
        out: Tensor = torch.utils.checkpoint.checkpoint(s.a, x, use_reentrant=False)
        return out

    model = Body(body, a=nn.Linear(16, 16))
    with pytest.warns(UserWarning, match="the memory of all activations"):
        gm, _ = checked(model)
    same_gradients(model, gm)
    for p in model.stem.parameters():
        p.requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        capture(model, TOKENS)


def test_the_exact_attention_of_a_published_network_stays_exact() -> None:
    model = timm.create_model("efficientvit_b0", num_classes=7).eval()
    x = torch.randn(2, 3, 64, 64)
    gm = capture(model, x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(gm(x), model(x))
    with torch.device("meta"):
        again = capture(model.to("meta"), x.to("meta"))
    assert again.code == gm.code
