"""Files of JSON lines that grow while a long job runs, and outlive its being killed."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def append(path: Path, line: Mapping[str, Any]) -> None:
    """Add one line in one write: a job that is interrupted leaves whole lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(file, (json.dumps(line) + "\n").encode())
    finally:
        os.close(file)


def resume(path: Path) -> list[dict[str, Any]]:
    """The lines of a file, to go on with; none if there is no file.

    A last line without an end, which a full disk or a crash of the machine may leave, is cut off.

    Raises:
        ValueError: a line is no JSON object; names the line. The file stays as it is.
    """
    if not path.exists():
        return []
    text = path.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    lines = []
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            record = json.loads(line)
        except ValueError as e:
            raise ValueError(f"{path}, line {number}, is no JSON: {e}") from e
        if not isinstance(record, dict):
            raise ValueError(f"{path}, line {number}, is no JSON object")
        lines.append(record)
    if len(whole) < len(text):
        os.truncate(path, len(whole))
    return lines
