"""What all commands have: ``--json``, examples in the help, an answer, and one exit code."""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any

import click

from lwdna.errors import BudgetError, LwdnaError

#: Seconds from which on a command says, on a terminal, how long it took.
_LONG_S = 1.0


@dataclass(frozen=True)
class Answer:
    """What a command found.

    Attributes:
        document: for ``--json``, in JSON's types.
        text: for people.
        yes: ``False`` where the answer to the command's question is no (exit code 1).
    """

    document: Any
    text: str
    yes: bool = True


class Command(click.Command):
    """A command that returns an :class:`Answer`; nothing else of it goes to stdout."""

    def __init__(self, *args: Any, examples: Sequence[str] = (), **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.examples = tuple(examples)
        said = "One JSON document on stdout, and nothing else."
        self.params.append(click.Option(["--json", "as_json"], is_flag=True, help=said))

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command, say its answer, and exit."""
        as_json, started = ctx.params.pop("as_json"), time.perf_counter()
        try:
            with _said_on_stderr():
                answer: Answer = super().invoke(ctx)
        except LwdnaError as e:
            if as_json:
                click.echo(_json({"error": _described(e)}))
            raise
        click.echo(_json(answer.document) if as_json else printable(answer.text))
        seconds = time.perf_counter() - started
        if seconds > _LONG_S and sys.stderr.isatty():
            click.echo(f"{seconds:.1f} s", err=True)
        ctx.exit(0 if answer.yes else 1)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The examples, line by line."""
        with formatter.section("Examples"):
            for line in self.examples:
                formatter.write(f"{'':{formatter.current_indent}}{line}\n")


def command(
    *, examples: Sequence[str], **settings: Any
) -> Callable[[Callable[..., Answer]], Command]:
    """Make a command of a function that returns an :class:`Answer` (decorator).

    Args:
        examples: command lines for the help.
        settings: of ``click.command``.
    """
    made: Callable[[Callable[..., Answer]], Command]
    made = click.command(cls=Command, examples=examples, **settings)
    return made


def printable(text: str) -> str:
    """Text without control characters: names in a file that came from anywhere may have some."""
    return "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text)


def _described(e: LwdnaError) -> dict[str, Any]:
    found = {"type": type(e).__name__, "message": str(e)}
    return {**found, "attainable": e.attainable} if isinstance(e, BudgetError) else found


def _json(document: Any) -> str:
    return json.dumps(document, indent=1, allow_nan=False)


@contextmanager
def _said_on_stderr() -> Iterator[None]:
    """What libraries print, and warnings, go to stderr: stdout is for the answer."""

    def show(message: Warning | str, *_args: Any, **_named: Any) -> None:
        click.echo(printable(f"Warning: {message}"), err=True)

    with redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.showwarning = show
        yield
