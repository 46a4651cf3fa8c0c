"""train, eval, presets: the library's results, what is refused, Ctrl-C, and several processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import lwdna
from lwdna.training import (
    PRESETS,
    Machine,
    Protocol,
    evaluate,
    fit,
    open_data,
    open_network,
    read_result,
)
from tests.cli.commands import answer, run

ROOT = Path(__file__).parents[2]
NETWORK = ("timm:test_resnet", "--arg", "num_classes=10")
FAKE = ("--data", "fake:32", "--device", "cpu", "--threads", "1")
CHANGES = ("epochs=2", "milestones=[1]", "batch=16", "images.size=16")
SHORT = (
    *("--preset", "cifar-resnet56", *FAKE),
    *(word for change in CHANGES for word in ("--set", change)),
)
CPU = Machine(device="cpu", threads=1)


def by_api(*changes: str) -> tuple[Protocol, Any]:
    protocol = PRESETS["cifar-resnet56"].but([*CHANGES, *changes])
    return protocol, open_data("fake:32", protocol)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A run, and what the command said of it."""
    out = tmp_path_factory.mktemp("trained") / "run"
    return out, answer("train", *NETWORK, *SHORT, "--seed", 3, "-o", out)


def test_train_is_the_librarys_fit(trained: tuple[Path, Any]) -> None:
    out, found = trained
    assert found == json.loads(read_result(out).to_json())
    protocol, data = by_api()
    model = open_network("timm:test_resnet", {"num_classes": 10}, seed=3)
    expected = fit(model, protocol, data, seed=3, machine=CPU)
    assert found["epochs"] == list(map(dict, expected.epochs))
    assert found["batches"] == list(expected.batches) and found["seed"] == 3
    again = lwdna.load(out / "network").state_dict()
    assert all(torch.equal(t, again[name]) for name, t in model.state_dict().items())


def test_eval_is_the_librarys_and_takes_the_runs_protocol(
    trained: tuple[Path, Any], tmp_path: Path
) -> None:
    out, result = trained
    found = answer("eval", out, *FAKE)
    last = result["epochs"][-1]
    assert found["test"] == pytest.approx({k: last[f"test/{k}"] for k in found["test"]})
    protocol, data = by_api("images.size=24")
    expected = evaluate(open_network(str(out)), protocol, data, machine=CPU)
    assert answer("eval", out, *FAKE, "--set", "images.size=24") == expected
    said = run("eval", out, *FAKE).stdout
    assert "test/top1" in said and f"{found['test']['top1']:.4f}" in said
    file = tmp_path / "mine.json"
    file.write_text(protocol.to_json())
    assert answer("eval", out, *FAKE, "--protocol", file) == expected


def test_widths_are_trained_from_fresh_weights_and_networks_go_on(
    trained: tuple[Path, Any], tmp_path: Path
) -> None:
    out, _ = trained
    dna = tmp_path / "small.json"
    line = ("rebuild", out / "network", "--macs", "0.6", "-o", tmp_path / "small")
    dna.write_text(json.dumps(answer(*line)["dna"]))
    found = answer("train", dna, *SHORT, "--seed", 1, "--set", "lr=0.01")
    assert found["cost"] is None  # nothing is kept, and so nothing is counted
    fresh = open_network(str(dna), seed=1)
    protocol, data = by_api("lr=0.01")
    expected = fit(fresh, protocol, data, seed=1, machine=CPU)
    assert found["epochs"] == list(map(dict, expected.epochs))
    text = run("train", out, *FAKE, "--set", "epochs=1", "--set", "schedule=constant",
               "--set", "milestones=[]").stdout  # fmt: skip
    assert "test/top1" in text and "name a directory" in text and "train/loss" in text


