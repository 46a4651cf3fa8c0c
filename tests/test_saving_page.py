"""The code of docs/saving.md."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

PAGE = Path(__file__).parents[1] / "docs" / "saving.md"


def test_the_code_of_the_documentation_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert len(blocks) == 5
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    torch.manual_seed(0)
    exec(compile("\n".join(blocks), str(PAGE), "exec"), names)
    dna, smaller = names["dna"], names["smaller"]
    assert smaller.after.macs <= 0.6 * dna.before.macs < dna.after.macs
    said = capsys.readouterr().out
    assert f"{smaller.after.macs:,}" in said and "groups are the same" in said
