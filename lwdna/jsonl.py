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


def resume(path: Path, head: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The records in a file, to go on with; the file is begun if there is none.

    A last line without an end, which a full disk or a crash of the machine may leave, is cut off.

    Args:
        path: of the file.
        head: its first line, in JSON's types: what the records are records of.

    Returns:
        The lines after the first.

    Raises:
        ValueError: the file is of another head, or a line is no JSON object; names the line. The
            file stays as it is.
    """
    if not path.exists():
        append(path, head)
        return []
    text = path.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    lines = [_record(path, number, line) for number, line in enumerate(whole.splitlines(), 1)]
    if not lines or lines[0] != head:
        raise ValueError(f"{path} is a record of something else: line 1 is not {json.dumps(head)}")
    if len(whole) < len(text):
        os.truncate(path, len(whole))
    return lines[1:]


def _record(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as e:
        raise ValueError(f"{path}, line {number}, is no JSON: {e}") from e
    if not isinstance(record, dict):
        raise ValueError(f"{path}, line {number}, is no JSON object")
    return record
