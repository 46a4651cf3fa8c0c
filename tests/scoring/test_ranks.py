from __future__ import annotations

import pickle
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor, nn

from lwdna.errors import ScoringError
from lwdna.scoring.ranks import Ranks
from lwdna.scoring.synchronise import synchronised_batch_norm
from tests.scoring import workers

#: Seconds after which the processes are killed and the tests fail.
DEADLINE = 150
#: scenario -> per rank ("returned", value, seconds), or (name of the exception, message, seconds)
Outcomes = dict[str, list[tuple[str, Any, float]]]

FAILURES = {
    "before": ("ValueError", "before anything"),
    "forward": ("ValueError", "in forward"),
    "between": ("FloatingPointError", "the loss of batch 0 is NaN"),
    "backward": ("ArithmeticError", "in backward"),
    "after": ("ValueError", "after the last collective"),
    "interrupt": ("KeyboardInterrupt", ""),
}
THREE = (
    *("derivatives", "collectives", "bucketed", "autocast", "small sums"),
    *(*FAILURES, "outside", "budget", "shapes", "missing", "different", "silent", "late"),
    *("swallowed", "sync batch norm", "single value", "no samples", "unguarded"),
    *("derivatives again", "die"),
)
TWO = ("derivatives", "normalised", "forward", "slow", "derivatives again", "store dies")


def launch(size: int, init_method: str, folder: Path, scenarios: tuple[str, ...]) -> Outcomes:
    context = mp.get_context("spawn")
    processes = [
        context.Process(target=workers.work, args=(r, size, init_method, folder, scenarios))
        for r in range(size)
    ]
    end = time.monotonic() + DEADLINE
    for process in processes:
        process.start()
    for process in processes:
        process.join(max(0.0, end - time.monotonic()))
    for process in processes:
        process.kill()
        process.join()
    missing = ("nothing", "killed, or hanging", 0.0)

    def read(path: Path) -> tuple[str, Any, float]:
        return pickle.loads(path.read_bytes()) if path.exists() else missing

    return {name: [read(folder / f"{name}.{r}") for r in range(size)] for name in scenarios}


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    """Three processes; their store is a file."""
    folder = tmp_path_factory.mktemp("three")
    return launch(3, f"file://{folder}/store", folder, THREE)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    """Two processes; rank 0 holds the store."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    folder = tmp_path_factory.mktemp("two")
    return launch(2, f"tcp://127.0.0.1:{port}", folder, TWO)


@pytest.fixture
def outcomes(request: pytest.FixtureRequest) -> Outcomes:
    return request.getfixturevalue(request.param)


def returned(outcomes: Outcomes, name: str) -> list[Any]:
    for rank, (kind, value, _) in enumerate(outcomes[name]):
        assert kind == "returned", f"rank {rank}: {kind}: {value}"
    return [value for _, value, _ in outcomes[name]]


def errors(outcomes: Outcomes, name: str) -> list[str]:
    """Messages of ScoringErrors that every rank raises."""
    assert [kind for kind, _, _ in outcomes[name]] == ["ScoringError"] * len(outcomes[name])
    return [text for _, text, _ in outcomes[name]]


@pytest.fixture(scope="module")
def alone() -> dict[str, list[Tensor]]:
    """What one process gets on the concatenated batch, with torch's own batch norm."""
    return workers.derivatives(Ranks())


@pytest.mark.parametrize("outcomes", ["two", "three"], indirect=True)
@pytest.mark.parametrize("name", ["derivatives", "derivatives again"])
def test_derivatives_are_those_of_the_concatenated_batch(
    outcomes: Outcomes, name: str, alone: dict[str, list[Tensor]]
) -> None:
    results = returned(outcomes, name)
    for what, expected in alone.items():
        assert any(t.is_floating_point() and t.abs().max() > 1e-3 for t in expected)
        scale = max(float(t.abs().max()) for t in expected)
        for result in results:
            for a, b, first in zip(result[what], expected, results[0][what], strict=True):
                torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12 * scale)
                assert torch.equal(a, first), "the ranks must hold the same numbers"


