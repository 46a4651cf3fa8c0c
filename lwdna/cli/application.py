"""The program ``lwdna``: its table of commands, and what its exit codes mean.

A command is imported when it is asked for. To add one, write a ``click.Command`` and name it in
:data:`COMMANDS`; :func:`lwdna.cli.command.command` gives it ``--json``, examples and exit codes.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import click

from lwdna import __version__
from lwdna.cli.command import is_raised_here, is_refusal, printable
from lwdna.errors import LwdnaError

#: Section of the help -> command -> (module:attribute, what it does).
COMMANDS: dict[str, dict[str, tuple[str, str]]] = {
    "Ask about a network": {
        "explain": ("lwdna.cli.inspection:explain", "List the channel groups, and why not each."),
        "attainable": ("lwdna.cli.inspection:attainable", "Say which budgets are within reach."),
        "cost": ("lwdna.cli.inspection:cost", "Count MACs, parameters and activations."),
        "verify": ("lwdna.cli.inspection:verify", "Check that lwdna handles a network rightly."),
        "zoo": ("lwdna.cli.zoo:zoo", "Search the models of timm and torchvision."),
        "criteria": ("lwdna.cli.criteria:criteria", "List what channels can be scored by."),
    },
    "Make a smaller one": {
        "shrink": ("lwdna.cli.shrink:shrink", "Find the widths within a budget, and save them."),
        "latency": ("lwdna.cli.latency:latency", "Measure operators, for a budget of latency."),
    },
    "Use what was saved": {
        "rebuild": (
            "lwdna.cli.rebuild:rebuild",
            "Give a fresh model the widths, or re-scale them.",
        ),
        "diff": ("lwdna.cli.diff:diff", "Compare the widths of two networks."),
        "report": ("lwdna.cli.report:report", "Write an HTML page on a shrunk network."),
        "export": ("lwdna.cli.export:export", "Write a network as an ONNX file or as source."),
    },
    "Train and measure": {
        "train": ("lwdna.cli.training:train", "Train a baseline or a shrunk network."),
        "eval": ("lwdna.cli.training:evaluate", "Measure a network on test sets."),
        "presets": ("lwdna.cli.training:presets", "List the published training protocols."),
    },
}

OK, NO, USAGE, REFUSED, DEFECT, INTERRUPTED = 0, 1, 2, 3, 4, 130

EXIT_CODES = {
    OK: "done; or the answer is yes",
    NO: "the answer is no: networks differ, an invariant does not hold, a budget is out of reach",
    USAGE: "the command line is wrong",
    REFUSED: "the network, the data or a file will not do; the message says why, and what would",
    DEFECT: "a defect of lwdna, of a library or of your own factory; with a traceback",
    INTERRUPTED: "Ctrl-C; no file is half written",
}


class Application(click.Group):
    """A group whose commands are imported one by one, with an exit code for each end."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of the table."""
        return [name for commands in COMMANDS.values() for name in commands]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        for commands in COMMANDS.values():
            if cmd_name in commands:
                module, _, attribute = commands[cmd_name][0].partition(":")
                command: click.Command = getattr(import_module(module), attribute)
                return command
        return None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Sections of commands, from the table: nothing is imported."""
        for section, commands in COMMANDS.items():
            with formatter.section(section):
                formatter.write_dl([(name, said) for name, (_, said) in commands.items()])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The exit codes."""
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(code), said) for code, said in EXIT_CODES.items()])

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        """Run a command line; every way to end is one of :data:`EXIT_CODES`."""
        run = partial(super().main, *args, **extra)
        code = _exit_code(lambda: run(standalone_mode=False))
        if standalone_mode:
            sys.exit(code)
        return code


def _exit_code(run: Callable[[], int | None]) -> int:
    try:
        return run() or OK
    except click.Abort:
        click.echo("interrupted", err=True)
        return INTERRUPTED
    except click.UsageError as e:
        e.show()
        return USAGE
    except Exception as e:
        if is_refusal(e):
            plain = isinstance(e, (LwdnaError, ImportError))
            return _said(str(e) if plain else f"{type(e).__name__}: {e}", REFUSED)
        if isinstance(e, (ValueError, TypeError)) and is_raised_here(e):
            return _said(str(e), USAGE)
        traceback.print_exc()
        return DEFECT


def _said(message: str, code: int) -> int:
    click.echo(printable(f"Error: {message}"), err=True)
    return code


@click.command(cls=Application)
@click.version_option(__version__, prog_name="lwdna")
def main() -> None:
    """Find the layer-wise widths of a vision network that beat its regular ones, at lower cost.

    MODEL is timm:NAME, torchvision:NAME, package.module:FACTORY (a function of yours that returns
    a network; its module is looked for in the current directory, too), or a directory that lwdna
    saved. `lwdna COMMAND --help` has examples; every command takes --json.
    """
