"""Options that several commands take, and what they mean to the library."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from lwdna import Budget, Constraints

F = TypeVar("F", bound=Callable[..., Any])

_SHAPE = re.compile(r"[1-9]\d{0,5}(x[1-9]\d{0,5})*")
_BUDGETS = {
    "macs": "Multiply-accumulates: 0.9, 90%, 3.7G.",
    "params": "Parameters: 0.8, 25M.",
    "flops": "FLOPs as the paper counts them: 90.6%, 3.73G.",
    "activations": "Elements of layer outputs: 0.7, 9M.",
    "latency": "Seconds, by --latency-table: 0.8, 12ms.",
}
#: Names of the options that limit a cost.
LIMITS = tuple(_BUDGETS)
#: Files of a network that :func:`lwdna.save` wrote.
SAVED = ("dna.json", "model.safetensors")
#: Option -> what :class:`lwdna.Budget` calls it, where that differs.
_METRICS = {"flops": "flops_paper"}


def pair(text: str) -> tuple[str, Any]:
    """``key=value``, the value being JSON, or text where it is none."""
    key, value = _parted(text, "key=value, such as num_classes=10")
    try:
        return key, json.loads(value, parse_constant=_refuse)
    except ValueError:
        return key, value


def named_folder(text: str) -> tuple[str, str]:
    """``name=folder``."""
    return _parted(text, "name=folder, such as Set5=images/Set5")


def _parted(text: str, form: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise click.UsageError(f"{text!r}: write {form}")
    return key, value


def _refuse(text: str) -> Any:
    raise ValueError(text)  # NaN and Infinity are no JSON: they are text


def shape(text: str) -> tuple[int, ...]:
    """``3x224x224``: the shape of one input, without the batch."""
    if not _SHAPE.fullmatch(text):
        raise click.UsageError(f"{text!r}: write channels, height and width, as 3x224x224")
    return tuple(int(n) for n in text.split("x"))


def options(*given: Callable[[F], F]) -> Callable[[F], F]:
    """Several options as one decorator, in this order in the help."""

    def decorate(function: F) -> F:
        for one in reversed(given):
            function = one(function)
        return function

    return decorate


def pairs(
    flag: str,
    name: str,
    said: str,
    *,
    metavar: str = "KEY=VALUE",
    read: Callable[[str], tuple[str, Any]] = pair,
) -> Callable[[F], F]:
    """An option that is repeated for more pairs, each key once; commands get a dict.

    Args:
        flag: of the option.
        name: of the command's argument.
        said: the help.
        metavar: form of a pair in the help.
        read: takes a pair apart.
    """
    return click.option(
        flag, name, multiple=True, type=read, callback=_dict, metavar=metavar, help=said
    )


def _dict(
    ctx: click.Context, parameter: click.Parameter, given: Sequence[tuple[str, Any]]
) -> dict[str, Any]:
    return _unique(given, parameter.opts[0])


def _unique(given: Sequence[tuple[str, Any]], option: str) -> dict[str, Any]:
    found = dict(given)
    if len(found) < len(given):
        raise click.UsageError(f"{option}: a key is given twice")
    return found


def output(said: str, *, file: bool = False, required: bool = False) -> Callable[[F], F]:
    """Where a result goes.

    Args:
        said: the help.
        file: whether that is a file; else a directory.
        required: whether there is no other place for it.
    """
    place = click.Path(file_okay=file, dir_okay=not file, path_type=Path)
    return click.option("-o", "--output", type=place, required=required, help=said)


model = click.argument("model", metavar="MODEL")
arguments = pairs(
    "--arg",
    "arguments",
    "Argument of the model's constructor, in JSON or plain text: num_classes=10, pretrained=true. "
    "Repeat it for more.",
)
inputs = click.option(
    "--input",
    "shapes",
    multiple=True,
    type=shape,
    metavar="CxHxW",
    help="Shape of the input without the batch, 3x224x224; by default that of the model's own "
    "configuration. Repeat it for models of several inputs.",
)
trust = click.option(
    "--trust",
    multiple=True,
    metavar="MODULE",
    help="A module that a saved network may be built by: naming it runs its code.",
)
seed = click.option("--seed", type=int, default=0, show_default=True, help="Of all that is drawn.")
force = click.option("--force", is_flag=True, help="Replace a result that is there.")
device = click.option("--device", help="Such as cpu or cuda:0; by default a GPU if there is one.")
channels_last = click.option(
    "--channels-last", is_flag=True, help="Images and weights in that memory format."
)
policy = click.option(
    "--policy",
    default="auto",
    show_default=True,
    help="Axis of attention heads and grouped convolutions that changes; or both.",
)
#: What every command on one model takes.
of_model = options(model, arguments, inputs, trust)
budgets = options(
    *(click.option(f"--{name}", metavar="LIMIT", help=said) for name, said in _BUDGETS.items())
)
widening = options(
    click.option(
        "--widen",
        multiple=True,
        metavar="FACTOR",
        help="Widen first: 2, or PATTERN=1.5 for the groups that `lwdna explain` lists. 1 only "
        "removes.  [default: 2]",
    ),
    click.option(
        "--divisor",
        multiple=True,
        metavar="N",
        help="Widths are multiples of N; or PATTERN=N.  [default: 1]",
    ),
    click.option("--floor", type=float, help="Least share of a group's widened width: 0.4."),
    click.option("--freeze", multiple=True, metavar="PATTERN", help="Groups that stay as wide."),
    click.option(
        "--max-growth", type=float, help="Most width of a group, as a multiple of its own."
    ),
    policy,
)


def budget_of(given: Mapping[str, Any]) -> Budget | None:
    """The budget among a command's options; ``None`` without one."""
    from lwdna import Budget

    limits = {_METRICS.get(name, name): given[name] for name in _BUDGETS if given[name] is not None}
    return Budget(**limits) if limits else None


