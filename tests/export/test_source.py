"""An exported file builds the same network, without lwdna."""

from __future__ import annotations

import importlib.util
import math
import shutil
import subprocess
import sys
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import lwdna
from benchmarks.networks import build, build_on_meta, small_size
from lwdna.errors import UnsupportedModelError, VerificationError
from lwdna.export.check import check_source
from lwdna.export.source import source_of
from lwdna.fx_passes import modules
from tests.documents import run_page
from tests.toy_detector import batch, detector

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
TABLE = np.linspace(0, 1, 8, dtype=np.float32)  # what tracing has to keep as a constant
QUICK = ("timm:test_resnet", "timm:test_vit", "timm:resnet18")
FAMILIES = (
    "timm:mobilenetv3_small_100",
    "timm:regnety_004",
    "timm:convnext_atto",
    "timm:hrnet_w18_small",
    "timm:inception_v3",
    "timm:mobilevit_xxs",
    "timm:nfnet_f0",
    "timm:ghostnet_100",
    "timm:resnest14d",
    "timm:eca_resnet33ts",
    "timm:xcit_nano_12_p8_224",
    "timm:tf_efficientnet_b0",
    "timm:convit_tiny",
    "timm:sequencer2d_s",
    "timm:coat_tiny",
    "timm:maxvit_pico_rw_256",
    "torchvision:densenet121",
    "torchvision:swin_t",
    "torchvision:shufflenet_v2_x1_0",
    "torchvision:googlenet",
    "torchvision:squeezenet1_1",
    "torchvision:fcn_resnet50",
)


