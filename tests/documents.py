"""The pages of the documentation: their Python blocks run, as a reader would run them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def run_page(page: str, changes: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Run the Python blocks of a page in order, in one namespace.

    Args:
        page: its path in the repository.
        changes: words of the code -> other words, which make it quicker.

    Returns:
        The names that the code left.
    """
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = list(re.finditer(r"^```python\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE))
    assert blocks and len(blocks) == text.count("```python"), (
        f"{page} has a block that is not closed"
    )
    for old in changes or {}:
        assert any(old in block[1] for block in blocks), f"{page} no longer says {old!r}"
    names: dict[str, Any] = {}
    for block in blocks:
        code = block[1]
        for old, new in (changes or {}).items():
            code = code.replace(old, new)
        lines = "\n" * text.count("\n", 0, block.start(1))  # errors tell the line of the page
        exec(compile(lines + code, str(ROOT / page), "exec"), names)
    return names
