"""Generated blocks of the documents: text between ``<!-- KIND:NAME -->`` and its end mark."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path


def filled(page: str, kind: str, blocks: Mapping[str, str]) -> str:
    """A page with its blocks of one kind replaced.

    Args:
        page: its text.
        kind: first word of the marks.
        blocks: second word of the marks -> new text between them.

    Raises:
        ValueError: the page has a block of this kind that is not generated.
    """

    def block(match: re.Match[str]) -> str:
        name = match[1]
        if name not in blocks:
            raise ValueError(f"<!-- {kind}:{name} -->: one of {', '.join(blocks)}")
        return f"<!-- {kind}:{name} -->\n{blocks[name]}\n<!-- /{kind}:{name} -->"

    pattern = rf"<!-- {kind}:(\w+) -->\n.*?<!-- /{kind}:\1 -->"
    return re.sub(pattern, block, page, flags=re.DOTALL)


def refill(path: Path, kind: str, blocks: Mapping[str, str]) -> None:
    """:func:`filled`, in place."""
    path.write_text(filled(path.read_text(), kind, blocks))
