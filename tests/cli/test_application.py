"""The program: its table of commands, help, exit codes, and what goes to stdout."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from click.testing import CliRunner, Result

import lwdna
from benchmarks import cli_page
from benchmarks.pages import filled
from lwdna.cli import main
from lwdna.cli.application import COMMANDS, EXIT_CODES
from lwdna.cli.command import Answer, command
from tests.cli.commands import PLAIN, SMALL, answer, run

NAMES = [name for commands in COMMANDS.values() for name in commands]
ROOT = Path(__file__).parents[2]
GUIDES = ["docs/guides/classification.md", "docs/guides/restoration.md"]


def command_of(name: str) -> click.Command:
    found = main.get_command(click.Context(main), name)
    assert found is not None
    return found


def command_lines(text: str) -> Iterator[list[str]]:
    """The words of each command line of a shell script; what torchrun starts, without torchrun."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line.partition(" || ")[0], comments=True)
        yield words[words.index("-m") + 1 :] if words[0] == "torchrun" else words


def check_line(words: list[str]) -> None:
    """Raises where there is no such command or option, or a value is wrong."""
    assert words[0] == "lwdna" and words[1] in NAMES
    command = command_of(words[1])
    values, rest, _ = command.make_parser(click.Context(command)).parse_args(words[2:])
    assert not rest
    for parameter in command.params:
        value = values.get(parameter.name)
        if isinstance(value, (str, list)) and not isinstance(parameter.type, click.Path):
            parameter.type_cast_value(click.Context(command), value)


@pytest.mark.parametrize("name", NAMES)
def test_the_help_of_every_command(name: str) -> None:
    """It has examples, which are command lines."""
    said = run(name, "--help").stdout
    assert "--json" in said
    lines = re.findall(r"^  ((?:torchrun .* -m )?lwdna (?:.*\\\n)*.*)", said, flags=re.MULTILINE)
    examples = [words for line in lines for words in command_lines(line)]
    assert any(words[1] == name for words in examples)
    for words in examples:
        check_line(words)


@pytest.mark.parametrize("page", ["README.md", "docs/cli.md", "docs/training.md", *GUIDES])
def test_the_command_lines_of_the_pages(page: str) -> None:
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)
    lines = [words for block in blocks for words in command_lines(block)]
    assert len(lines) > 1
    for words in lines:
        check_line(words)


def test_the_help_names_all_commands_and_exit_codes() -> None:
    said = run("--help").stdout
    for name in NAMES:
        assert f"\n  {name} " in said
    for code in EXIT_CODES:
        assert f"\n  {code} " in said
    assert run("--version").stdout.strip().endswith(lwdna.__version__)