def widen_of(given: Mapping[str, Any]) -> float | dict[str, float]:
    """The widening among a command's options: a factor, or pattern -> factor."""
    found = _by_pattern(given["widen"], "--widen", float)
    return 2.0 if found is None else found


def constraints_of(given: Mapping[str, Any]) -> Constraints | None:
    """The constraints among a command's options; ``None`` without any."""
    from lwdna import Constraints, Floors

    found: dict[str, Any] = {
        "divisor": _by_pattern(given["divisor"], "--divisor", int),
        "floors": None if given["floor"] is None else Floors(fraction=given["floor"]),
        "freeze": given["freeze"] or None,
        "max_growth": given["max_growth"],
    }
    found = {name: value for name, value in found.items() if value is not None}
    return Constraints(**found) if found else None


def _by_pattern(texts: Sequence[str], option: str, kind: type) -> Any:
    """One number, or pattern -> number, or ``None`` of no text."""
    given = [(pattern, value) for pattern, _, value in (text.rpartition("=") for text in texts)]
    try:
        found = {pattern: kind(value) for pattern, value in _unique(given, option).items()}
    except ValueError as e:
        raise click.UsageError(f"{option}: {e}; write a number, or PATTERN=NUMBER") from e
    if "" in found and len(found) > 1:
        raise click.UsageError(f"{option}: one number for all groups, or PATTERN=NUMBER for each")
    return found.get("", found or None)


def check_free(
    path: Path | None,
    *,
    force: bool,
    names: Sequence[str] = (),
    remedy: str = "--force replaces it",
) -> None:
    """Refuse to overwrite a result.

    Args:
        path: where a command writes; a file, or with ``names`` a directory.
        force: write all the same.
        names: of the files that make up a result in a directory.
        remedy: what the user can do.

    Raises:
        click.UsageError: something is there.
    """
    if path is None or force:
        return
    for one in [path / name for name in names] or [path]:
        if one.exists():
            raise click.UsageError(f"{one} is there already: {remedy}")
