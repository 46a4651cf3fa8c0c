"""The commands train and eval."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import lwdna
from lwdna.training import PRESETS, read_result
from lwdna.training.cli import main

SHORT = [
    "--preset", "cifar-resnet56", "--data", "fake:32", "--device", "cpu", "--threads", "1",
    "--set", "epochs=2", "--set", "milestones=[1]", "--set", "batch=16", "--set", "images.size=16",
]  # fmt: skip


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def test_from_training_to_measuring(tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    done = invoke(
        "train", "timm:test_resnet", "--arg", "num_classes=10", *SHORT, "-o", run, "--json"
    )
    assert done.exit_code == 0, done.output
    result = read_result(run)
    assert json.loads(done.stdout) == json.loads(result.to_json())
    assert (result.protocol.epochs, result.protocol.batch) == (2, 16)
    measured = invoke("eval", run, "--data", "fake:32", "--device", "cpu", "--json")
    assert measured.exit_code == 0, measured.output
    found = json.loads(measured.stdout)["test"]
    assert found == pytest.approx({name: result.metrics[f"test/{name}"] for name in found})
    fresh = invoke("train", f"{run}/network/dna.json", *SHORT, "--seed", "1")
    assert (
        fresh.exit_code == 0 and "test/top1" in fresh.stdout and "name a directory" in fresh.stdout
    )
    again = invoke("train", run, "--data", "fake:32", "--device", "cpu", "--set", "epochs=1",
                   "--set", "milestones=[]", "--set", "schedule=constant")  # fmt: skip
    assert again.exit_code == 0, again.output


def test_a_wrong_command_line_says_what_is_wrong(tmp_path: Path) -> None:
    network = ["timm:test_resnet", "--data", "fake"]
    for arguments, said in (
        ([], "which protocol?"),
        (["--preset", "imagenet"], "one of imagenet-resnet50"),
        (["--preset", "cifar-resnet56", "--protocol", "p.json"], "one of them"),
        (["--preset", "cifar-resnet56", "--arg", "classes"], "write key=value"),
        (["--preset", "cifar-resnet56", "--log", "wandb"], "wandb"),
    ):
        done = invoke("train", *network, *arguments)
        assert done.exit_code == 2 and said in done.output, done.output
    refused = invoke("train", *network, "--preset", "cifar-resnet56", "--set", "epoch=1")
    assert isinstance(refused.exception, lwdna.TrainingError)


def test_presets_are_listed() -> None:
    done = invoke("train", "--presets")
    assert done.exit_code == 0 and all(name in done.output for name in PRESETS)
