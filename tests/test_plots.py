"""The documents' plots and tables are made from the records."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import plots, report
from benchmarks.pages import filled


@pytest.mark.parametrize("name", plots.PLOTS)
def test_a_plot_is_drawn_from_its_record_the_same_twice(name: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    draw, file = plots.PLOTS[name]
    drawn = []
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
        draw(tmp_path / folder / file)
        drawn.append((tmp_path / folder / file).read_bytes())
    assert drawn[0] == drawn[1] and len(drawn[0]) > 5000
    assert (plots.DOCS / file).exists(), "run python -m benchmarks.plots"


@pytest.mark.parametrize("page", report.PAGES, ids=lambda page: page.name)
def test_the_pages_tables_are_those_of_the_records(page: Path) -> None:
    text = page.read_text()
    assert "<!-- bench:" in text
    assert filled(text, "bench", report.tables()) == text, "run python -m benchmarks.report"
