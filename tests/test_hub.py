"""The layout of the Hugging Face Hub, in a local folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import lwdna
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
    other = json.loads((tmp_path / "config.json").read_text()) | {"seed": 7}
    (tmp_path / "config.json").write_text(json.dumps(other))
    with pytest.raises(lwdna.DnaError, match="is not the DNA of the weights"):
        HubNetwork.from_pretrained(tmp_path, trust=TRUST)