@pytest.mark.parametrize("name", list(workers.batch_norms()))
def test_each_batch_norm_is_that_of_the_concatenated_batch(two: Outcomes, name: str) -> None:
    first, second = (result[name] for result in returned(two, "normalised"))
    expected = workers.normalised(Ranks())[name]
    x = workers.batch_norms()[name][0]
    # What float32 (bfloat16) loses of numbers of this size and spread
    eps = torch.finfo(x.dtype).eps * max(1.0, float(x.abs().max()))
    for k, (a, b, c) in enumerate(zip(first, second, expected, strict=True)):
        got = torch.cat([a, b]) if k < 2 else a
        assert got.dtype == c.dtype
        torch.testing.assert_close(got, c, rtol=1e-5, atol=8 * eps)
        assert k < 2 or torch.equal(a, b)


def test_under_autocast(three: Outcomes) -> None:
    (dtype, expected), results = workers.autocast(Ranks()), returned(three, "autocast")
    assert [d for d, _ in results] == [dtype] * 3
    logits = torch.cat([values for _, values in results])
    torch.testing.assert_close(logits, expected, rtol=0.05, atol=0.05)


def test_the_primitives(three: Outcomes) -> None:
    for rank, got in enumerate(returned(three, "collectives")):
        assert torch.equal(got["x"], torch.full((3, 2), rank + 1.0)), "the argument was changed"
        assert torch.equal(got["sum"], torch.full((3, 2), 6.0))
        *floats, ints, view = got["sum_"]
        for k, tensor in enumerate(floats):
            assert torch.equal(tensor, torch.full((k % 5, 2), 3.0 + 3 * k))
        assert torch.equal(ints, torch.tensor([3, 3, 3]))
        assert torch.equal(view, torch.tensor([[6.0, 6.0]]))
        assert [t.tolist() for t in got["sent"]] == [[[5.0, 5.0]] * 2, 0, [True, False]]
        assert got["share"] == (2 + rank) / 9
        assert got["nested"]


def test_gradients_are_summed_in_few_collectives(three: Outcomes) -> None:
    """302 tensors of 20 MB twice and a little: 25 MB are not exceeded."""
    assert returned(three, "bucketed") == [[20 * 2**20 + 2400, 20 * 2**20]] * 3


def test_waiting_does_not_sleep_over_short_collectives(three: Outcomes) -> None:
    assert max(returned(three, "small sums")) < 0.05


@pytest.mark.parametrize(
    ("outcomes", "name"),
    [*(("three", name) for name in FAILURES), ("two", "forward")],
    indirect=["outcomes"],
)
def test_a_failure_of_one_rank_ends_all(outcomes: Outcomes, name: str) -> None:
    error, message = FAILURES[name]
    told = f"rank 1 failed: {error}" + (f": {message}" if message else "")
    for rank, (kind, text, seconds) in enumerate(outcomes[name]):
        assert (kind, text) == ((error, message) if rank == 1 else ("ScoringError", told))
        assert seconds < 8


def test_an_earlier_failure_does_not_end_a_later_guard(two: Outcomes) -> None:
    assert returned(two, "slow") == [2.0, 2.0]


def test_after_the_guard_a_rank_fails_alone(three: Outcomes) -> None:
    assert [kind for kind, _, _ in three["outside"]] == ["returned", "LookupError", "returned"]


def test_a_killed_rank_is_named(three: Outcomes) -> None:
    survivors = [three["die"][0], three["die"][2]]
    assert three["die"][1][0] == "nothing"
    assert survivors[0][:2] == survivors[1][0:2], "every rank gives the same reason"
    for kind, text, seconds in survivors:
        assert kind == "ScoringError"
        assert "a connection broke" in text
        assert "rank 1 gives no sign of life" in text
        assert seconds < 10


