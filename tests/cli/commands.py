"""Runs command lines in this process."""

from __future__ import annotations

import json
from typing import Any

from click.testing import CliRunner, Result

from lwdna.cli import main

#: Milliseconds to capture.
PLAIN = "tests.factories:plain"
SMALL = ("--input", "3x16x16")


def run(*line: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(word) for word in line])
    assert result.exit_code == code, (result.exit_code, result.stderr, result.exception)
    return result


def answer(*line: object, code: int = 0) -> Any:
    """The document of ``--json``; there is nothing else on stdout."""
    return json.loads(run(*line, "--json", code=code).stdout)