def test_a_factory_in_the_current_directory_and_further_test_sets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("1e3", "b"):
        (tmp_path / name).mkdir()
        Image.effect_noise((32, 32), 50).save(tmp_path / name / "0.png")
    text = "import torch\n\n\ndef build():\n    conv = torch.nn.Conv2d(3, 48, 3, padding=1)\n"
    text += "    return torch.nn.Sequential(conv, torch.nn.PixelShuffle(4))\n"
    (tmp_path / "upscaler_of_a_test.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    # As of the installed program, which does not look for modules where it is started.
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    preset = ("--preset", "sr-x4-edsr", "--set", "patches.size=16", "--data", "fake:1")
    line = ("eval", "upscaler_of_a_test:build", *preset, *FAKE[2:])
    found = answer(*line, "--test", "one=1e3", "--test", "two=b")
    assert {"one", "two"} < found.keys() and found["one"].keys() == {"psnr", "ssim"}


def test_a_teacher(trained: tuple[Path, Any]) -> None:
    out, _ = trained
    kd = ("--set", 'distillation={"weight": 0.4, "temperature": 4.0}')
    assert "needs a teacher" in run("train", *NETWORK, *SHORT, *kd, code=3).stderr
    taught = answer("train", *NETWORK, *SHORT, *kd, "--teacher", out)
    plain = answer("train", *NETWORK, *SHORT)
    assert taught["batches"] == plain["batches"]
    assert taught["epochs"][0]["train/loss"] != plain["epochs"][0]["train/loss"]
    named = (*kd, "--teacher", "timm:test_resnet", "--teacher-arg")
    again = answer("train", *NETWORK, *SHORT, *named, "num_classes=10")
    assert again["batches"] == plain["batches"]
    error = answer("train", *NETWORK, *SHORT, *named, "num_classes=3", code=3)["error"]
    assert "the teacher's outputs are" in error["message"]


PRESET = ("--preset", "cifar-resnet56")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (NETWORK, "which protocol?"),
        ((*NETWORK, "--preset", "imagenet"), "one of imagenet-resnet50"),
        ((*NETWORK, *PRESET, "--protocol", __file__), "one of them"),
        ((*NETWORK, "--protocol", "none.toml"), "does not exist"),
        (("timm:test_resnet", *PRESET, "--arg", "classes"), "write key=value"),
        ((*NETWORK, "--arg", "num_classes=3", *PRESET), "given twice"),
        ((*NETWORK, *PRESET, "--test", "set5"), "write name=folder"),
        ((*NETWORK, *PRESET, "--set", "epoch=1"), "--set: 'epoch=1' changes no setting"),
        ((*NETWORK, *PRESET, "--log", "wandb", "-o", "x"), "wandb"),
        ((*NETWORK, *PRESET, "--log", "csv"), "--log: name the directory"),
        ((*NETWORK, *PRESET, "--resume"), "--resume: name the directory"),
        ((*NETWORK, *PRESET, "--workers", "-1"), "--workers"),
        ((*NETWORK, *PRESET, "--device", "toaster"), "--device toaster"),
        ((*NETWORK, *PRESET, "--device", "cuda:99"), "--device cuda:99: PyTorch finds"),
        ((*NETWORK, *PRESET, "--teacher-arg", "a=1"), "--teacher-arg: name the network"),
        (
            (*NETWORK, *PRESET, "--teacher", "tests", "--teacher-arg", "a=1"),
            "--teacher-arg: tests says already how",
        ),
        (("resnet18", *PRESET), "names no model"),
        (("tests", *PRESET, "--arg", "a=1"), "says already how"),
    ],
)
def test_a_wrong_command_line(line: Sequence[str], said: str) -> None:
    result = run("train", *line, "--data", "fake:16", "--json", code=2)
    assert said in result.stderr and not result.stdout


