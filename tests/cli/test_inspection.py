"""explain, attainable, cost, verify, criteria: what the library says, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import lwdna
from lwdna.explanation import explain_graph
from tests.cli.commands import PLAIN, SMALL, answer, run

X = torch.empty(2, 3, 16, 16, device="meta")


def plain(**arguments: Any) -> torch.nn.Module:
    return lwdna.create(PLAIN, **arguments)


def graph(**arguments: Any) -> lwdna.ChannelGraph:
    return lwdna.analyse(lwdna.capture(plain(**arguments), X), X)


def test_cost_is_that_of_the_library() -> None:
    found = answer("cost", PLAIN, *SMALL, "--arg", "width=20")
    assert found == {"model": PLAIN, **graph(width=20).cost().as_dict()}
    assert f"{found['macs']:,}" in run("cost", PLAIN, *SMALL, "--arg", "width=20").stdout


def test_the_size_of_the_input_is_the_models_own() -> None:
    model = lwdna.create("timm:test_resnet")
    x = torch.empty(2, *model.pretrained_cfg["input_size"], device="meta")
    expected = lwdna.analyse(lwdna.capture(model, x), x).cost().as_dict()
    assert answer("cost", "timm:test_resnet", "--arg", "pretrained=true") == {
        "model": "timm:test_resnet",
        **expected,
    }, "pretrained weights are neither wanted nor downloaded for counting"


def test_explain_is_the_librarys_table() -> None:
    expected = explain_graph(graph())
    assert run("explain", PLAIN, *SMALL).stdout == f"{expected}\n"
    rows = answer("explain", PLAIN, *SMALL)["groups"]
    assert [row["group"] for row in rows] == [row.group for row in expected.rows]
    frozen = answer("explain", PLAIN, *SMALL, "--frozen")["groups"]
    assert frozen == [row for row in rows if not row["prunable"]] and len(frozen) < len(rows)
    (one,) = answer("explain", PLAIN, *SMALL, "--group", "inn*")["groups"]
    assert one["group"] == "inner" and one["macs"] > 0


def test_attainable_is_that_of_the_library() -> None:
    expected = lwdna.attainable(
        plain(),
        widen={"inner": 1.5},
        constraints=lwdna.Constraints(divisor=2, floors=lwdna.Floors(fraction=0.5)),
        example_inputs=X,
    )
    given = ("--widen", "inner=1.5", "--divisor", "2", "--floor", "0.5")
    found = answer("attainable", PLAIN, *SMALL, *given)
    assert found["attainable"] == {metric: list(pair) for metric, pair in expected.items()}
    assert found["before"] == graph().cost().as_dict()


@pytest.mark.parametrize(("macs", "within"), [("0.9", True), ("0.05", False), ("90%", True)])
def test_attainable_answers_whether_a_budget_is_within_reach(macs: str, within: bool) -> None:
    line = ("attainable", PLAIN, *SMALL, "--macs", macs, "--floor", "0.4")
    found = answer(*line, code=0 if within else 1)
    assert found["within"] == within
    assert found["limits"]["macs"] <= found["before"]["macs"]
    result = run(*line, code=0 if within else 1)
    assert ("within reach" in result.stdout) == within


def test_verify_says_what_was_compared() -> None:
    torch.manual_seed(3)
    expected = lwdna.verify(plain(), torch.randn(2, 3, 16, 16), keep=0.5).statements
    found = answer("verify", PLAIN, *SMALL, "--keep", "0.5")
    assert found["holds"] and found["statements"].keys() == expected.keys()


def test_verify_says_no(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise lwdna.VerificationError("cost: 3 MACs predicted, 4 measured")

    monkeypatch.setattr("lwdna.verify", broken)
    found = answer("verify", PLAIN, *SMALL, code=1)
    assert not found["holds"] and "4 measured" in found["broken"]
    assert "no: cost: 3 MACs" in run("verify", PLAIN, *SMALL, code=1).stdout


def test_criteria_are_those_of_the_library() -> None:
    found = answer("criteria")["criteria"]
    assert [c["name"] for c in found] == list(lwdna.criteria())
    without = {c["name"] for c in found if not c["data"]}
    assert without == {"synflow", "magnitude", "bn-scale", "fpgm", "random", "uniform"}
    assert {"normalize": True, "embedding": 8} in [c["options"] for c in found]
    assert "needs data" in run("criteria").stdout
