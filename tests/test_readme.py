"""README's Python blocks run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


def test_the_code_of_the_readme_runs(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert len(blocks) == 3
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block.replace("224, 224", "64, 64"), str(README), "exec"), names)
    least_to_most, widths = capsys.readouterr().out.splitlines()
    assert least_to_most.startswith("(")
    ratio = float(widths.split()[0])
    assert 0.4 < ratio <= 0.906
