"""Budgets: what a limit means, and what is no limit."""

from __future__ import annotations

import numpy as np
import pytest

from lwdna.budget import Budget, check_attainable
from lwdna.cost import Cost
from lwdna.errors import BudgetError

BASELINE = Cost(1000, 1100, 100, 50)


@pytest.mark.parametrize(
    ("budget", "limits"),
    [
        (Budget(0.5), {"macs": 500}),
        (Budget(1.0), {"macs": 1000}),
        (Budget(macs=10.0), {"macs": 10_000}),
        (Budget(macs=10.5), {"macs": 10}),
        (Budget(macs=11), {"macs": 11}),
        (Budget(macs=2e9), {"macs": 2_000_000_000}),
        (Budget(params=0.29), {"params": 29}),  # int(100 * 0.29) is 28
        (Budget(params=0.999), {"params": 99}),
        (Budget(0.9, 0.8, 0.7), {"macs": 900, "params": 80, "flops_paper": 770}),
        (Budget(np.float64(0.5), np.int64(50)), {"macs": 500, "params": 50}),
        (Budget("3.7G"), {"macs": 3_700_000_000}),
        (Budget("23.7M", "850K"), {"macs": 23_700_000, "params": 850_000}),
        (Budget(" 1.2 t "), {"macs": 1_200_000_000_000}),
        (Budget("850k"), {"macs": 850_000}),
        (Budget("3.7e9"), {"macs": 3_700_000_000}),
        (Budget("2E3"), {"macs": 2000}),
        (Budget("0.0015M"), {"macs": 1500}),
        (Budget("0.01234K"), {"macs": 12}),  # rounded down
        (Budget("4.35M"), {"macs": 4_350_000}),  # int(4.35 * 10**6) is 4349999
        (Budget("9007199254740993"), {"macs": 9007199254740993}),  # no float in between
        (Budget("123456789.123456789G"), {"macs": 123456789123456789}),
        (Budget("90%"), {"macs": 900}),
        (Budget(params="29%"), {"params": 29}),
        (Budget(params=" 250 % "), {"params": 250}),
        (Budget("1200%"), {"macs": 12_000}),
        (Budget("0.9"), {"macs": 900}),
        (Budget(params=".29"), {"params": 29}),
        (Budget("10."), {"macs": 10_000}),
        (Budget("5e-1"), {"macs": 500}),
        (Budget("11"), {"macs": 11}),
        (Budget(activations="50%"), {"activations": 25}),
        (Budget(activations="40K", macs=1.0), {"macs": 1000, "activations": 40_000}),
    ],
)
def test_limits(budget: Budget, limits: dict[str, int]) -> None:
    assert budget.limits(BASELINE) == limits
    assert all(type(limit) is int for limit in budget.limits(BASELINE).values())


def test_short_form() -> None:
    budget = Budget(params=0.5)
    assert Budget.of(0.9) == Budget(macs=0.9) and Budget.of(budget) is budget
    assert Budget.of("90%") == Budget(macs="90%")
    assert Budget.of("3.7G").limits(BASELINE) == {"macs": 3_700_000_000}


@pytest.mark.parametrize(
    ("given_", "error", "message"),
    [
        (
            {},
            ValueError,
            "an empty budget: give at least one of macs, flops_paper, params, activations",
        ),
        ({"macs": 0.0}, ValueError, "macs=0.0: must be positive"),
        ({"params": -5}, ValueError, "params=-5: must be positive"),
        ({"macs": float("nan")}, ValueError, "macs=nan: must be positive and finite"),
        ({"macs": float("inf")}, ValueError, "macs=inf: must be positive and finite"),
        ({"macs": 1}, ValueError, "macs=1: an int is an absolute figure; write 1.0"),
        ({"macs": True}, TypeError, "macs=True: a number or text such as '90%', not bool"),
        (
            {"flops_paper": "much"},
            ValueError,
            "flops_paper='much': not a limit; write it as \"3.7G",
        ),
        ({"macs": ""}, ValueError, "macs='': not a limit"),
        ({"macs": "G"}, ValueError, "macs='G': not a limit"),
        ({"macs": "."}, ValueError, "not a limit"),
        ({"macs": "3.7GB"}, ValueError, "not a limit"),
        ({"macs": "3,7G"}, ValueError, "not a limit"),
        ({"macs": "-3G"}, ValueError, "not a limit"),
        ({"macs": "3.7G 2"}, ValueError, "not a limit"),
        ({"macs": "nan"}, ValueError, "not a limit"),
        ({"macs": "inf"}, ValueError, "not a limit"),
        ({"macs": "1/2"}, ValueError, "not a limit"),
        ({"macs": "1e9999"}, ValueError, "not a limit"),
        ({"macs": "0%"}, ValueError, "macs=0%: must be positive"),
        ({"activations": "0.0"}, ValueError, "activations=0.0: must be positive"),
        ({"macs": "1"}, ValueError, "macs=1: an int is an absolute figure; write 1.0"),
        ({"macs": "0.0001K"}, ValueError, "macs=0.0001K: less than one"),
        ({"macs": None, "params": b"90%"}, TypeError, "not bytes"),
        ({"params": [1]}, TypeError, "not list"),
    ],
)
def test_bad_budgets(given_: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Budget(**given_)  # type: ignore[arg-type]


# --- whether a budget can be met ---------------------------------------------------------------


RANGES = {"macs": (200, 900), "params": (30, 80)}


@pytest.mark.parametrize(
    "limits", [{"macs": 200}, {"macs": 900}, {"macs": 901, "params": 80}, {"params": 30}]
)
def test_what_can_be_met(limits: dict[str, int]) -> None:
    check_attainable(limits, RANGES)


def test_every_limit_that_is_too_low_is_named() -> None:
    message = (
        r"199 \(19.9%\) macs wanted, 200 \(20.0%\) to 900 \(90.0%\) attainable; "
        r"29 \(29.0%\) params wanted, 30 \(30.0%\) to 80 \(80.0%\) attainable. Raise"
    )
    with pytest.raises(BudgetError, match=message) as caught:
        check_attainable({"macs": 199, "params": 29}, RANGES, BASELINE)
    assert caught.value.attainable == RANGES


def test_a_budget_out_of_reach_says_what_would_help() -> None:
    with pytest.raises(BudgetError, match="Widen it more, raise max_growth, or lower the budget"):
        check_attainable({"macs": 901, "params": 81}, RANGES)
