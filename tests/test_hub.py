"""The layout of the Hugging Face Hub, in a local folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi, RepoUrl

import lwdna
from lwdna import weights
from lwdna.hub import HubNetwork
from tests.saved import TRUST, X, assert_same, shrunk


def test_a_folder_as_on_the_hub(tmp_path: Path) -> None:
    net = shrunk("tests.factories:plain")
    whole = HubNetwork(net)
    assert torch.equal(whole(X), net(X))
    whole.save_pretrained(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"README.md", "config.json", "model.safetensors"}
    assert lwdna.Dna.from_json((tmp_path / "config.json").read_text()) == net.meta["lwdna"]
    assert "library_name: lwdna" in (tmp_path / "README.md").read_text()
    again = HubNetwork.from_pretrained(tmp_path, trust=TRUST)
    assert_same(net, again.net, X)
    assert_same(net, lwdna.load(tmp_path, trust=TRUST), X)
    again.save_pretrained(tmp_path)  # over the old one
    assert_same(net, HubNetwork.from_pretrained(tmp_path, trust=TRUST).net, X)
    with pytest.raises(lwdna.SourceError, match="pass trust="):
        HubNetwork.from_pretrained(tmp_path)
    for text in ("[]", "{", '{"a": ' * 5000, "\xff"):
        (tmp_path / "broken").mkdir(exist_ok=True)
        (tmp_path / "broken" / "config.json").write_text(text, encoding="latin-1")
        with pytest.raises(lwdna.DnaError):
            HubNetwork.from_pretrained(tmp_path / "broken", trust=TRUST)
    forged = json.loads((tmp_path / "config.json").read_text())
    for key in ("net", "config", "trust", "self"):  # the mixin hands on what the class takes
        (tmp_path / "broken" / "config.json").write_text(json.dumps({**forged, key: ["os"]}))
        shutil.copy(tmp_path / "model.safetensors", tmp_path / "broken")
        with pytest.raises(lwdna.LwdnaError):
            HubNetwork.from_pretrained(tmp_path / "broken")
    other = json.loads((tmp_path / "config.json").read_text()) | {"seed": 7}
    (tmp_path / "config.json").write_text(json.dumps(other))
    with pytest.raises(lwdna.DnaError, match="is not the DNA of the weights"):
        HubNetwork.from_pretrained(tmp_path, trust=TRUST)


@pytest.mark.parametrize("fails", ["save_file", "first_names"])
def test_a_save_that_fails_leaves_the_old_network_on_the_hub(
    fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError("no space left on device")

    net = shrunk("tests.factories:plain")
    HubNetwork(net).save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(weights, fails, fail)
        with pytest.raises(OSError, match="no space"):
            HubNetwork(shrunk("tests.factories:plain", budget=0.5)).save_pretrained(tmp_path)
    for name, data in before.items():
        assert (tmp_path / name).read_bytes() == data
    assert_same(net, HubNetwork.from_pretrained(tmp_path, trust=TRUST).net, X)


def test_a_network_is_uploaded_as_it_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub's client is replaced: what it would be given is a folder that can be loaded."""
    net, uploaded = shrunk("tests.factories:plain"), []

    def upload_folder(_: Any, *, repo_id: str, folder_path: Path, **options: Any) -> str:
        uploaded.append((repo_id, options["commit_message"]))
        assert_same(net, HubNetwork.from_pretrained(folder_path, trust=TRUST).net, X)
        return "address"

    monkeypatch.setattr(HfApi, "create_repo", lambda *_, repo_id, **__: RepoUrl(f"me/{repo_id}"))
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    whole = HubNetwork(net)
    said = whole.save_pretrained(tmp_path / "r", push_to_hub=True, commit_message="first")
    assert said == "address" and uploaded == [("me/r", "first")]
    assert whole.push_to_hub("other") == "address" and uploaded[-1][0] == "me/other"
