"""The benchmark of FLOPs and params: complete, deterministic, and loud when a figure changes."""

from __future__ import annotations

import copy
import json
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from benchmarks import bm_budget
from benchmarks.pages import filled
from lwdna import recipes

NAME = "timm:resnet18"


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(bm_budget.RECORD.read_text())
    return found


def test_the_record_has_every_network_and_recipe(record: dict[str, Any]) -> None:
    assert tuple(record["networks"]) == bm_budget.ALL
    zoo = [name for name in bm_budget.ALL if not name.startswith("recipe:")]
    assert len(zoo) >= 40 and len(bm_budget.ALL) == len(zoo) + len(recipes.names())
    wanted = {
        f"{metric} {fraction:g}, widen {widen:g}"
        for widen in (1, 2)
        for metric, fraction in (("macs", 0.9), ("macs", 0.7), ("macs", 0.5), ("params", 0.7))
    }
    for figures in record["networks"].values():
        assert set(figures["selections"]) == wanted


def test_no_selection_is_above_its_budget(record: dict[str, Any]) -> None:
    for name, figures in record["networks"].items():
        base = figures["baseline"]
        for key, found in figures["selections"].items():
            metric, fraction = key.split(",")[0].split()
            if "refused" not in found:
                assert found[metric] <= Fraction(fraction) * base[metric], (name, key)
                assert found["ratio"] == pytest.approx(found[metric] / base[metric], abs=1e-6)


def test_figures_are_those_of_the_record(record: dict[str, Any]) -> None:
    assert not list(bm_budget.differences(record["networks"], {NAME: bm_budget.measure(NAME)}))


def test_a_difference_names_network_budget_and_figure(record: dict[str, Any]) -> None:
    changed = {NAME: copy.deepcopy(record["networks"][NAME])}
    found = changed[NAME]["selections"]["macs 0.7, widen 2"]
    found["params"] = round(found["params"] * 1.01)
    (line,) = bm_budget.differences(record["networks"], changed)
    assert line.startswith(f"{NAME}, selections: macs 0.7, widen 2: params: ")
    assert line.endswith("(+1.000%)") and " became " in line
    assert list(bm_budget.differences({}, changed)) == [f"{NAME}: not in the record"]


def test_a_changed_rule_fails_until_it_is_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "record.json"
    arguments = ["bm_budget", "--networks", NAME, "--jobs", "1", "--record", str(file)]

    def run(*options: str) -> int:
        monkeypatch.setattr(sys, "argv", [*arguments, *options])
        return bm_budget.main()

    assert run("--accept") == 0 and run() == 0
    monkeypatch.setattr(bm_budget, "SEED", 1)
    assert run() == 1
    assert f"{NAME}, selections: macs 0.5, widen 2: " in capsys.readouterr().out
    assert run("--accept") == 0 and run() == 0


def test_the_page_shows_the_record(record: dict[str, Any]) -> None:
    text = bm_budget.PAGE.read_text()
    assert filled(text, "budget", bm_budget.tables(record)) == text, "run make bench-accept"
