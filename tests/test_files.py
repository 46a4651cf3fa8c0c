"""Save and load: the identical network comes back, or an error that says why not."""

from __future__ import annotations

import copy
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from stat import S_IMODE
from typing import Any

import pytest
import timm
import torch
from torch import nn

import lwdna
from benchmarks import bm_files
from benchmarks.detectors import pictures
from benchmarks.networks import small_size
from lwdna import files, weights
from lwdna.fx_passes import verify
from lwdna.fx_passes.likeness import differences
from tests import toy_detector
from tests.factories import Plain
from tests.saved import TRUST, X, assert_same, shrunk, size_of

HARD, PLAIN = "tests.factories:hard", "tests.factories:plain"
QUICK = ("timm:test_resnet", "timm:test_vit", "torchvision:squeezenet1_1")


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return shrunk(PLAIN)


@pytest.fixture
def folder(net: nn.Module, tmp_path: Path) -> Path:
    lwdna.save(net, tmp_path / "n")
    return tmp_path / "n"


# --- the identical network ---


@pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in bm_files.NETWORKS)]
)
def test_what_is_loaded_is_what_was_saved(name: str, tmp_path: Path) -> None:
    x = torch.randn(2, *small_size(name))
    # Widened ones have been resized twice.
    net = shrunk(name, x, widen=1.25 if name in ("timm:test_resnet", "timm:resnet18") else 1.0)
    lwdna.save(net.eval(), tmp_path)
    again = lwdna.load(tmp_path)
    assert_same(net, again, x)
    assert size_of(tmp_path) <= 1.01 * bm_files.tensor_bytes(net) + 100_000
    assert verify.measured_cost(again, x[:1]) == verify.measured_cost(net, x[:1])


def test_ties_buffers_modes_flags_and_layouts(tmp_path: Path) -> None:
    net: Any = shrunk(HARD, widen=1.5, drop=0.2)
    net.train()
    net.bn.eval()
    net.fc.bias.requires_grad_(False)
    net.stem.to(memory_format=torch.channels_last)
    with verify.untouched(net):
        lwdna.save(net, tmp_path)
        again: Any = lwdna.load(tmp_path, trust=TRUST)
    assert_same(net, again, X)
    assert again.body.weight is again.again.weight
    assert again.stem.weight.is_contiguous(memory_format=torch.channels_last)
    assert not again.bn.training and again.drop.training and again.drop.p == 0.2
    assert not again.fc.bias.requires_grad
    again.eval()
    assert_same(net.eval(), again, X)
    again.train()(X).sum().backward()
    assert all(p.grad is not None for n, p in again.named_parameters() if n != "fc.bias")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_types_are_kept(net: nn.Module, dtype: torch.dtype, tmp_path: Path) -> None:
    other = copy.deepcopy(net).to(dtype)
    lwdna.save(other, tmp_path)
    assert_same(other, lwdna.load(tmp_path, trust=TRUST), X.to(dtype))


def test_a_loaded_network_is_saved_again_as_the_same(folder: Path, tmp_path: Path) -> None:
    lwdna.save(lwdna.load(folder, trust=TRUST), tmp_path / "again")
    assert (tmp_path / "again" / "dna.json").read_bytes() == (folder / "dna.json").read_bytes()
    # The order of a safetensors file's metadata is by chance; the record has the sum of all.
    states = [weights.read_state(f / files.WEIGHTS) for f in (folder, tmp_path / "again")]
    assert states[0] == states[1]
    assert sorted(p.name for p in folder.iterdir()) == ["dna.json", "model.safetensors"]


