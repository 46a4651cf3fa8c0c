"""Statistics against other hands, and forged runs of which the winner is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from benchmarks import plots
from benchmarks.compare.report import bars, markdown
from benchmarks.compare.run import Run
from benchmarks.compare.statistics import decibel, interval
from benchmarks.compare.summary import summarise
from benchmarks.compare.table import Table
from tests.compare.made_up import forge, table


def test_students_interval_by_hand() -> None:
    """Mean 2, deviation 1, three values; t of 2 degrees of freedom is 4.303 in every table."""
    found = interval([[1.0, 2.0, 3.0]])
    assert found.mean == 2 and found.runs == 3
    assert found.low is not None and found.high is not None
    assert found.high - 2 == pytest.approx(4.303 / 3**0.5, abs=1e-3)
    assert 2 - found.low == pytest.approx(found.high - 2)


def test_several_groups_as_welch_has_two() -> None:
    a, b = np.array([1.0, 2.0, 3.5, 2.2]), np.array([0.0, 9.0, 4.0])
    welch = stats.ttest_ind(a, -b, equal_var=False).confidence_interval(0.95)
    found = interval([a.tolist(), b.tolist()])
    assert found.mean == pytest.approx((a.mean() + b.mean()) / 2)
    assert (found.low, found.high) == pytest.approx((welch.low / 2, welch.high / 2))


def test_too_few_runs_have_no_interval() -> None:
    assert interval([[1.0]]).low is None and interval([[1.0, 2.0], [3.0]]).high is None
    assert interval([[1.0, 1.0], [2.0, 2.0]]).low == 1.5
    with pytest.raises(ValueError, match="groups of"):
        interval([[1.0], []])


def test_the_error_in_decibel() -> None:
    assert decibel(90.0, "%") == pytest.approx(10)  # one of ten is wrong
    assert decibel(91.0, "%") - decibel(90.0, "%") == pytest.approx(0.4576, abs=1e-4)
    assert decibel(31.2, "dB") == 31.2
    assert decibel(100.0, "%") < 100  # finite


FAVOURED = {"baseline": 0.0, "uniform": -0.5, "random": -1.0, "default": 1.0}


@pytest.fixture
def tables(tmp_path: Path) -> list[Table]:
    """Five tables, each of one pair."""
    found = table(tmp_path)
    return [
        replace(
            found,
            name=f"t{k}",
            pairs=(replace(found.pairs[0], name=f"pair{k}", arguments={"width": 8 + k}),),
        )
        for k in range(5)
    ]


def percent(run: Run, favoured: dict[str, float] = FAVOURED, noise: float = 0.1) -> float:
    """Right answers in percent: seeds differ more than methods do."""
    place = [*FAVOURED].index(run.method.name)
    rng = np.random.default_rng([run.pair.arguments["width"], run.seed, run.draw, place])
    of_seed = 3 * (run.seed - 1)
    return 85 + of_seed + favoured[run.method.name] + noise * rng.standard_normal()


def test_a_forged_winner_is_found(tables: list[Table], tmp_path: Path) -> None:
    forge(tables, tmp_path, lambda run: percent(run) / 100)
    summary = summarise(tables, "test", tmp_path)
    assert all(met for met, _ in bars(summary)), bars(summary)
    for pair in summary["pairs"].values():
        row = pair["budgets"]["0.8"]["default"]
        assert row["against"]["baseline"]["mean"] == pytest.approx(1.0, abs=0.3)
        assert row["against"]["random"]["low"] > 0  # paired: unpaired, seeds would hide it
        assert row["score"]["high"] - row["score"]["low"] > 10
    assert summary["overall"]["0.8"]["default"]["baseline"]["wins"] == 5
    assert "| default" in markdown(summary) and "5 of 5" in markdown(summary)


@pytest.mark.parametrize(
    ("favoured", "noise", "missed"),
    [
        ({"default": -0.2}, 0.02, {2}),  # worse than the baseline, better than the others
        ({"default": -0.7}, 0.02, {2, 3}),
        ({"default": -2.0}, 0.02, {2, 3, 4}),
        ({"uniform": 1.0}, 1.0, {3}),  # noise: as good, and no interval excludes zero
    ],
)
def test_a_forged_loser_is_not(
    tables: list[Table],
    tmp_path: Path,
    favoured: dict[str, float],
    noise: float,
    missed: set[int],
) -> None:
    forge(tables, tmp_path, lambda run: percent(run, FAVOURED | favoured, noise) / 100)
    found = bars(summarise(tables, "test", tmp_path))
    assert {n for n, (met, _) in enumerate(found) if not met} == missed, found


def test_bars_need_test_data_and_five_pairs(tables: list[Table], tmp_path: Path) -> None:
    forge(tables, tmp_path, lambda run: percent(run) / 100)
    nothing = bars(summarise(tables, "validation", tmp_path))
    assert not any(met for met, _ in nothing)
    four = bars(summarise(tables[:4], "test", tmp_path))
    assert [met for met, _ in four] == [True, True, False, True, True]


def test_a_seed_without_all_its_draws_does_not_count(tables: list[Table], tmp_path: Path) -> None:
    forge(tables[:1], tmp_path, lambda run: percent(run) / 100)
    for gone in ("pair0-random-0.8-s2d1-*", "pair0-uniform-0.8-s0-*"):
        next(tmp_path.glob(gone)).unlink()
    rows = summarise(tables[:1], "test", tmp_path)["pairs"]["pair0"]["budgets"]["0.8"]
    assert rows["random"]["seeds"] == [0, 1] and rows["random"]["runs"] == 4
    assert rows["random"]["against"]["uniform"]["runs"] == 1  # seed 1 alone has both
    assert rows["default"]["against"]["uniform"]["runs"] == 2


def test_pairs_of_one_name_are_refused(tables: list[Table], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="two pairs of one name"):
        summarise([tables[0], tables[0]], "test", tmp_path)


def test_plots_are_drawn_from_a_summary(tables: list[Table], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    forge(tables[:2], tmp_path, lambda run: percent(run) / 100)
    summary = summarise(tables[:2], "test", tmp_path)
    for draw in (plots.comparison, plots.learning):
        for name in ("first.svg", "second.svg"):
            draw(summary, tmp_path / name)
        drawn = [(tmp_path / name).read_bytes() for name in ("first.svg", "second.svg")]
        assert drawn[0] == drawn[1] and len(drawn[0]) > 5000
