"""docs/integrations.md: its blocks run as they stand."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from tests.integrations.page import run, sections


@pytest.fixture(scope="module")
def setup() -> dict[str, Any]:
    """What the block before all others defines."""
    names: dict[str, Any] = {}
    run(sections()[""], names)
    return names


@pytest.mark.parametrize(
    "heading", [head for head, blocks in sections().items() if head and blocks]
)
def test_the_blocks_of_a_section_run(
    heading: str, setup: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run(sections()[heading], {**setup, "net": copy.deepcopy(setup["net"])})
