"""docs/peers.md: each of the fifteen complaints has an answer, its limits, and tests that exist."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs/peers.md").read_text(encoding="utf-8")
#: Number of the complaint -> its section.
SECTIONS = dict(re.findall(r"^## (\d+)\. (.*?)(?=^## |\Z)", TEXT, flags=re.DOTALL | re.MULTILINE))
_TEST = re.compile(r"\[(tests/[\w/]+\.py)::(\w+)\]\(\.\./([^)]+)\)")


@cache
def functions(path: str) -> set[str]:
    """The test functions that pytest collects from a file."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return {
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def test_there_are_fifteen() -> None:
    assert list(SECTIONS) == [str(n) for n in range(1, 16)]


@pytest.mark.parametrize("number", SECTIONS)
def test_each_is_answered_by_tests_that_exist(number: str) -> None:
    section = SECTIONS[number]
    for part in ("**Met.**", "**lwdna.**", "**Limits.**", "**Shown by**"):
        assert section.count(part) == 1, part
    tests = _TEST.findall(section)
    assert tests and len(tests) == section.count("::")
    for path, name, link in tests:
        assert link == path and name in functions(path), f"{path}::{name}"
