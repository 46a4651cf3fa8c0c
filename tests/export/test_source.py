"""An exported file builds the same network, without lwdna."""

from __future__ import annotations

import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import lwdna
from benchmarks.networks import build, build_on_meta, small_size
from lwdna.errors import VerificationError
from lwdna.export.check import check_source
from lwdna.export.source import source_of
from tests.documents import run_page
from tests.export.comparison import exported, round_trip, same
from tests.export.networks import (
    Again,
    Auxiliary,
    Folded,
    Half,
    Leaves,
    Measured,
    Mixed,
    Named,
    Region,
    Shared,
    Values,
    X,
)

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


@pytest.mark.parametrize("model", [Leaves, Values, Named, Shared, Mixed, Again, Auxiliary, Region])
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


def test_what_one_mode_needs_runs_in_it_alone(tmp_path: Path) -> None:
    again = exported(lwdna.capture(Half(), X), tmp_path)
    calls: list[bool] = []
    again.aux[1].register_forward_hook(lambda module, *_: calls.append(module.training))
    again.eval()(X)
    again.train()(X)
    assert calls == [True]


def test_sizes_are_taken_before_what_they_are_of_is_replaced(tmp_path: Path) -> None:
    text = round_trip(Measured(), tmp_path, X)
    assert text.index("x.shape[2]") < text.index("x = self.conv(x)")


def test_the_code_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert run_page("docs/export.md")["name"] == "ResNet"


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
