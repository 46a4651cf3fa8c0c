"""JSON that nobody vouches for: bounded, strict, and of the types that a dataclass declares."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from math import isfinite
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from lwdna.errors import DnaError

#: Far more than the DNA of the largest network, and little enough to be read at once.
MOST_CHARACTERS = 64 * 2**20
#: Lengths, costs and seeds are below it; a longer number is damage.
MOST_INT = 2**63


def parse(text: str, what: str) -> Any:
    """The values of a JSON text.

    Args:
        text: of any origin.
        what: names it in errors.

    Raises:
        DnaError: no JSON, too long or nested too deep, a key twice in one object, or a number that
            is not finite.
    """
    if len(text) > MOST_CHARACTERS:
        raise DnaError(f"{what} is longer than any DNA: {len(text):,} characters")
    try:
        return json.loads(
            text, object_pairs_hook=_object, parse_constant=_number, parse_float=_number
        )
    except (ValueError, RecursionError) as e:
        raise DnaError(f"{what} is damaged: {type(e).__name__}: {e}") from e


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice in one object")
    return found


def _number(text: str) -> float:
    value = float(text)
    if not isfinite(value):
        raise ValueError(f"{text} is no finite number")
    return value


def digest(value: Any) -> str:
    """SHA-256 of a value of JSON's types, in hex; spaces and the order of keys do not matter."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def build(kind: Any, value: Any, where: str) -> Any:
    """A value of JSON's types as what ``kind`` declares.

    Args:
        kind: a dataclass, ``tuple[T, ...]``, ``tuple[S, T]``, ``Mapping[str, T]``, a union,
            ``Literal``, ``int``, ``float``, ``str``, ``bool``, ``None`` or ``Any``.
        value: as :func:`parse` gave it, or with tuples in it, which are taken as they are.
        where: names the value in errors.

    Raises:
        DnaError: another type, a field missing or unknown, or what the dataclass refuses.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, UnionType):
        return _first_that_fits(inner, value, where)
    if origin is tuple and isinstance(value, tuple):
        return value  # JSON has none: read by the caller
    if origin is tuple and isinstance(value, list):
        kinds = inner[:1] * len(value) if inner[-1] is ... else inner
        if len(kinds) == len(value):
            pairs = zip(kinds, value, strict=True)
            return tuple(build(k, v, f"{where}[{n}]") for n, (k, v) in enumerate(pairs))
    if origin is Mapping and isinstance(value, dict):
        return {key: build(inner[1], entry, f"{where}.{key}") for key, entry in value.items()}
    if origin is Literal and value in inner:
        return value
    if is_dataclass(kind) and isinstance(value, dict):
        return _dataclass(kind, value, where)
    if type(value) is int and kind in (int, float) and abs(value) < MOST_INT:
        return kind(value)
    if type(value) is kind and kind in (float, str, bool, type(None)):
        return value
    expected = getattr(kind, "__name__", str(kind))
    raise DnaError(f"{where} is {repr(value)[:60]}, and no {expected}")


def with_defaults(kind: Any, value: Any) -> Any:
    """A value for :func:`build`, and in it the defaults of fields that are missing.

    Args:
        kind: what it will be built as; dataclasses within dataclasses and tuples are filled, too.
        value: as :func:`parse` gave it; what fits nothing stays, for :func:`build` to refuse.
    """
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    if isinstance(value, Mapping):
        for one in kinds:
            if isinstance(one, type) and is_dataclass(one):
                hints = _hints(one)
                given = {key: with_defaults(hints.get(key), entry) for key, entry in value.items()}
                return _defaults(one) | given
    if isinstance(value, list):
        for one in kinds:
            if get_origin(one) is tuple and get_args(one)[1:] == (...,):
                return [with_defaults(get_args(one)[0], entry) for entry in value]
    return value


@cache  # annotations are text, which is compiled and evaluated each time
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _defaults(kind: Any) -> dict[str, Any]:
    found = {f.name: f.default for f in fields(kind) if f.default is not MISSING}
    made = {f.name: f.default_factory() for f in fields(kind) if f.default_factory is not MISSING}
    return found | made


def _first_that_fits(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    failed: DnaError | None = None
    for kind in kinds:
        try:
            return build(kind, value, where)
        except DnaError as e:
            # The most telling: None fits nothing else, and says little.
            failed = e if failed is None or kind is not type(None) else failed
    assert failed is not None
    raise failed


def _dataclass(kind: Any, value: dict[str, Any], where: str) -> Any:
    hints = _hints(kind)
    names = [field.name for field in fields(kind)]
    differ = sorted(set(names) ^ value.keys())
    if differ:
        what = "lacks" if differ[0] in names else "has an unknown"
        raise DnaError(f"{where} {what} field {differ[0][:60]!r}")
    entries = {name: build(hints[name], value[name], f"{where}.{name}") for name in names}
    try:
        return kind(**entries)
    except (ValueError, TypeError) as e:
        raise DnaError(f"{where}: {e}") from e
