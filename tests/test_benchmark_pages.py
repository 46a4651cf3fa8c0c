"""The figures of the documents are those of the records."""

from __future__ import annotations

import shutil
from pathlib import Path

from benchmarks import report
from benchmarks.record import ROOT


def test_the_pages_are_what_the_records_make(tmp_path: Path) -> None:
    pages = [tmp_path / str(number) for number, _ in enumerate(report.PAGES)]
    for page, copy in zip(report.PAGES, pages, strict=True):
        shutil.copy(page, copy)
    report.main(pages)
    for page, copy in zip(report.PAGES, pages, strict=True):
        where = page.relative_to(ROOT)
        assert copy.read_text() == page.read_text(), f"{where}: run python -m benchmarks.report"


def test_every_block_is_on_a_page() -> None:
    text = "".join(page.read_text() for page in report.PAGES)
    assert all(f"<!-- bench:{name} -->" in text for name in report.tables())
