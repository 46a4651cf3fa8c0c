"""The site of docs/: it builds without a warning, its links lead somewhere, nothing is fetched."""

from __future__ import annotations

import os
import pkgutil
import re
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from tests.documents import ROOT

pytest.importorskip("mkdocstrings")
pytest.importorskip("lightning_fabric")

#: The modules whose ``__all__`` is public, the narrower ones last.
PUBLIC = ("lwdna", "lwdna.rules", "lwdna.recipes", "lwdna.scoring", "lwdna.latency")
PUBLIC += ("lwdna.hub", "lwdna.training")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


class Page(HTMLParser):
    """Links, anchors, and what a browser would fetch by itself."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.fetched: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {key: value or "" for key, value in attrs}
        self.anchors |= {given[key] for key in ("id", "name") if key in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        self.fetched += [given["src"]] if "src" in given else []
        self.fetched += [given["href"]] if tag == "link" else []


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},  # the theme's advertisement
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert built.returncode == 0, built.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in sorted(site.rglob("*.html")) if path.name != "404.html"}


def test_links_and_anchors_of_the_site_lead_somewhere(site: Path, pages: dict[Path, Page]) -> None:
    inside = 0
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert target.is_file(), f"{path.relative_to(site)}: {link}"
            if parts.fragment and target in pages:
                anchors = pages[target].anchors
                assert unquote(parts.fragment) in anchors, f"{path.relative_to(site)}: {link}"
            inside += 1
    assert inside > 1000
    assert (site / "repository/benchmarks/results/bm_budget.json").is_file()
    assert (site / "repository/tests/test_support.py").is_file()


def test_nothing_is_fetched_from_elsewhere(site: Path, pages: dict[Path, Page]) -> None:
    for path, page in pages.items():
        for address in page.fetched:
            assert not urlsplit(address).netloc, f"{path.relative_to(site)}: {address}"
    styles = "".join(p.read_text("utf-8") for p in site.rglob("*.css"))
    assert styles and not re.search(r"(@import|url\()\s*[\"']?(https?:)?//", styles)


def test_docstrings_are_markdown(pages: dict[Path, Page], site: Path) -> None:
    """Roles are links, examples are code, sections are told apart."""
    text = (site / "reference/shrink.html").read_text(encoding="utf-8")
    assert ":func:" not in text and ":class:" not in text and "doctest:" not in text
    assert 'href="graph.html#lwdna.capture"' in text
    assert "<blockquote>" not in text
    assert "Raises" in text and "BudgetError" in text


def public() -> dict[int, list[str]]:
    """Each public object, by id, and the names that it has."""
    found: dict[int, list[str]] = {}
    for name in PUBLIC:
        module = import_module(name)
        for attribute in getattr(module, "__all__", ["HubNetwork"]):
            value = getattr(module, attribute)
            if not isinstance(value, ModuleType):
                found.setdefault(id(value), []).append(f"{name}.{attribute}")
    return found


def documented() -> dict[str, Any]:
    """Each name in the reference, and what it is in Python."""
    texts = [path.read_text("utf-8") for path in sorted((ROOT / "docs").rglob("*.md"))]
    names = re.findall(r"^::: (\S+)$", "\n".join(texts), flags=re.MULTILINE)
    assert [name for name, times in Counter(names).items() if times > 1] == []
    return {name: pkgutil.resolve_name(name) for name in names}


def test_every_public_name_is_on_exactly_one_page() -> None:
    places = Counter(id(value) for value in documented().values())
    objects = public()
    assert len(objects) > 100
    wrong = {names[0]: places[key] for key, names in objects.items() if places[key] != 1}
    assert not wrong


def targets(page: Path) -> list[str]:
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", text))


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere_in_the_repository(page: Path) -> None:
    """As they are followed where the repository is browsed, without a site."""
    for link in targets(page):
        parts = urlsplit(link)
        if parts.scheme:
            continue
        target = (page.parent / parts.path).resolve() if parts.path else page
        assert target.is_file(), link
        if parts.fragment:
            headings = re.findall(r"^#+ (.*)$", target.read_text("utf-8"), flags=re.MULTILINE)
            assert parts.fragment in {slug(heading) for heading in headings}, link


def slug(heading: str) -> str:
    """The anchor of a heading, as both GitHub and Markdown's ``toc`` make it of plain words."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")
