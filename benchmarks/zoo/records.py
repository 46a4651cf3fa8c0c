"""The sweep's file: JSON lines, one for each run and one for each model.

A run's line has ``"run"``, its id, with versions, settings, device and commit; a model's line names
the run that made it. Lines are appended as they come; the last line of a model counts.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lwdna.jsonl import append

__all__ = ["Record", "Results", "append", "is_ok", "key_of", "read", "tidy"]

Record = dict[str, Any]


@dataclass(frozen=True)
class Results:
    """What a file holds.

    Attributes:
        runs: run id -> its line.
        models: model name -> its last line, by name.
    """

    runs: dict[str, Record]
    models: dict[str, Record]

    def done(self, key: str, *, redo_failed: bool) -> set[str]:
        """Models that a run with this key (:func:`key_of`) need not examine again."""
        same = {run for run, line in self.runs.items() if line["key"] == key}
        return {
            name
            for name, record in self.models.items()
            if record["run"] in same and (record["ok"] or not redo_failed)
        }

    @property
    def expected(self) -> int:
        """How many models the zoos have, in the versions that the models were examined with."""
        return max((self.runs[r["run"]]["models"] for r in self.models.values()), default=0)

    def select(self, names: Iterable[str]) -> Results:
        """The results of these models alone, by name."""
        return Results(self.runs, {n: self.models[n] for n in sorted(names) if n in self.models})


def key_of(versions: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """What makes results comparable: versions and settings, not the commit or the day."""
    text = json.dumps([versions, settings], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def read(path: Path) -> Results:
    """The results in a file; none if there is no file.

    Raises:
        ValueError: a line is not one of ours; names the line.
    """
    runs: dict[str, Record] = {}
    models: dict[str, Record] = {}
    lines = path.read_text().splitlines() if path.exists() else []
    for number, text in enumerate(lines, 1):
        try:
            line = json.loads(text)
            if "name" in line:
                models[line["name"]] = line
            else:
                runs[line["run"]] = line
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}, line {number}, is no record of the sweep: delete it and resume"
            ) from error
    return Results(runs, dict(sorted(models.items())))


def tidy(path: Path) -> Results:
    """Sort a file and drop what is out of date; the file is replaced in one step."""
    results = read(path)
    used = {record["run"] for record in results.models.values()}
    runs = (line for run, line in sorted(results.runs.items()) if run in used)
    _replace(path, (*runs, *results.models.values()))
    return results


def _replace(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    new = path.with_suffix(path.suffix + ".new")
    new.write_text("".join(json.dumps(line) + "\n" for line in lines))
    os.replace(new, path)


def is_ok(record: Mapping[str, Any]) -> bool:
    """Whether a model came through every stage and no oracle is broken."""
    return "failure" not in record and bool(record.get("held")) and not record.get("broken")
