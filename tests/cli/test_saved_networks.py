"""rebuild, diff, export, and questions about networks that were saved."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

import pytest
import torch

import lwdna
from tests.cli.commands import PLAIN, SMALL, answer, run

TRUST = ("--trust", "tests.factories")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("saved") / "net"
    run("shrink", PLAIN, *SMALL, "--macs", "0.8", "--criterion", "magnitude", "-o", out)
    return out


def test_questions_about_a_saved_network(folder: Path) -> None:
    dna = lwdna.load(folder, trust=["tests.factories"]).meta["lwdna"]
    found = answer("cost", folder, *TRUST)
    assert found == {"model": str(folder), **dna.after.as_dict()}, "on the DNA's own input"
    assert answer("verify", folder, *TRUST)["holds"]
    rows = answer("explain", folder, *TRUST)["groups"]
    widths = {group.name: group.width for group in dna.groups}
    assert {row["group"]: row["width"] for row in rows} == widths


def test_a_file_cannot_name_the_code_that_runs(folder: Path) -> None:
    error = answer("cost", folder, code=3)["error"]
    assert error["type"] == "SourceError" and "tests.factories" in error["message"]
    assert "says already how" in run("cost", folder, *TRUST, "--arg", "width=3", code=2).stderr


def test_diff_is_like_diff(folder: Path, tmp_path: Path) -> None:
    assert answer("diff", folder, folder / "dna.json")["same"]
    other = tmp_path / "other"
    run("rebuild", folder, *TRUST, "--macs", "0.6", "-o", other)
    found = answer("diff", folder, other, code=1)
    a, b = (lwdna.Dna.from_json((p / "dna.json").read_text()) for p in (folder, other))
    expected = lwdna.diff(a, b)
    assert not found["same"] and found["fields"].keys() == {*expected.fields}
    assert [g["name"] for g in found["groups"]] == [g.name for g, _ in expected.groups if g]
    assert found["groups"][0]["b"]["width"] == expected.groups[0][1].width
    assert found["after"]["b"] == b.after.as_dict()
    assert run("diff", folder, other, code=1).stdout == f"{expected}\n"


@pytest.mark.parametrize(
    ("text", "said"), [("{", "damaged"), ("{}", "format"), (None, "cannot be read")]
)
def test_diff_of_what_is_no_dna(folder: Path, tmp_path: Path, text: str | None, said: str) -> None:
    path = tmp_path / "a.json"
    if text is not None:
        path.write_text(text)
    error = answer("diff", folder, path, code=3)["error"]
    assert (
        error["type"] == "DnaError" and said in error["message"] and str(path) in error["message"]
    )


def test_rebuild_is_that_of_the_library(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "again"
    found = answer("rebuild", folder / "dna.json", *TRUST, "--weights", "fresh", "-o", out)
    dna = lwdna.Dna.from_json((folder / "dna.json").read_text())
    assert found["dna"] == json.loads(dna.to_json())
    torch.manual_seed(dna.seed)
    expected = lwdna.rebuild(lwdna.create(PLAIN), dna, weights="fresh").state_dict()
    again = lwdna.load(out, trust=["tests.factories"]).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in expected.items())
    assert "--force" in run("rebuild", folder, *TRUST, "-o", out, code=2).stderr
    run("rebuild", folder, *TRUST, "--weights", "fresh", "--seed", 7, "-o", out, "--force")
    other = lwdna.load(out, trust=["tests.factories"]).state_dict()
    assert not torch.equal(other["stem.weight"], again["stem.weight"])
    small = answer("rebuild", folder, *TRUST, "--params", "0.6", "-o", tmp_path / "half")["dna"]
    assert small["after"]["params"] <= 0.6 * small["before"]["params"]
    assert small == json.loads(
        dna.at(lwdna.Budget(params="0.6"), trust=["tests.factories"]).to_json()
    )


def test_export_to_onnx(folder: Path, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    path = tmp_path / "net.onnx"
    found = answer("export", folder, path, *TRUST)
    assert found["bytes"] == path.stat().st_size and found["difference"] < 1e-4
    net = lwdna.load(folder, trust=["tests.factories"]).eval()
    x = torch.rand(5, 3, 16, 16)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (theirs,) = session.run(None, {"input": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(theirs), net(x).detach(), rtol=1e-4, atol=1e-5)
    assert "--force" in run("export", folder, path, *TRUST, code=2).stderr
    assert "FILE.onnx or FILE.py" in run("export", folder, tmp_path / "net.pt", code=2).stderr
    assert "no directory" in run("export", PLAIN, tmp_path / "a.onnx", code=2).stderr


def test_an_onnx_file_that_computes_something_else_is_not_kept(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    monkeypatch.setattr("lwdna.cli.onnx_files.CLOSE", -1.0)
    error = answer("export", folder, tmp_path / "net.onnx", *TRUST, code=3)["error"]
    assert error["type"] == "VerificationError" and not list(tmp_path.iterdir())


def test_a_report_is_written_beside_the_network(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("jinja2")
    page = folder / "report.html"
    assert answer("report", folder) == {"page": str(page)}
    assert "<html" in page.read_text()
    assert "--force" in run("report", folder, code=2).stderr
    other = tmp_path / "page.html"
    line = ("report", folder, *TRUST, "--group", "inner", "-o", other)
    assert answer(*line) == {"page": str(other)}
    assert len(other.read_text()) > len(page.read_text()), "with the graph of the group"
    assert (
        "the network is needed"
        in run(
            "report", folder / "dna.json", "--group", "inner", "-o", tmp_path / "b.html", code=2
        ).stderr
    )


def test_export_as_source(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "exported_by_the_command.py"
    found = answer("export", folder, path, *TRUST)
    monkeypatch.syspath_prepend(tmp_path)
    again = getattr(import_module(path.stem), found["class"])()
    net = lwdna.load(folder, trust=["tests.factories"]).eval()
    again.load_state_dict(net.state_dict())
    x = torch.rand(2, 3, 16, 16)
    assert torch.equal(again.eval()(x), net(x))
