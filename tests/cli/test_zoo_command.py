"""zoo: figures, patterns, and a file that outlives Ctrl-C and kill -9."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import pytest

import lwdna
from tests.cli.commands import PLAIN, SMALL, answer, run

MODELS = ("timm:test_vit*", "timm:test_resnet", "timm:test_byobnet")


def lines_of(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_figures_of_a_model() -> None:
    (found,) = answer("zoo", "timm:test_vit")["models"]
    model = lwdna.create("timm:test_vit")
    assert found["name"] == "timm:test_vit" and found["input"] == [[3, 160, 160]]
    assert found["params"] == sum(p.numel() for p in model.parameters())
    assert found["macs"] == answer("cost", "timm:test_vit")["macs"]
    assert 0.8 < found["prunable_macs"] <= 1 and 0.8 < found["prunable_params"] <= 1
    assert f"{found['macs']:,}" in run("zoo", "timm:test_vit").stdout


def test_patterns_names_and_order() -> None:
    names = answer("zoo", "timm:resnet18", "torchvision:resnet*", "--names")["models"]
    assert names[0] == "timm:resnet18" and "torchvision:resnet50" in names
    assert "matches no model" in run("zoo", "resnet18000", code=2).stderr
    both = answer("zoo", "timm:test_vit", "timm:test_resnet", "--sort", "params")["models"]
    assert [m["params"] for m in both] == sorted(m["params"] for m in both)


def test_a_model_that_fails_is_an_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    true = lwdna.capture

    def failing(model: Any, inputs: Any) -> Any:
        if type(model).__name__ == "ResNet":
            raise lwdna.CaptureError("no way")
        return true(model, inputs)

    monkeypatch.setattr("lwdna.zoo.capture", failing)
    line = ("zoo", "timm:test_vit", "timm:test_resnet", "--sort", "macs")
    first, second = answer(*line)["models"]
    assert first["name"] == "timm:test_vit"
    assert second == {"name": "timm:test_resnet", "error": "CaptureError: no way"}
    assert "timm:test_resnet: CaptureError: no way" in run(*line).stdout


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"mine": 1}\n', "something else"),
        ('{"mine": 1}\n{"mi', "something else"),
        ("mine", "something else"),
        ("mine\n", "line 1, is no JSON"),
        ("[1]\n", "line 1, is no JSON object"),
    ],
)
def test_a_file_of_something_else_is_left_alone(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "notes.jsonl"
    path.write_text(text)
    result = run("zoo", "timm:test_vit", "-o", path, code=2)
    assert said in result.stderr and "another file, or --force" in result.stderr
    assert path.read_text() == text


def test_a_file_of_other_settings_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "zoo.jsonl"
    path.write_text("mine")
    run("zoo", "timm:test_vit", "-o", path, "--force")
    head, record = lines_of(path)
    assert head["lwdna_zoo"] == 1 and record["name"] == "timm:test_vit"
    other = ("zoo", "timm:test_vit", "--input", "3x192x192", "-o", path)
    assert "something else" in run(*other, code=2).stderr
    assert lines_of(path) == [head, record]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_killed_it_goes_on_where_it_stopped(number: signal.Signals, tmp_path: Path) -> None:
    path = tmp_path / "zoo.jsonl"
    line = [sys.executable, "-m", "lwdna", "zoo", *MODELS, "-o", str(path)]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        while child.poll() is None and (not path.exists() or path.read_text().count("\n") < 3):
            time.sleep(0.02)
        child.send_signal(number)
        out, said = child.communicate(timeout=300)
    assert not out
    if number is signal.SIGINT:
        assert child.returncode == 130 and said.strip().splitlines()[-1] == "interrupted"
        assert "Traceback" not in said and "\r" not in said, "no bars where there is no terminal"
    _, *done = lines_of(path)
    assert len(done) >= 2
    with path.open("a") as file:
        file.write('{"name": "timm:te')  # what a crash of the machine may leave
    looked_at: list[str] = []
    found = _resumed(path, looked_at)
    assert {r["name"] for r in done}.isdisjoint(looked_at)
    _, *lines = lines_of(path)
    assert lines[: len(done)] == done
    assert sorted(lines, key=lambda r: r["name"]) == found
    assert (
        len(found) == len(done) + len(looked_at) == len(answer("zoo", *MODELS, "--names")["models"])
    )


def _resumed(path: Path, looked_at: list[str]) -> Any:
    from lwdna import zoo

    true = zoo.facts
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            zoo, "facts", lambda name, shapes: looked_at.append(name) or true(name, shapes)
        )
        return answer("zoo", *MODELS, "-o", path)["models"]


def test_a_terminal_shows_a_bar_and_stdout_is_still_json() -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    line = [sys.executable, "-m", "lwdna", "cost", PLAIN, *SMALL, "--json"]
    done = subprocess.run(line, stdout=subprocess.PIPE, stderr=theirs, timeout=300, check=True)
    os.close(theirs)
    said = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert json.loads(done.stdout)["params"]
    assert "lwdna: capture" in said and "\r" in said