def exported(net: nn.Module, folder: Path) -> nn.Module:
    """What the file of a network builds, with the network's values."""
    path = folder / "exported.py"
    name = lwdna.export_source(net, path)
    spec = importlib.util.spec_from_file_location(f"exported_{id(net)}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # torch.jit looks its source up
    spec.loader.exec_module(module)
    again: nn.Module = getattr(module, name)()
    assert list(again.state_dict()) == list(net.state_dict())
    again.load_state_dict(net.state_dict())
    return again


def outputs(net: nn.Module, *inputs: Any, training: bool) -> list[Any]:
    net.train(training)
    torch.manual_seed(0)
    with torch.set_grad_enabled(training):
        return tree_leaves(net(*inputs))


def same(net: nn.Module, again: nn.Module, *inputs: Any) -> None:
    """Bit-identical outputs in both modes, gradients and state after training."""
    for training in (False, True):
        found = [outputs(n, *inputs, training=training) for n in (net, again)]
        for a, b in zip(*found, strict=True):
            assert torch.equal(a, b) if isinstance(a, Tensor) else a == b
        if training and any(p.requires_grad for p in net.parameters()):
            for out in found:
                total = sum(t.float().square().mean() for t in out if isinstance(t, Tensor))
                total.backward()  # type: ignore[union-attr]
    for (name, p), (other, q) in zip(net.named_parameters(), again.named_parameters(), strict=True):
        assert name == other and p.requires_grad == q.requires_grad
        assert (p.grad is None) == (q.grad is None)
        assert p.grad is None or torch.equal(p.grad, q.grad)
    for a, b in zip(net.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def round_trip(model: nn.Module, folder: Path, *inputs: Any) -> str:
    """Export a captured model, compare, and give the text."""
    net = lwdna.capture(model, inputs)
    same(net, exported(net, folder), *inputs)
    text = (folder / "exported.py").read_text()
    assert text.isascii()
    assert not any(word in text for word in ("import lwdna", "torch.fx", "exec(", "eval("))
    return text


def shrunk(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model, _ = build(name)
    x = torch.randn(2, *small_size(name))
    net = lwdna.shrink(model, 0.7, widen=1.0, criterion="random", example_inputs=x, progress=False)
    return net, x


@pytest.mark.parametrize("name", QUICK)
def test_a_shrunk_network_is_built_again(name: str, tmp_path: Path) -> None:
    net, x = shrunk(name)
    again = exported(net, tmp_path)
    same(net, again, x)
    assert again.num_features == net.num_features
    text = (tmp_path / "exported.py").read_text()
    dna = net.meta["lwdna"]
    assert f"macs: {dna.after.macs:,} of {dna.before.macs:,}" in text
    assert f"DNA: sha256 {dna.digest}" in text


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_networks_of_many_families_are_built_again(name: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # GoogLeNet's note on its initialisation
        net, x = shrunk(name)
    same(net, exported(net, tmp_path), x)


def test_blocks_that_differ_in_widths_share_a_class(tmp_path: Path) -> None:
    net, _ = shrunk("timm:resnet18")
    text, _ = source_of(net)
    assert text.count("class BasicBlock") == 2  # with and without a downsample
    assert "self.layer1 = nn.Sequential(\n            BasicBlock(" in text
    widths = [m.out_channels for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert all(f"{width}" in text for width in widths)


def test_the_file_needs_no_lwdna(tmp_path: Path) -> None:
    net, x = shrunk("timm:test_resnet")
    exported(net, tmp_path)
    net.eval()
    torch.save(net.state_dict(), tmp_path / "weights.pt")
    torch.save((x, net(x).detach()), tmp_path / "expected.pt")
    code = """
import sys
sys.modules["lwdna"] = None  # importing it fails
import torch, exported
net = getattr(exported, exported.__all__[0])()
net.load_state_dict(torch.load("weights.pt", weights_only=True))
x, expected = torch.load("expected.pt", weights_only=True)
assert torch.equal(net.eval()(x), expected)
assert not [name for name in sys.modules if name.startswith("lwdna.")]
"""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=600)


def test_what_people_do_with_a_network(tmp_path: Path) -> None:
    net, x = shrunk("timm:test_resnet")
    again = exported(net.eval(), tmp_path).eval()
    with torch.no_grad():
        expected = net(x)
        assert torch.equal(torch.jit.script(again)(x), expected)
        assert torch.equal(torch.compile(again, backend="eager", fullgraph=True)(x), expected)
        assert torch.equal(torch.export.export(again, (x,)).module()(x), expected)


@pytest.mark.parametrize("name", ["timm:test_resnet", "timm:test_vit"])
def test_the_file_is_formatted(name: str, tmp_path: Path) -> None:
    ruff = shutil.which("ruff") or shutil.which("ruff", path=str(Path(sys.executable).parent))
    if ruff is None:
        pytest.skip("ruff is not installed")
    model, _ = build_on_meta(name)
    net = lwdna.capture(model, torch.empty(2, *small_size(name), device="meta"))
    lwdna.export_source(net, tmp_path / "exported.py")
    for width in ("88", "100"):
        arguments = ["format", "--isolated", "--line-length", width, "--check", "exported.py"]
        subprocess.run([ruff, *arguments], cwd=tmp_path, check=True)


class Pair(NamedTuple):
    first: Tensor
    second: Tensor


class Leaves(nn.Module):
    """Layers whose arguments are kept in different ways."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, (3, 1), padding="same", dilation=2, padding_mode="reflect"),
            nn.GroupNorm(4, 8, affine=False),
            nn.PReLU(8),
            nn.ConvTranspose2d(8, 6, 3, 2, output_padding=1, groups=2, bias=False),
            nn.InstanceNorm2d(6, track_running_stats=True),
            nn.Upsample(scale_factor=0.5, mode="bilinear", align_corners=True),
            nn.BatchNorm2d(6, momentum=None, eps=1e-3),
            nn.LeakyReLU(0.3),
            nn.Hardtanh(-math.inf, 2.0),
            nn.AdaptiveAvgPool2d((None, 4)),
            nn.MaxPool2d(2),
            nn.Dropout2d(0.4),
        )
        self.rnn = nn.LSTM(6, 5, 2, batch_first=True, bidirectional=True, dropout=0.2)
        self.gru = nn.GRU(10, 4, bias=False)
        self.cell = nn.LSTMCell(4, 3)
        self.norm = nn.LayerNorm((3,), bias=False)
        self.table = nn.Embedding(7, 3, padding_idx=0)
        self.mix = nn.Bilinear(3, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x, (_, _) = self.rnn(self.layers(x).flatten(2).transpose(1, 2))
        x = self.norm(self.cell(self.gru(x)[0].mean(1))[0])
        out: Tensor = self.mix(x, self.table(torch.arange(2)))
        return out


class Values(nn.Module):
    """Arguments, results and operators of every kind."""

    def forward(self, x: Tensor, scale: float = 2.0, *, unused: int = 0) -> Any:
        y = x[:, 1:, ::2, ..., -1] * scale
        y = y.masked_fill(y < 0, -math.inf).clamp(max=3) ** 2
        z = torch.zeros(x.shape[0], 3, dtype=torch.float64, device=x.device)
        z[:, :2] = 1.5
        z[(0,)] += 1
        kept = z
        z = z + 1
        kept += z
        w = -x.to(memory_format=torch.channels_last)
        w -= 1
        a, b = torch.chunk(x.permute(0, 2, 3, 1), 2, dim=-1)
        size = (x.shape[-1] + 1) // 2 * 3
        pad = F.pad(w, [0, max(0, size - x.shape[3])], value=float("nan")).nan_to_num(0.0)
        return {
            "a b": [a, (b,)],
            "pair": Pair(y, ~(x > 0)),
            "more": (kept, z, w, pad, x.flatten(-2)[:, None], None, 1, "text"),
        }


UNCALLED = ("self", "]); import os #", "\ufb01")  # Python reads the last one as "fi"
HOSTILE = '"]); import os #\n"""'  # capture refuses such names; they can come later


class Named(nn.Module):
    """Modules and tensors with names that no code has."""

    def __init__(self) -> None:
        super().__init__()
        self.add_module("0", nn.ReLU())
        self.add_module("a b-c", nn.Conv2d(3, 3, 1))
        self.add_module("__hidden", nn.Conv2d(3, 3, 1))
        self.add_module("class", nn.Conv2d(3, 3, 1))
        for name in UNCALLED:  # torch.fx cannot call these
            self.add_module(name, nn.Sequential(OrderedDict({"if": nn.Conv2d(3, 3, 1)})))
        self.register_parameter("a-b", nn.Parameter(torch.rand(1)))
        self.register_buffer("a+b", torch.rand(1))
        self.torch = nn.Identity()
        self.blocks = nn.ModuleDict({"x": nn.Conv2d(3, 3, 1), "y z": nn.Conv2d(3, 3, 1)})

    def forward(self, input: Tensor) -> Tensor:
        x = input
        for name, module in self._modules.items():
            if name not in ("blocks", *UNCALLED):
                x = module(x)  # type: ignore[misc]
        x = self.blocks["y z"](self.blocks["x"](x))
        out: Tensor = x * getattr(self, "a-b") + getattr(self, "a+b")
        return out


class Shared(nn.Module):
    """One block called twice, one tensor under two names, a frozen layer, tables."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
        self.same = self.block
        act = nn.ReLU()
        self.acts = nn.Sequential(act, nn.Conv2d(3, 3, 1), act)
        self.other = nn.Conv2d(3, 3, 1)
        self.other.weight = self.acts[1].weight
        self.other.bias.requires_grad_(False)  # type: ignore[union-attr]
        self.unused = nn.Linear(2, 2)
        self.fixed = nn.Parameter(torch.rand(8), requires_grad=False)
        self.register_buffer("noise", torch.randn(3, 8, 8), persistent=False)
        self.register_buffer("ones", torch.ones(3, 8, 8), persistent=False)
        self.register_buffer("few", torch.tensor([1.0, math.inf, 3.0]), persistent=False)
        self.register_buffer("kept", torch.randn(3, 8, 8))
        self.plain = torch.arange(300).reshape(3, 100)[:, None, :8]

    def forward(self, x: Tensor) -> Tensor:
        x = self.acts(self.same(self.block(x))) + self.fixed
        x = self.other(x) * self.noise + self.ones * self.kept
        x = x + torch.from_numpy(TABLE) + torch.tensor([0.1, 0.2]).repeat(4)
        return x.clamp(max=self.few[:, None, None]) + self.plain


class Mixed(nn.Module):
    """Does something else in each mode; a region of mixed precision in a block."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.aux = nn.Conv2d(3, 4, 1), nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU())
        self.inner = Inner()

    def forward(self, x: Tensor) -> Any:
        x = F.dropout(self.conv(x), 0.5 if self.training else 0.0, True)
        early = x.sigmoid()
        x = x - early
        aux = self.aux(early).mean() * 2 if self.training else None
        x = self.inner(x)
        return (x, aux) if self.training else x


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            x = self.conv(x)
            with torch.autocast("cpu", enabled=False):
                x = x.float() * 2
        return x + (3 if self.training else 4)


class Folded(nn.Module):
    """A number in ``forward`` that goes with a width, and one that goes its own way."""

    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.width, self.scale = width, scale
        self.conv, self.back = nn.Conv2d(3, width, 1), nn.Conv2d(width, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x).reshape(-1, self.width, 8, 8) ** 2
        out: Tensor = x + self.back(y) * self.scale
        return out


class Again(nn.Module):
    """A module called twice, with another one between."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.between = Folded(4, 0.5), Folded(4, 2.0)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.block(self.between(self.block(x)).relu())
        return out


@pytest.mark.parametrize("model", [Leaves, Values, Named, Shared, Mixed, Again])
def test_code_of_every_kind(model: Callable[[], nn.Module], tmp_path: Path) -> None:
    torch.manual_seed(0)
    round_trip(model(), tmp_path, X)


def test_numbers_in_forward_become_attributes(tmp_path: Path) -> None:
    settings = ((4, 0.5), (6, -1.5), (8, -1.5), (6, 2.0))
    model = nn.Sequential(*(Folded(width, scale) for width, scale in settings))
    text = round_trip(model, tmp_path, X)
    assert "Folded(conv_out_channels=6, mul=-1.5)" in text
    assert "reshape(-1, self.conv_out_channels, 8, 8)" in text
    assert text.count("class Folded") == 1


def test_tensors_keep_their_dtype(tmp_path: Path) -> None:
    round_trip(Leaves().double(), tmp_path, X.double())


class Doubled(torch.autograd.Function):
    """Another gradient than its operators have."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * 5


@torch.jit.script
def scripted(x: Tensor) -> Tensor:
    return x.relu() + 1


class Kept(nn.Module):
    """Declared a leaf; one attribute is counted on."""

    def __init__(self, channels: int, rate: float = 0.5) -> None:
        super().__init__()
        self.channels, self.rate, self.calls = channels, rate, 0
        self.weight = nn.Parameter(torch.rand(channels))
        self.act: nn.Module = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(x) * self.weight[:, None, None] * (self.rate + self.calls)
        return out


class Lost(Kept):
    """Forgets what it was made with."""

    def __init__(self, size: int) -> None:
        super().__init__(size)


class Odd(Kept):
    """Keeps what no code can say."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.handle = object()


@pytest.fixture
def declared() -> Any:
    """Modules that stay whole, for the time of a test."""
    before = dict(modules._RESIZERS)
    lwdna.rules.resizes(Kept, Lost, Odd)(lambda module, facts, shape: None)
    yield
    modules._RESIZERS.clear()
    modules._RESIZERS.update(before)


class Calls(nn.Module):
    """Calls a function, and holds a layer."""

    def __init__(self, function: Callable[[Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.conv, self.function = nn.Conv2d(3, 3, 1), function
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.conv(x))


def test_functions_are_called_by_name(tmp_path: Path) -> None:
    text = round_trip(Calls(lambda x: scripted(Doubled.apply(x))), tmp_path, X)
    assert "test_source.Doubled.apply(x)" in text and "test_source.scripted(x)" in text


def test_modules_of_the_users_own_are_made_again(declared: None, tmp_path: Path) -> None:
    kept = Kept(3, rate=0.25)
    kept.calls, kept.act = 3, nn.Hardtanh(-1, 2)
    text = round_trip(nn.Sequential(nn.Conv2d(3, 3, 1), kept), tmp_path, X)
    assert "test_source.Kept(3, rate=0.25)" in text
    assert "self[1].calls = 3" in text and "self[1].act = nn.Hardtanh(" in text


def hooked() -> nn.Module:
    net = lwdna.capture(Calls(F.relu), X)
    net.conv.register_forward_hook(lambda *_: None)  # type: ignore[union-attr, operator]
    return net


def local() -> nn.Module:
    class Layer(nn.ReLU):
        pass

    net = lwdna.capture(Calls(F.relu, act=nn.ReLU()), X)
    net.act = Layer()
    return net


def argument() -> nn.Module:
    class Network(nn.Module):
        def forward(self, nn: Tensor) -> Tensor:
            return nn + 1

    return lwdna.capture(Network(), X)


@torch.library.custom_op("test_export::twice", mutates_args=())
def twice(x: Tensor) -> Tensor:
    return x * 2


@twice.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def parametrized() -> nn.Module:
    conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 3, 1))
    return lwdna.capture(nn.Sequential(conv), X)


def leaf(kind: type[nn.Module]) -> nn.Module:
    return lwdna.capture(nn.Sequential(nn.Conv2d(3, 3, 1), kind(3)), X)


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (hooked, "module 'conv' .Conv2d. has hooks"),
        (local, "module 'act' .Layer. needs .*Layer"),
        (argument, "an argument 'nn'"),
        (
            lambda: lwdna.capture(Calls(lambda x: torch.ops.test_export.twice(x)), X),
            "nothing tells which import registers it",
        ),
        (parametrized, "module '0' .ParametrizedConv2d. has a parametrization"),
        (lambda: leaf(Lost), "module '1' .Lost. does not keep the argument 'size'"),
        (lambda: leaf(Odd), "module '1' .Odd. differs from what its constructor makes: handle"),
        (lambda: lwdna.capture(detector(), batch()), "captured in parts"),
    ],
)
def test_what_cannot_be_written_is_named(
    declared: None, net: Callable[[], nn.Module], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "exported.py"
    path.write_text("as it was")
    captured = net()
    with pytest.raises(UnsupportedModelError, match=message):
        lwdna.export_source(captured, path)
    assert path.read_text() == "as it was" and list(tmp_path.iterdir()) == [path]


def test_layers_that_were_put_in_later_come_along(tmp_path: Path) -> None:
    net = lwdna.capture(Calls(F.relu, head=nn.Conv2d(3, 4, 1)), X)
    net.conv = nn.Sequential(nn.Dropout(0.5), nn.Conv2d(3, 6, 1))
    net.head = nn.Conv2d(4, 5, 1)
    same(net, exported(net, tmp_path), X)


def test_names_that_came_later_are_quoted(tmp_path: Path) -> None:
    net = lwdna.capture(Calls(F.relu), X)
    net.add_module(HOSTILE, nn.Sequential(OrderedDict({"a'b": nn.Conv2d(3, 3, 1)})))
    net.register_buffer("a\\", torch.rand(1))
    same(net, exported(net, tmp_path), X)


def test_a_part_of_a_detector_is_a_network(tmp_path: Path) -> None:
    parts = lwdna.capture(detector(), batch())
    part: Any = parts.get_submodule("stem")
    same(part, exported(part, tmp_path), X)


def test_the_code_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert run_page("docs/export.md")["name"] == "ResNet"


def test_what_is_not_captured_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="pass what lwdna"):
        lwdna.export_source(nn.ReLU(), tmp_path / "exported.py")


def test_the_network_is_left_alone(tmp_path: Path) -> None:
    net = lwdna.capture(Shared(), X)
    before, state, code = torch.get_rng_state(), dict(net.state_dict()), net.code
    lwdna.export_source(net, tmp_path / "exported.py")
    assert torch.equal(torch.get_rng_state(), before) and net.code == code
    assert all(a is b for a, b in zip(state.values(), net.state_dict().values(), strict=True)) or (
        all(torch.equal(state[k], v) for k, v in net.state_dict().items())
    )


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("nn.Bilinear(3, 3, 2)", "nn.Bilinear(3, 3, 4)"),
        ("self.norm = nn.LayerNorm((3,), bias=False)", "self.norm = nn.LayerNorm((3,))"),
        ("nn.PReLU(num_parameters=8)", "nn.ReLU()"),
    ],
)
def test_a_wrong_file_is_noticed(right: str, wrong: str) -> None:
    net = lwdna.capture(Leaves(), X)
    text, name = source_of(net)
    assert right in text
    check_source(text, name, net)
    with pytest.raises(VerificationError, match="the exported Leaves has other"):
        check_source(text.replace(right, wrong), name, net)
