from __future__ import annotations

# --- Budget -------------------------------------------------------------------------------------


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
    ],
)
def test_limits(budget: Budget, limits: dict[str, int]) -> None:
    assert budget.limits(BASELINE) == limits
    assert all(type(limit) is int for limit in budget.limits(BASELINE).values())


def test_short_form() -> None:
    budget = Budget(params=0.5)
    assert Budget.of(0.9) == Budget(macs=0.9) and Budget.of(budget) is budget
    with pytest.raises(TypeError, match=r"macs='0\.9'"):
        Budget.of("0.9")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given_", "error", "message"),
    [
        ({}, ValueError, "an empty budget: give at least one of macs, flops_paper, params"),
        ({"macs": 0.0}, ValueError, "macs=0.0: must be positive"),
        ({"params": -5}, ValueError, "params=-5: must be positive"),
        ({"macs": float("nan")}, ValueError, "macs=nan: must be positive and finite"),
        ({"macs": float("inf")}, ValueError, "macs=inf: must be positive and finite"),
        ({"macs": 1}, ValueError, "macs=1: an int is an absolute figure; write 1.0"),
        ({"macs": True}, TypeError, "macs=True: a number, not bool"),
        ({"flops_paper": "90%"}, TypeError, "flops_paper='90%': a number, not str"),
        ({"params": [1]}, TypeError, "not list"),
    ],
)
def test_bad_budgets(given_: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Budget(**given_)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given_", "error", "message"),
    [
        ({"fraction": 1.5}, ValueError, r"fraction=1.5 must lie in \[0, 1\]"),
        ({"fraction": float("nan")}, ValueError, "fraction=nan must lie"),
        ({"classifier": -0.1}, ValueError, "classifier=-0.1 must lie"),
        ({"fraction": True}, ValueError, "fraction=True"),
        ({"absolute": 0}, ValueError, "one channel at least"),
        ({"absolute": 2.0}, TypeError, "absolute=2.0 must be an int"),
        ({"absolute": True}, TypeError, "absolute=True must be an int"),
    ],
)
def test_bad_floors(given_: dict[str, float], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Floors(**given_)  # type: ignore[arg-type]