@pytest.mark.skipif(os.name != "posix", reason="Windows has no such modes")
def test_the_umask_says_who_may_read_a_file(net: nn.Module, tmp_path: Path) -> None:
    for umask, mode in ((0o022, 0o644), (0o007, 0o660)):
        before = os.umask(umask)
        try:
            lwdna.save(net, tmp_path)  # the second time over other files
        finally:
            os.umask(before)
        assert {S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {mode}


def test_a_detector_in_parts(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, data = lwdna.create("tests.factories:detector"), toy_detector.batch()
    net = lwdna.shrink(
        model, 0.6, data=[data], step_fn=toy_detector.step, widen=1.0, progress=False
    )
    lwdna.save(net.eval(), tmp_path)
    again = lwdna.load(tmp_path, trust=TRUST)
    assert_same(net, again, data[0])
    with pytest.raises(lwdna.SourceError, match=r"trust=\['tests\.factories'\]"):
        lwdna.load(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "fasterrcnn_mobilenet_v3_large_320_fpn",
        "maskrcnn_resnet50_fpn",
        "ssdlite320_mobilenet_v3_large",
    ],
)
def test_detectors_of_torchvision(name: str, tmp_path: Path) -> None:
    options = {"num_classes": 5}
    if "rcnn" in name:
        options |= {"min_size": 64, "max_size": 96, "box_score_thresh": 0.0}
    torch.manual_seed(0)
    model, data = lwdna.create(f"torchvision:{name}", **options), pictures(name, 2)
    net = lwdna.shrink(
        model, 0.7, data=[data], step_fn=toy_detector.step, widen=1.0, progress=False
    )
    lwdna.save(net.eval(), tmp_path)
    assert_same(net, lwdna.load(tmp_path), data[0])


# --- sources ---


def test_a_timm_model_tells_its_constructor(tmp_path: Path) -> None:
    model = timm.create_model("test_resnet", num_classes=7)
    x = torch.randn(2, 3, 64, 64)
    net = lwdna.shrink(model, 0.7, criterion="random", example_inputs=x, progress=False)
    lwdna.save(net, tmp_path)
    assert_same(net, lwdna.load(tmp_path), x)
    assert json.loads((tmp_path / "dna.json").read_text())["source"]["library"] == "timm"


def test_a_model_of_ones_own_needs_a_name_that_is_checked(tmp_path: Path) -> None:
    net = lwdna.shrink(Plain(14), 0.7, criterion="random", example_inputs=X, progress=False)
    with pytest.raises(lwdna.SourceError, match=r"source='package\.module:factory'"):
        lwdna.save(net, tmp_path)
    with pytest.raises(lwdna.DnaError, match="group 'stem' is 14 units"):
        lwdna.save(net, tmp_path, source=PLAIN)
    with pytest.raises(lwdna.SourceError, match="no attribute"):
        lwdna.save(net, tmp_path, source="tests.factories:nothing")
    assert not list(tmp_path.iterdir())
    lwdna.save(net, tmp_path, source=lwdna.ModelSource.of(PLAIN, width=14))
    assert_same_values(net, lwdna.load(tmp_path, trust=("tests",)))


def assert_same_values(net: nn.Module, again: nn.Module) -> None:
    for key, value in net.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda n: setattr(n.drop, "p", 0.5), "'p' of 'drop' is 0.5, and 0.1 in the other"),
        (lambda n: setattr(n, "act", nn.SiLU()), "'act' is a SiLU, and a ReLU in the other"),
        (lambda n: setattr(n, "fc", nn.Linear(10, 3)), "fc.weight' is floating"),
        (lambda n: setattr(n.again, "weight", nn.Parameter(n.body.weight.clone())), "shared with"),
    ],
)
def test_what_the_constructor_would_not_give_is_refused(
    change: Any, message: str, tmp_path: Path
) -> None:
    net = shrunk(HARD)
    change(net)
    with pytest.raises(lwdna.DnaError, match=message):
        lwdna.save(net, tmp_path / "n")
    assert not (tmp_path / "n").exists()


def test_what_has_no_dna_is_refused(net: nn.Module, tmp_path: Path) -> None:
    for other in (Plain(), lwdna.capture(Plain(), X), nn.DataParallel(net)):
        with pytest.raises(lwdna.DnaError, match=r"has no DNA.*net\.module"):
            lwdna.save(other, tmp_path)


@pytest.mark.parametrize("settings", [{"rate": float("nan")}, {"rate": float("inf")}, {"a": (1,)}])
def test_a_dna_that_would_not_be_read_is_not_written(
    settings: Any, net: nn.Module, tmp_path: Path
) -> None:
    other: Any = copy.deepcopy(net)
    dna = other.meta["lwdna"]
    other.meta["lwdna"] = replace(dna, settings={**dna.settings, **settings})
    with pytest.raises(lwdna.DnaError):
        lwdna.save(other, tmp_path / "n")
    assert not (tmp_path / "n").exists()


def test_nothing_that_is_saved_names_the_machine(tmp_path: Path) -> None:
    net = shrunk("timm:test_vit", torch.randn(2, 3, 160, 160))
    lwdna.save(net, tmp_path)
    places = {str(Path(module.__file__).parents[1]) for module in (lwdna, timm, torch)}  # type: ignore[arg-type]
    places |= {str(Path.home()), str(Path.cwd())}
    pickled = io.BytesIO()
    torch.save(net, pickled)
    found = [path.read_bytes() for path in tmp_path.iterdir()]
    for data in (*found, pickled.getvalue(), net.code.encode()):  # type: ignore[union-attr,operator]
        assert not [place for place in places if place.encode() in data]


def test_files_choose_no_code(folder: Path) -> None:
    with pytest.raises(lwdna.SourceError, match="pass trust="):
        lwdna.load(folder)
    with pytest.raises(lwdna.SourceError, match="pass trust="):
        lwdna.load(folder, trust=["tests.factory", "test", ""])
    with pytest.raises(TypeError, match="a sequence"):
        lwdna.load(folder, trust="tests")