def test_help_does_not_wait_for_torch() -> None:
    code = (
        "import sys\n"
        "from lwdna.cli import main\n"
        f"for line in [['--help'], ['--version'], *([name, '--help'] for name in {NAMES!r})]:\n"
        "    main(line, standalone_mode=False)\n"
        "assert not {'torch', 'timm', 'numpy', 'lwdna._public'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, stdout=subprocess.PIPE)


def test_the_page_is_that_of_the_help() -> None:
    page = cli_page.PAGE.read_text()
    assert page == filled(page, "cli", cli_page.blocks()), "python -m benchmarks.cli_page"
    assert all(f"<!-- cli:{name} -->" in page for name in NAMES)


def test_the_entry_point() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, attribute = scripts["lwdna"].partition(":")
    assert getattr(import_module(module), attribute) is main


def refuse() -> None:
    lwdna.Budget(macs="many")


def defect() -> None:
    torch.empty(2).view(3, 3).reshape(-1).index_select(5, torch.tensor([0]))


def foreign() -> None:
    int("many")


def inside() -> None:
    """What C code raises when the library calls it is no check of an argument."""
    exec("int('many')", {"__name__": "lwdna.somewhere"})


def extra() -> None:
    exec("raise ImportError('pip install lwdna[more]')", {"__name__": "lwdna.somewhere"})


def missing() -> None:
    import_module("no_such_module")


def interrupt() -> None:
    raise KeyboardInterrupt


def full() -> None:
    raise OSError(28, "No space left on device")


def out_of_reach() -> None:
    raise lwdna.BudgetError("too low", {"macs": (5, 9)})


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        (refuse, 2, "Error: budget macs='many'"),
        (out_of_reach, 3, "Error: too low"),
        (full, 3, "No space left"),
        (defect, 4, "Traceback"),
        (foreign, 4, "Traceback"),
        (inside, 4, "Traceback"),
        (extra, 3, "Error: pip install"),
        (missing, 4, "Traceback"),
        (interrupt, 130, "interrupted"),
    ],
)
def test_exit_codes(
    body: Callable[[], None], code: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    @command(examples=())
    def criteria() -> Answer:
        body()
        raise AssertionError

    monkeypatch.setattr("lwdna.cli.criteria.criteria", criteria)
    result = run("criteria", "--json", code=code)
    assert said in result.stderr
    assert ("Traceback" in result.stderr) == (code == 4)
    if code != 3:
        assert not result.stdout
        return
    error = json.loads(result.stdout)["error"]
    assert error.pop("message") in result.stderr
    reach = {"type": "BudgetError", "attainable": {"macs": [5, 9]}}
    kinds = {out_of_reach: reach, full: {"type": "OSError"}, extra: {"type": "ImportError"}}
    assert error == kinds[body]


def answering(
    body: Callable[[], Answer], monkeypatch: pytest.MonkeyPatch, **settings: Any
) -> Callable[..., Result]:
    """Runs a command that does this."""
    made = command(examples=(), **settings)(body)
    monkeypatch.setattr("lwdna.cli.criteria.criteria", made)
    return lambda *options, code=0: run("criteria", *options, code=code)


@pytest.mark.parametrize(
    ("rank", "shared", "answers"), [("0", True, True), ("1", True, False), ("1", False, True)]
)
def test_of_several_processes_the_first_one_answers(
    rank: str, shared: bool, answers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", rank)
    no = answering(lambda: Answer({"a": 1}, "text", yes=False), monkeypatch, shared=shared)
    assert [bool(no(*o, code=1).stdout) for o in ((), ("--json",))] == [answers] * 2
    refused = answering(out_of_reach, monkeypatch, shared=shared)("--json", code=3)
    assert bool(refused.stdout) == answers and "too low" in refused.stderr


def test_numbers_that_json_has_not_are_null(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = {"a": float("nan"), "b": [float("-inf"), 0.5]}
    said = answering(lambda: Answer(figures, ""), monkeypatch)("--json").stdout
    assert json.loads(said, parse_constant=pytest.fail) == {"a": None, "b": [None, 0.5]}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["shrinkk"], "No such command"),
        (["cost"], "Missing argument"),
        (["cost", "resnet18"], "write timm:NAME"),
        (["cost", PLAIN, "--arg", "width"], "write key=value"),
        (["cost", PLAIN, "--arg", "width=1", "--arg", "width=2"], "given twice"),
        (["cost", PLAIN, "--input", "3x0x4"], "as 3x224x224"),
        (["attainable", PLAIN, "--widen", "2", "--widen", "a=3"], "one number for all"),
        (["attainable", PLAIN, "--divisor", "a=b"], "PATTERN=NUMBER"),
        (["attainable", PLAIN, *SMALL, "--widen", "0.5"], "widen = 0.5"),
        (["attainable", PLAIN, *SMALL, "--widen", "none*=2"], "matches no group"),
        (["explain", PLAIN, *SMALL, "--policy", "none"], "policy"),
        (["explain", PLAIN, *SMALL, "--group", "none*"], "matches no group"),
    ],
)
def test_a_wrong_command_line(line: list[str], said: str) -> None:
    result = run(*line, code=2)
    assert said in result.stderr and not result.stdout


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["cost", "timm:resnet18000"], "has no model"),
        (["cost", "no_such_module:build"], "ModuleNotFoundError"),
        (["cost", f"{PLAIN}er"], "AttributeError"),
        (["cost", PLAIN, "--arg", "depth=3"], "unexpected keyword"),
        (["cost", "tests.factories:number"], "and no nn.Module"),
        (["cost", PLAIN, "--input", "4x8x8"], "on an input of 4x8x8 (--input gives another"),
    ],
)
def test_a_model_that_cannot_be_built(line: list[str], said: str) -> None:
    assert said in answer(*line, code=3)["error"]["message"]


def test_what_a_factory_prints_is_not_on_stdout(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text = "from tests.factories import plain\ndef build():\n    print('hello')\n    return plain()"
    (tmp_path / "printing_factory.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    result = run("cost", "printing_factory:build", *SMALL, "--json")
    assert json.loads(result.stdout)["params"] and "hello" in result.stderr


def test_control_characters_of_files_do_not_reach_the_terminal() -> None:
    @command(examples=())
    def hostile() -> Answer:
        raise lwdna.DnaError("group '\x1b[2J' is")

    with pytest.raises(lwdna.DnaError):
        CliRunner().invoke(hostile, [], catch_exceptions=False)
    text = Answer({}, "a\x1b[2Jb\nc").text

    @command(examples=())
    def shown() -> Answer:
        return Answer({}, text)

    assert CliRunner().invoke(shown, []).stdout == "a\ufffd[2Jb\nc\n"
