"""docs/cli.md from the help of the commands: ``python -m benchmarks.cli_page`` writes it anew."""

from __future__ import annotations

from pathlib import Path

import click

from benchmarks.pages import refill
from lwdna.cli.application import main

PAGE = Path(__file__).parents[1] / "docs" / "cli.md"
_WIDTH = 100


def blocks() -> dict[str, str]:
    """Name of a command, or ``lwdna`` for all of it -> its help, in a block of text."""
    top = click.Context(main, info_name="lwdna", max_content_width=_WIDTH, terminal_width=_WIDTH)
    found = {"lwdna": _block(main.get_help(top))}
    for name in main.list_commands(top):
        command = main.get_command(top, name)
        assert command is not None
        own = click.Context(
            command, top, info_name=name, max_content_width=_WIDTH, terminal_width=_WIDTH
        )
        found[name] = _block(command.get_help(own))
    return found


def _block(text: str) -> str:
    return f"```text\n{text}\n```"


if __name__ == "__main__":
    refill(PAGE, "cli", blocks())