def test_what_is_rebuilt_otherwise_in_one_step_is_rebuilt_in_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = shrunk(PLAIN, widen=1.5)
    at_once = []

    def other(a: nn.Module, b: nn.Module) -> Iterator[str]:
        at_once.append(True)
        return iter(["the code differs"] if len(at_once) == 1 else differences(a, b))

    monkeypatch.setattr(files, "differences", other)
    lwdna.save(net, tmp_path)
    assert not weights.read_state(tmp_path / files.WEIGHTS).at_once
    assert_same(net, lwdna.load(tmp_path, trust=TRUST), X)


# --- replacing a network ---


def test_a_save_that_was_cut_off_leaves_one_of_the_two(net: nn.Module, tmp_path: Path) -> None:
    """Every state of the directory between the steps of a save."""
    old, new = tmp_path / "old", tmp_path / "new"
    other = shrunk(PLAIN, budget=0.5)
    lwdna.save(net, old)
    lwdna.save(other, new)
    shutil.copy(new / "dna.json", old / "dna.json.new")
    assert_same(net, lwdna.load(old, trust=TRUST), X)
    shutil.copy(new / "model.safetensors", old / "model.safetensors")
    assert_same(other, lwdna.load(old, trust=TRUST), X)
    os.replace(old / "dna.json.new", old / "dna.json")
    assert_same(other, lwdna.load(old, trust=TRUST), X)
    (old / "dna.json").unlink()
    with pytest.raises(lwdna.DnaError, match=r"holds no dna\.json"):
        lwdna.load(old, trust=TRUST)


def test_an_error_while_writing_leaves_the_old_network(
    net: nn.Module, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_tensors: Any, path: Path, _metadata: Any) -> None:
        path.write_bytes(b"half of it")
        raise OSError("no space left on device")

    monkeypatch.setattr(weights, "save_file", fail)
    with pytest.raises(OSError, match="no space"):
        lwdna.save(shrunk(PLAIN, budget=0.5), folder)
    assert_same(net, lwdna.load(folder, trust=TRUST), X)
    assert not list(folder.glob(".*"))


KILLED = """
import sys
import torch
import lwdna
from tests.saved import shrunk

nets = [shrunk("tests.factories:plain", budget=b) for b in (0.7, 0.5)]
print("ready", flush=True)
while True:
    for net in nets:
        lwdna.save(net, sys.argv[1])
"""


def test_a_killed_process_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    folder = tmp_path / "n"
    known = [shrunk(PLAIN, budget=b) for b in (0.7, 0.5)]
    lwdna.save(known[0], folder)
    for delay in (0.05, 0.4):
        child = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(folder)], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None and child.stdout.readline() == "ready\n"
        time.sleep(delay)
        child.send_signal(signal.SIGKILL)
        child.wait()
        found = lwdna.load(folder, trust=TRUST)
        (same,) = [n for n in known if not list(differences(n, found))]
        assert_same(same, found, X)


# --- files of other versions and other networks ---


def test_newer_files_say_so(folder: Path) -> None:
    text = (folder / "dna.json").read_text()
    newer = text.replace('"format": 3', '"format": 4')
    assert newer != text
    (folder / "dna.json").write_text(newer)
    with pytest.raises(lwdna.DnaError, match="format 4; this version reads 3: update lwdna"):
        lwdna.load(folder, trust=TRUST)
    (folder / "dna.json").write_text(text.replace('"format": 3', '"format": 2'))
    with pytest.raises(lwdna.DnaError, match="shrink the network again"):
        lwdna.load(folder, trust=TRUST)


def test_a_newer_record_of_weights_says_so(
    net: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "VERSION", 2)
    lwdna.save(net, tmp_path)
    monkeypatch.undo()
    with pytest.raises(lwdna.DnaError, match="version 2; this lwdna reads 1: update lwdna"):
        lwdna.load(tmp_path, trust=TRUST)


def test_the_files_of_two_networks_are_no_pair(folder: Path, tmp_path: Path) -> None:
    lwdna.save(shrunk(PLAIN, budget=0.5), tmp_path / "other")
    shutil.copy(tmp_path / "other" / "dna.json", folder / "dna.json")
    with pytest.raises(lwdna.DnaError, match="is not the DNA of the weights beside it"):
        lwdna.load(folder, trust=TRUST)


def test_what_is_no_directory_of_a_network(tmp_path: Path, net: nn.Module) -> None:
    with pytest.raises(lwdna.DnaError, match=r"model\.safetensors cannot be read"):
        lwdna.load(tmp_path / "nowhere")
    (tmp_path / "dna.json").touch()
    with pytest.raises(lwdna.DnaError, match="is a file: pass the directory"):
        lwdna.load(tmp_path / "dna.json")
    weights.save_file({"a": torch.zeros(3)}, tmp_path / files.WEIGHTS)
    with pytest.raises(lwdna.DnaError, match=r"not written by lwdna\.save"):
        lwdna.load(tmp_path)
