"""shrink: the library's result, its data, what it refuses, and what an interruption leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from PIL import Image

import lwdna
from lwdna.cli.images import batches
from lwdna.selection import Allocation
from tests.cli.commands import PLAIN, SMALL, answer, run

X = torch.empty(2, 3, 16, 16, device="meta")
LINE = ("shrink", PLAIN, *SMALL, "--macs", "0.8")
BLIND = (*LINE, "--criterion", "magnitude")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three classes of four images."""
    rng, folder = np.random.default_rng(0), tmp_path / "photos"
    for k, name in enumerate(("cat", "dog", "eel")):
        (folder / name).mkdir(parents=True)
        for n in range(4):
            pixels = rng.integers(0, 256, (20 + k, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{n}.png")
    return folder


def by_api(seed: int = 0, **settings: Any) -> Any:
    torch.manual_seed(seed)
    model = lwdna.create(PLAIN)
    net = lwdna.shrink(model, "0.8", example_inputs=X, seed=seed, progress=False, **settings)
    return json.loads(net.meta["lwdna"].to_json())


def test_without_data_it_is_the_librarys_result() -> None:
    found = answer(*BLIND)
    assert found == {"dna": by_api(criterion="magnitude"), "saved": None}
    options = ("--widen", "1", "--divisor", "2", "--floor", "0.3", "--freeze", "stem", "--seed", 3)
    constraints = lwdna.Constraints(divisor=2, floors=lwdna.Floors(fraction=0.3), freeze=("stem",))
    expected = by_api(seed=3, widen=1.0, constraints=constraints, criterion="magnitude")
    assert answer(*BLIND, *options)["dna"] == expected


@pytest.mark.parametrize("allocation", get_args(Allocation))
def test_every_allocation_is_offered(allocation: str) -> None:
    given = ("--params", "0.6", "--allocation", allocation)
    found = answer(*BLIND, *given)["dna"]
    assert found["settings"]["allocation"] == allocation


def test_on_images_it_is_the_librarys_result(photos: Path) -> None:
    given = ("--images", photos, "--batch-size", 3, "--criterion-arg", "normalize=false")
    found = answer(*LINE, *given)["dna"]
    data = batches(photos, lwdna.create(PLAIN), (3, 16, 16), count=2, batch_size=3, seed=0)
    criterion = lwdna.get_criterion("latent-grad", normalize=False)
    assert found == by_api(data=data, criterion=criterion)
    assert found["criterion"] == "latent-grad(normalize=False)"


def test_several_limits_and_the_table(tmp_path: Path) -> None:
    out = tmp_path / "net"
    said = run(*BLIND, "--params", "0.7", "--flops", "95%", "--activations", "5K", "-o", out).stdout
    dna = lwdna.load(out, trust=["tests.factories"]).meta["lwdna"]
    assert dna.limits.keys() == {"macs", "params", "flops_paper", "activations"}
    assert f"{dna.after.macs:,}" in said and f"{dna.limits['params']:,}" in said
    assert f"lwdna export {out} net.onnx --trust tests.factories" in said
    assert f"lwdna.load('{out}', trust=['tests.factories'])" in said


def test_what_is_saved_is_what_was_said_and_is_not_overwritten(tmp_path: Path) -> None:
    out = tmp_path / "net"
    found = answer(*BLIND, "-o", out)
    assert found["saved"] == str(out)
    net = lwdna.load(out, trust=["tests.factories"])
    assert json.loads(net.meta["lwdna"].to_json()) == found["dna"]
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert "--force replaces it" in run(*BLIND, "--seed", 5, "-o", out, code=2).stderr
    assert before == {path.name: path.read_bytes() for path in out.iterdir()}
    assert answer(*BLIND, "--seed", 5, "-o", out, "--force")["dna"]["seed"] == 5
    assert lwdna.load(out, trust=["tests.factories"]).meta["lwdna"].seed == 5
    file = tmp_path / "file"
    file.touch()
    assert "is a file" in run(*BLIND, "-o", file, "--force", code=2).stderr


def test_an_interruption_leaves_the_old_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "net"
    run(*BLIND, "-o", out)
    old = lwdna.load(out, trust=["tests.factories"])

    def half(_net: Any, path: Path, _digest: str, **_: Any) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("lwdna.weights.write", half)
    result = run(*BLIND, "--seed", 5, "-o", out, "--force", code=130)
    assert result.stderr.strip().endswith("interrupted") and not result.stdout
    new = lwdna.load(out, trust=["tests.factories"])
    assert new.meta["lwdna"] == old.meta["lwdna"]
    for name, tensor in old.state_dict().items():
        assert torch.equal(tensor, new.state_dict()[name])
    fresh = tmp_path / "fresh"
    run(*BLIND, "-o", fresh, code=130)
    assert not list(fresh.glob("*.safetensors")) and not list(fresh.glob(".*"))
    monkeypatch.undo()
    run(*BLIND, "-o", fresh)  # what was left is in nobody's way


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["shrink", PLAIN], "give a budget"),
        (LINE, "pass --images DIR, or --fake-data"),
        ([*LINE, "--fake-data", "--images", "."], "one of them"),
        ([*LINE, "--latency", "0.8"], "lwdna latency"),
        ([*LINE, "--criterion", "none"], "criterion 'none': one of"),
        ([*LINE, "--criterion", "snip", "--criterion-arg", "a=1"], "no option 'a'"),
        (["shrink", "somewhere", "--macs", "0.8", "--fake-data"], "names no model"),
        ([*BLIND, "--params", "few"], "budget params='few'"),
        ([*BLIND, "--floor", "3"], "fraction=3.0"),
        ([*BLIND, "--device", "toaster"], "--device toaster"),
    ],
)
def test_what_is_refused(line: list[str], said: str) -> None:
    result = run(*line, code=2)
    assert said in result.stderr and not result.stdout