def test_the_rank_that_holds_the_store_dies(two: Outcomes) -> None:
    kind, text, seconds = two["store dies"][1]
    assert kind == "ScoringError"
    assert "store is gone" in text
    assert "rank 0, or the launcher" in text
    assert seconds < 10


def test_a_rank_that_does_not_answer_is_named(three: Outcomes) -> None:
    (text,) = set(errors(three, "silent"))
    assert text.startswith("no answer in 1 s while rank")
    assert "rank 1 gives no sign of life" in text


def test_a_rank_that_does_not_come_is_named_and_may_come_later(three: Outcomes) -> None:
    for rank, (kind, text, _) in enumerate(three["late"]):
        assert kind == ("returned" if rank == 1 else "ScoringError")
        assert rank == 1 or text.startswith("rank 1 did not come to scoring within 10 s")


def test_different_collectives_are_told(three: Outcomes) -> None:
    """As gloo goes on with numbers of different ranks' collectives, any rank may see it first."""
    for text in errors(three, "different"):
        assert "collective 1 (4 values of torch.float32)" in text


def test_an_error_that_was_caught_inside_is_raised_again(three: Outcomes) -> None:
    kinds = [(kind, text) for kind, text, _ in three["swallowed"]]
    told = ("ScoringError", "rank 1 failed: ValueError: once")
    assert kinds == [told, ("ValueError", "once"), told]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("budget", "the ranks differ in budget: 0.9 on rank 0, 0.8 on rank 1"),
        ("shapes", "the ranks differ in shapes['fc']: (0, 3) on rank 0, (1, 3) on rank 2"),
        ("missing", "the ranks differ in seed: nothing on rank 0, 0 on rank 1"),
    ],
)
def test_what_differs_is_named(three: Outcomes, name: str, message: str) -> None:
    for text in errors(three, name):
        assert text.startswith(message)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("sync batch norm", "UnsupportedModelError", "module '1' is a SyncBatchNorm"),
        ("single value", "ScoringError", "4 channels got 1 value per channel"),
        ("no samples", "ScoringError", "the batch is empty on every rank"),
        ("unguarded", "RuntimeError", "with ranks.guard()"),
    ],
)
def test_misuse_is_refused_on_every_rank(
    three: Outcomes, name: str, error: str, message: str
) -> None:
    for kind, text, _ in three[name]:
        assert kind == error
        assert message in text


def test_one_process_is_the_trivial_case() -> None:
    ranks = Ranks.current()
    assert (ranks.size, ranks.rank) == (1, 0)
    x = torch.ones(3, requires_grad=True)
    with ranks.guard(), synchronised_batch_norm(ranks, nn.SyncBatchNorm(2)):
        y = ranks.sum(x)
        ranks.sum_([x.detach()])
        ranks.broadcast_([x.detach()])
        ranks.agree({"seed": 0})
        assert ranks.share(3) == 1.0
    y.sum().backward()
    assert y is not x
    assert torch.equal(x.grad, torch.ones(3))
    with pytest.raises(ScoringError, match="empty on every rank"):
        ranks.share(0)
    with pytest.raises(ValueError, match="n=-1"):
        ranks.share(-1)
    with pytest.raises(ValueError, match="rank=2, size=2"):
        Ranks(2, 2)


def test_one_process_needs_no_torch_distributed() -> None:
    """As on platforms whose PyTorch is built without it."""
    code = (
        "import timm, torch._dynamo, torch.fx.experimental.proxy_tensor\n"
        "import torch.distributed as dist\n"
        "dist.is_available = lambda: False\n"
        "for name in ('PrefixStore', 'new_group', 'group', 'ProcessGroup', 'Work', 'Store'):\n"
        "    delattr(dist, name)\n"
        "from lwdna.scoring.ranks import Ranks\n"
        "ranks = Ranks.current()\n"
        "with ranks.guard():\n"
        "    assert ranks.share(2) == 1\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