def test_options_reach_the_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """All that no small run shows, by standing in for the library."""
    calls: dict[str, Any] = {}

    def noting(name: str, result: Any) -> None:
        def call(*args: Any, **named: Any) -> Any:
            calls.setdefault(name, []).append((args, named))
            if name in ("fit", "evaluate"):
                raise lwdna.TrainingError("far enough")
            return result

        monkeypatch.setattr(f"lwdna.training.{name}", call)

    for name in ("open_network", "open_data", "fit", "evaluate"):
        noting(name, name)
    machine = ("--device", "cpu", "--workers", 2, "--threads", 3, "--channels-last")
    common = (*NETWORK, *PRESET, *machine, "--data", "d", "--download", "--test", "a=b",
              "--trust", "m", "--trust", "n")  # fmt: skip
    own = ("--compile", "--teacher", ".", "--test-every", 5, "--log", "tensorboard", "--log", "csv",
           "--seed", 7, "-o", tmp_path, "--resume")  # fmt: skip
    run("train", *common, *own, code=3)
    run("eval", *common, code=3)
    protocol = PRESETS["cifar-resnet56"]
    opened = ("timm:test_resnet", {"num_classes": 10})
    trust = {"trust": ("m", "n")}
    assert calls["open_network"] == [
        (opened, {"seed": 7, **trust}), ((".", {}), {"seed": 0, **trust}),
        (opened, {"seed": 0, **trust}),
    ]  # fmt: skip
    plain = Machine("cpu", 2, 3, channels_last=True)
    compiled = replace(plain, compile=True)
    asked = {"tests": {"a": "b"}, "download": True}
    assert calls["open_data"] == [
        (("d", protocol), {**asked, "machine": machine}) for machine in (compiled, plain)
    ]
    ((fitted, named),) = calls["fit"]
    assert fitted == ("open_network", protocol, "open_data")
    assert named == {
        "seed": 7, "output": tmp_path, "resume": True, "teacher": "open_network",
        "machine": compiled,
        "loggers": ("tensorboard", "csv"), "test_every": 5,
    }  # fmt: skip
    assert calls["evaluate"] == [(fitted, {"machine": plain})]


def test_what_will_not_do() -> None:
    error = answer("train", "timm:nothing", *SHORT, code=3)["error"]
    assert error["type"] == "SourceError" and "has no model 'nothing'" in error["message"]
    error = answer("eval", *NETWORK, *PRESET, "--data", "nowhere", code=3)["error"]
    assert error["type"] == "TrainingError" and "name a folder" in error["message"]


def test_a_run_is_not_overwritten(trained: tuple[Path, Any]) -> None:
    out, found = trained
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    said = run("train", *NETWORK, *SHORT, "--seed", 3, "-o", out, code=2).stderr
    assert "checkpoint.pt is there already: --resume goes on with it" in said
    error = answer("train", *NETWORK, *SHORT, "--seed", 4, "-o", out, "--resume", code=3)["error"]
    assert "seed was 3, is 4" in error["message"]
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    again = answer("train", *NETWORK, *SHORT, "--seed", 3, "-o", out, "--resume")
    assert again == found, "a finished run is not trained again"


def test_presets() -> None:
    found = answer("presets")["presets"]
    assert [Protocol.from_json(json.dumps(p)) for p in found] == list(PRESETS.values())
    said = run("presets").stdout
    for name, protocol in PRESETS.items():
        assert name in said and protocol.source in said


def start(*line: object, launcher: Sequence[str] = ()) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", *launcher, "lwdna", *map(str, line)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def test_ctrl_c_leaves_whole_files(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with start("train", *NETWORK, *SHORT, "--set", "epochs=5000", "-o", out, "--json") as child:
        while child.poll() is None and not (out / "checkpoint.pt").exists():
            time.sleep(0.02)
        child.send_signal(signal.SIGINT)
        stdout, said = child.communicate(timeout=120)
    assert child.returncode == 130 and not stdout
    assert said.strip().splitlines()[-1] == "interrupted" and "Traceback" not in said
    assert "\r" not in said, "no bars where there is no terminal"
    state = torch.load(out / "checkpoint.pt", weights_only=True)
    assert 1 <= state["epoch"] < 5000
    names = {path.relative_to(out).parts[0] for path in out.rglob("*")}
    assert names == {"checkpoint.pt", "logs"}


def test_two_processes_of_torchrun_say_one_thing(tmp_path: Path) -> None:
    out = tmp_path / "run"
    line = ("train", *NETWORK, *SHORT, "-o", out, "--json")
    launcher = ("torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m")
    with start(*line, launcher=launcher) as child:
        stdout, said = child.communicate(timeout=300)
    assert child.returncode == 0, said[-3000:]
    found = json.loads(stdout)
    assert found == json.loads(read_result(out).to_json()) and found["processes"] == 2
    alone = answer(*line[:-1], "--resume", code=3)["error"]
    assert "processes was 2, is 1" in alone["message"]
