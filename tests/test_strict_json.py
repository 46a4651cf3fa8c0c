"""JSON of any origin against declared types."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_type_hints

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import lwdna
from lwdna import strict_json
from lwdna.strict_json import build, digest, parse, with_defaults

values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-9, 9), st.floats(-9, 9), st.text(max_size=3)),
    lambda v: st.one_of(st.lists(v, max_size=3), st.dictionaries(st.text(max_size=3), v)),
    max_leaves=8,
)


@dataclass(frozen=True)
class Inner:
    pair: tuple[int, str]
    many: tuple[float, ...] = ()


@dataclass(frozen=True)
class Outer:
    inner: Inner | None
    either: float | Mapping[str, float]
    free: Any


@given(values)
def test_digests_follow_values_not_spaces(value: Any) -> None:
    texts = [json.dumps(value), json.dumps(value, indent=3)]
    assert len({digest(parse(text, "it")) for text in texts}) == 1
    assert digest([value]) != digest(value)


def test_values_become_what_is_declared() -> None:
    data = {"inner": {"pair": [3, "x"], "many": [1, 2.5]}, "either": {"a": 1}, "free": [None]}
    assert build(Outer, data, "it") == Outer(Inner((3, "x"), (1.0, 2.5)), {"a": 1.0}, [None])
    assert build(Outer, {**data, "inner": None, "either": 2}, "it").either == 2.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inner": {"pair": [3], "many": []}}, r"it\.inner\.pair is \[3\], and no tuple"),
        ({"inner": {"pair": [3, 4], "many": []}}, r"it\.inner\.pair\[1\] is 4, and no str"),
        ({"inner": {"pair": [True, "x"], "many": []}}, "is True, and no int"),
        ({"inner": {"pair": [2**63, "x"], "many": []}}, "and no int"),
        ({"inner": {"pair": [1, "x"], "many": [10**400]}}, "and no float"),
        ({"inner": {"pair": [1, "x"]}}, r"it\.inner lacks field .many."),
        ({"inner": 3}, r"it\.inner is 3, and no Inner"),
        ({"either": "x"}, r"it\.either is .x."),
        ({"more": 1}, "it has an unknown field 'more'"),
    ],
)
def test_other_types_are_refused(change: Any, message: str) -> None:
    data = {"inner": None, "either": 1, "free": 0, **change}
    with pytest.raises(lwdna.DnaError, match=message):
        build(Outer, data, "it")


@given(st.text(max_size=20))
def test_no_text_does_anything_but_parse(text: str) -> None:
    assume(not any(word in text for word in ("NaN", "Infinity", "e", "E")))  # not finite
    try:
        expected = json.loads(text)
    except ValueError:
        with pytest.raises(lwdna.DnaError, match="it is damaged"):
            parse(text, "it")
    else:
        assert parse(text, "it") == expected


def test_the_types_of_a_class_are_worked_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[type] = []

    def noting(kind: type) -> dict[str, Any]:
        asked.append(kind)
        return get_type_hints(kind)

    strict_json._hints.cache_clear()
    monkeypatch.setattr(strict_json, "get_type_hints", noting)
    entry = {"pair": [1, "a"], "many": []}
    build(tuple[Inner, ...], [entry] * 3, "it")
    build(tuple[Inner, ...], with_defaults(tuple[Inner, ...], [entry]), "it")
    assert asked == [Inner]


def test_a_literal_is_one_of_its_values() -> None:
    assert build(Literal["a", "b"], "b", "it") == "b"
    for wrong in ("c", None, ["a"]):
        with pytest.raises(lwdna.DnaError, match="it is"):
            build(Literal["a", "b"], wrong, "it")


@dataclass(frozen=True)
class Outermost:
    inner: Inner | None
    several: tuple[Inner, ...] = ()
    made: Mapping[str, Any] = field(default_factory=dict)


def test_what_is_left_out_has_its_default_at_every_depth() -> None:
    value = {"inner": {"pair": [1, "a"]}, "several": [{"pair": [2, "b"], "many": [1]}]}
    found = build(Outermost, with_defaults(Outermost, value), "it")
    assert found == Outermost(Inner((1, "a")), (Inner((2, "b"), (1.0,)),), {})
    assert "made" not in value and "many" not in value["inner"]
    for wrong in ({}, {"inner": {}}, {"inner": 3}, {"inner": None, "other": 1}, 3, [value]):
        with pytest.raises(lwdna.DnaError):
            build(Outermost, with_defaults(Outermost, wrong), "it")
