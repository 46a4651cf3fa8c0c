"""A report as a browser shows it: nothing fetched, run, cut off or printed over something else."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest

import lwdna
from lwdna.reporting.figures import FIGURES
from tests.report_pages import HOSTILE, Net, Page, X

pytest.importorskip("matplotlib")
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium on the PATH")

#: What the page looks like, from within: put at the end of a copy of it.
MEASURE = """
<pre id="measured"></pre><script>
const texts = svg => [...svg.querySelectorAll("text")].map(t => t.getBoundingClientRect());
const overlap = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
    && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 2;
const inside = (a, b) => a.left >= b.left - 1 && a.right <= b.right + 1
    && a.top >= b.top - 1 && a.bottom <= b.bottom + 1;
const svgs = [...document.querySelectorAll("svg")];
document.getElementById("measured").textContent = JSON.stringify({
  fetched: performance.getEntriesByType("resource").length,
  sideways: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  widths: svgs.map(svg => svg.getBoundingClientRect().width),
  labels: svgs.map(svg => texts(svg).length),
  overlaps: svgs.map(svg => texts(svg).reduce((n, a, k, all) =>
      n + all.slice(k + 1).filter(b => overlap(a, b)).length, 0)),
  cut: svgs.map(svg => texts(svg).filter(
      t => !inside(t, svg.getBoundingClientRect())).length),
  ink: svgs.map(svg => getComputedStyle(svg.querySelector("text")).fill),
  rows: [...document.querySelectorAll("#widths-section tbody tr")].length,
});
</script></body>"""


def dom(page: Path, *options: str) -> str:
    """The page's document as the browser has it."""
    assert BROWSER is not None
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += [f"--user-data-dir={page.parent / 'profile'}", *options, "--dump-dom"]
    done = subprocess.run([*command, page.as_uri()], capture_output=True, timeout=240, check=True)
    return done.stdout.decode()


def measured(page: Path, *options: str) -> dict[str, Any]:
    """What :data:`MEASURE` finds, on a copy of the page that lets it run."""
    text = page.read_text(encoding="utf-8")
    assert text.count("default-src 'none'") == text.count("</body>") == 1
    text = text.replace("default-src 'none'", "default-src 'none'; script-src 'unsafe-inline'")
    copy = page.with_name("measured.html")
    copy.write_text(text.replace("</body>", MEASURE), encoding="utf-8")
    found = re.search(r'<pre id="measured">(.*?)</pre>', dom(copy, *options), flags=re.DOTALL)
    assert found is not None and found[1]
    values: dict[str, Any] = json.loads(unescape(found[1]))
    return values


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    net = lwdna.shrink(Net(), 0.7, criterion="magnitude", example_inputs=X, progress=False)
    return lwdna.report(net, tmp_path_factory.mktemp("report") / "r.html", groups=["stem", "fc"])


def test_the_browser_has_the_page_that_was_written(page: Path) -> None:
    found = Page(dom(page))
    written = Page(page.read_text(encoding="utf-8"))
    assert found.tags.count("svg") == written.tags.count("svg") == len(FIGURES) + 2
    assert found.tags.count("tr") == written.tags.count("tr")
    assert "script" not in found.tags
    assert any(HOSTILE in text for text in found.text)
    assert "Dependency graph of stem" in found.text


def test_nothing_is_fetched_cut_off_or_printed_over_something_else(page: Path) -> None:
    found = measured(page, "--window-size=1200,2000")
    assert found["fetched"] == 0 and found["sideways"] <= 0
    assert min(found["labels"]) > 1
    assert not any(found["overlaps"]) and not any(found["cut"])
    assert found["rows"] == 4  # channel groups


def test_a_narrow_window_scrolls_the_figures_and_not_the_page(page: Path) -> None:
    found = measured(page, "--window-size=500,2000")
    assert found["sideways"] <= 0
    assert min(found["widths"]) > 600  # its labels can still be read


@pytest.mark.parametrize(("scheme", "ink"), [(0, "rgb(255, 255, 255)"), (1, "rgb(0, 0, 0)")])
def test_figures_have_the_ink_of_the_page(page: Path, scheme: int, ink: str) -> None:
    found = measured(page, f"--blink-settings=preferredColorScheme={scheme}")
    assert set(found["ink"]) == {ink}