def test_a_budget_out_of_reach_tells_what_is_within() -> None:
    error = answer("shrink", PLAIN, *SMALL, "--macs", "0.01", "--criterion", "random", code=3)
    assert error["error"]["type"] == "BudgetError"
    least, most = error["error"]["attainable"]["macs"]
    assert 0 < least < most


def test_fake_data_says_so_loudly() -> None:
    result = run(*LINE, "--fake-data", "--json")
    assert "FAKE DATA" in result.stderr and "synthetic noise" in result.stderr
    assert json.loads(result.stdout)["dna"]["criterion"] == "latent-grad"


def test_no_more_files_are_read_than_are_scored(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    true_open = Image.open

    def noting(path: str) -> Any:
        opened.append(Path(path).name)
        return true_open(path)

    monkeypatch.setattr(Image, "open", noting)
    net = lwdna.create(PLAIN)
    first, second = batches(photos, net, (3, 16, 16), count=2, batch_size=3, seed=0)
    assert len(opened) == 6 and first[0].shape == (3, 3, 16, 16) and second[1].shape == (3,)
    again = batches(photos, net, (3, 16, 16), count=2, batch_size=3, seed=0)
    other = batches(photos, net, (3, 16, 16), count=2, batch_size=3, seed=1)
    assert torch.equal(first[0], again[0][0]) and not torch.equal(first[0], other[0][0])


def test_images_are_prepared_as_the_model_says(photos: Path) -> None:
    """By an oracle: timm's own data set and transform on the whole folder."""
    from timm.data import create_dataset, create_transform, resolve_model_data_config

    model = lwdna.create("timm:test_resnet", num_classes=3)
    settings = resolve_model_data_config(model)
    data = create_dataset(
        "", str(photos), transform=create_transform(**settings, is_training=False)
    )
    expected = {(label, float(image.sum())) for image, label in data}
    ((images, labels),) = batches(photos, model, None, count=1, batch_size=12, seed=0)
    assert images.shape[1:] == settings["input_size"]
    found = zip(labels.tolist(), images.sum((1, 2, 3)).tolist(), strict=True)
    for label, total in found:
        assert any(label == k and abs(total - other) < 1e-2 for k, other in expected)


def test_too_few_images_make_smaller_batches(photos: Path) -> None:
    result = run(*LINE, "--images", photos, "--batch-size", 50)
    assert "has 12 images: batches of 6" in result.stderr
    assert "3 class folders, and the network has 5 classes" in result.stderr
    assert "train` refuses it" in result.stderr and "--arg num_classes=3" in result.stderr


def test_a_data_set_is_scored_on_its_training_part(photos: Path, tmp_path: Path) -> None:
    whole = tmp_path / "data"
    whole.mkdir()
    photos.rename(whole / "train")
    (whole / "val" / "cat").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(whole / "val" / "cat" / "0.png")
    result = run(*LINE, "--images", whole, "--batch-size", 3)
    assert "the training part" in result.stderr


def test_images_that_will_not_do(photos: Path, tmp_path: Path) -> None:
    for n in range(3):
        (photos / f"more{n}").mkdir()
        Image.new("RGB", (8, 8)).save(photos / f"more{n}" / "0.png")
    said = run(*LINE, "--images", photos, code=2).stderr
    assert "6 class folders, and the network tells 5 classes apart" in said
    assert "--arg num_classes=6" in said
    flat = tmp_path / "flat"
    flat.mkdir()
    Image.new("RGB", (8, 8)).save(flat / "0.png")
    assert "a folder of its own" in run(*LINE, "--images", flat, code=2).stderr
    (flat / "class").mkdir()
    (flat / "class" / "0.png").write_bytes(b"no image")
    assert "0.png cannot be read" in run(*LINE, "--images", flat, code=2).stderr
    gray = ("shrink", PLAIN, "--input", "1x16x16", "--macs", "0.8", "--images", photos)
    assert "images are 3xHxW" in run(*gray, code=2).stderr
    two = (*LINE, *SMALL, "--images", photos)
    assert "several --input" in run(*two, code=2).stderr


def test_latency_from_the_table_that_was_measured(tmp_path: Path) -> None:
    table = tmp_path / "table.json"
    quick = ("--configurations", 4, "--repeats", 1, "--divisor", 1)
    found = answer("latency", PLAIN, *SMALL, *quick, "-o", table)
    assert found["saved"] == str(table) and found["setting"]["shapes"] == [[1, 3, 16, 16]]
    assert len(lwdna.LatencyTable.load(table).operators) == found["operators"]
    assert "--force" in run("latency", PLAIN, *SMALL, *quick, "-o", table, code=2).stderr
    # A limit that every machine keeps: what less is within reach depends on it and on the moment.
    line = ("shrink", PLAIN, *SMALL, "--latency", "1000ms", "--latency-table", table)
    result = run(*line, "--params", "100%", "--widen", "1", "--criterion", "random")
    assert "latency" in result.stdout and " ms" in result.stdout
    other = ("shrink", "timm:test_resnet", "--latency", "0.9", "--latency-table", table)
    assert answer(*other, "--criterion", "random", code=3)["error"]["type"] == "LatencyError"
