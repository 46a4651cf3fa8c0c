"""The code of docs/integrations.md, which the tests of that page and of several processes run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "docs/integrations.md"


def sections() -> dict[str, list[str]]:
    """Heading -> its blocks of Python, in order; those before the first heading under ``""``."""
    parts = re.split(r"^## (.*)\n", PAGE.read_text(), flags=re.MULTILINE)
    pairs = zip(("", *parts[1::2]), parts[::2], strict=True)
    return {head: re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL) for head, text in pairs}


def run(blocks: list[str], names: dict[str, Any]) -> None:
    """Execute blocks one after the other, in one namespace."""
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
