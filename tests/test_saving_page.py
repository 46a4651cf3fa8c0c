"""The code of docs/saving.md."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.documents import run_page


def test_the_code_of_the_documentation_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names = run_page("docs/saving.md")
    dna, smaller = names["dna"], names["smaller"]
    assert smaller.after.macs <= 0.6 * dna.before.macs < dna.after.macs
    said = capsys.readouterr().out
    assert f"{smaller.after.macs:,}" in said and "groups are the same" in said
