"""What all commands have: ``--json``, examples in the help, an answer, and one exit code."""

from __future__ import annotations

import dis
import json
import os
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
        document: for ``--json``, in JSON's types; numbers that JSON has not (NaN) become null.
        text: for people.
        yes: ``False`` where the answer to the command's question is no (exit code 1).
    """

    document: Any
    text: str
    yes: bool = True


class Command(click.Command):
    """A command that returns an :class:`Answer`; nothing else of it goes to stdout."""

    def __init__(
        self, *args: Any, examples: Sequence[str] = (), shared: bool = False, **settings: Any
    ) -> None:
        super().__init__(*args, **settings)
        self.examples, self.shared = tuple(examples), shared
        said = "One JSON document on stdout, and nothing else."
        self.params.append(click.Option(["--json", "as_json"], is_flag=True, help=said))

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command, say its answer, and exit."""
        as_json, started = ctx.params.pop("as_json"), time.perf_counter()
        try:
            with _said_on_stderr():
                answer: Answer = super().invoke(ctx)
        except Exception as e:
            if as_json and is_refusal(e):
                self._answer(_json({"error": _described(e)}))
            raise
        self._answer(_json(answer.document) if as_json else printable(answer.text))
        seconds = time.perf_counter() - started
        if seconds > _LONG_S and sys.stderr.isatty():
            click.echo(f"{seconds:.1f} s", err=True)
        ctx.exit(0 if answer.yes else 1)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The examples, line by line."""
        with formatter.section("Examples"):
            for line in self.examples:
                formatter.write(f"{'':{formatter.current_indent}}{line}\n")

    def _answer(self, text: str) -> None:
        if not self.shared or os.environ.get("RANK", "0") == "0":
            click.echo(text)


def command(
    *, examples: Sequence[str], shared: bool = False, **settings: Any
) -> Callable[[Callable[..., Answer]], Command]:
    """Make a command of a function that returns an :class:`Answer` (decorator).

    Args:
        examples: command lines for the help.
        shared: whether torchrun may start several processes, of which the first one answers.
        settings: of ``click.command``.
    """
    made: Callable[[Callable[..., Answer]], Command]
    made = click.command(cls=Command, examples=examples, shared=shared, **settings)
    return made


def printable(text: str) -> str:
    """Text without control characters: names in a file that came from anywhere may have some."""
    return "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text)


def is_refusal(e: Exception) -> bool:
    """Whether an error says that a network, data or a file will not do: the user's to mend."""
    if isinstance(e, ImportError):  # of an extra, such as lwdna[report]: the message names it
        return is_raised_here(e)
    return isinstance(e, (LwdnaError, OSError))


def is_raised_here(e: Exception) -> bool:
    """Whether an error was raised by a check of ours: by convention, an argument is wrong then.

    What C code raises has no frame of its own: only a raise statement of ours is such a check.
    """
    trace = e.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return False
    frame = trace.tb_frame
    raised = dis.opname[frame.f_code.co_code[trace.tb_lasti]] == "RAISE_VARARGS"
    return raised and str(frame.f_globals.get("__name__")).partition(".")[0] == "lwdna"


def _described(e: Exception) -> dict[str, Any]:
    found = {"type": type(e).__name__, "message": str(e)}
    return {**found, "attainable": e.attainable} if isinstance(e, BudgetError) else found


def _json(document: Any) -> str:
    plain = json.loads(json.dumps(document), parse_constant=lambda _: None)
    return json.dumps(plain, indent=1)


@contextmanager
def _said_on_stderr() -> Iterator[None]:
    """What libraries print, and warnings, go to stderr: stdout is for the answer."""

    def show(message: Warning | str, *_args: Any, **_named: Any) -> None:
        click.echo(printable(f"Warning: {message}"), err=True)

    with redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.showwarning = show
        yield
