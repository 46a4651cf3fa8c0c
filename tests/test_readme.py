"""README's Python blocks run as they stand."""

from __future__ import annotations

import pytest

from tests.documents import run_page


def test_the_code_of_the_readme_runs(capsys: pytest.CaptureFixture[str]) -> None:
    run_page("README.md", {"224, 224": "64, 64"})
    least_to_most, widths = capsys.readouterr().out.splitlines()
    assert least_to_most.startswith("(")
    ratio = float(widths.split()[0])
    assert 0.4 < ratio <= 0.906
