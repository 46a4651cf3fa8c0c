"""The guides: their code runs as it stands, and they know all reasons that there are."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import lwdna
from tests.documents import ROOT, run_page

PACKAGE = Path(lwdna.__file__).parent
GUIDES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs/guides").glob("*.md"))


@pytest.mark.parametrize("page", ["docs/concepts.md", "docs/not-shrunk.md", *GUIDES])
def test_the_code_of_a_guide_runs(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it comes to, each page asserts itself."""
    monkeypatch.chdir(tmp_path)
    run_page(page)


def test_the_code_of_every_page_is_run_by_a_test() -> None:
    pages = [p for p in (ROOT / "docs").rglob("*.md") if "```python" in p.read_text("utf-8")]
    tests = "".join(path.read_text("utf-8") for path in (ROOT / "tests").rglob("*.py"))
    untested = [p.name for p in pages if p.name not in tests and p.parent.name != "guides"]
    assert len(pages) > 10 and not untested


def texts(node: ast.expr, known: dict[str, list[ast.expr]]) -> Iterator[str]:
    """What a text says wherever it says the same: a constant, the longest part of an f-string."""
    if isinstance(node, ast.Name):
        for value in known.get(node.id, ()):
            yield from texts(value, {})
        return
    values = node.values if isinstance(node, ast.JoinedStr) else [node]
    parts = [v.value for v in values if isinstance(v, ast.Constant) and isinstance(v.value, str)]
    if any(parts):
        yield max(parts, key=len).strip()


def reasons(path: Path) -> Iterator[str]:
    """Why a module of the package freezes channels."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    known: dict[str, list[ast.expr]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            known.setdefault(node.targets[0].id, []).append(node.value)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if called in ("freeze", "freeze_all", "_freeze"):
                yield from (text for a in node.args[1:] for text in texts(a, known))


def test_every_reason_is_explained() -> None:
    pages = ("docs/not-shrunk.md", "docs/regions.md")
    said = " ".join(" ".join((ROOT / page).read_text("utf-8").split()) for page in pages)
    oracle = PACKAGE / "fx_passes/masked.py"  # what it freezes, nobody is told
    found = {text for path in PACKAGE.rglob("*.py") if path != oracle for text in reasons(path)}
    found |= {"has no resize rule", "is a leaf of several layers", lwdna.graph.FROZEN_BY_USER}
    assert len(found) > 30
    assert not {text for text in found if text not in said}
