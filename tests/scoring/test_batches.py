from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lwdna.errors import ScoringError
from lwdna.scoring import as_batches, synthetic

X, Y = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])


@pytest.mark.parametrize("data", [(X, Y), [X, Y]])
def test_one_batch(data: Any) -> None:
    ((inputs, targets),) = as_batches(data, 2)
    assert torch.equal(inputs, X) and torch.equal(targets, Y)


def test_a_list_of_two_batches_is_no_batch() -> None:
    assert len(as_batches([(X, Y), (X, Y)], 2)) == 2
    assert len(as_batches(((X, Y), (X, Y)), 5)) == 2


def test_a_loader_gives_up_to_n() -> None:
    loader = DataLoader(TensorDataset(torch.arange(10.0)[:, None], torch.arange(10)), batch_size=2)
    batches = as_batches(loader, 3)
    assert [y.tolist() for _, y in batches] == [[0, 1], [2, 3], [4, 5]]
    assert len(as_batches(loader, 99)) == 5


def test_no_more_is_taken_from_an_iterator_than_asked_for() -> None:
    iterator = iter([(X, Y)] * 5)
    as_batches(iterator, 2)
    assert len(list(iterator)) == 3


def test_moved_to_the_networks_dtype() -> None:
    network = nn.Linear(2, 2).double()
    ((inputs, targets),) = as_batches((X, Y), network=network)
    assert inputs.dtype is torch.float64 and targets.dtype is torch.int64
    ((_, targets),) = as_batches((X, {"image": X, "weight": 2.0}), network=network)
    assert targets["image"].dtype is torch.float64 and targets["weight"] == 2.0
    assert X.dtype is torch.float32


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "holds no batch"),
        (iter([]), "holds no batch"),
        ([X, X, X], "batch 0 is a Tensor, not a pair"),
        ([(X, Y), (X, Y, Y)], "batch 1 is a tuple of length 3, not a pair"),
        ([{"image": X}], "batch 0 is a dict, not a pair"),
        (["ab"], "batch 0 is a str"),
        ((X[:0], Y[:0]), r"inputs of batch 0 are empty: shape \(0, 3, 8, 8\)"),
        ((X, Y[:0]), "targets of batch 0 are empty"),
        ([(X, Y), (X / 0, Y)], "inputs of batch 1 hold NaN or infinite"),
        ((X * float("nan"), Y), "inputs of batch 0 hold NaN"),
        ((X, X * float("nan")), "targets of batch 0 hold NaN"),
    ],
)
def test_bad_data(data: Any, message: str) -> None:
    with pytest.raises(ScoringError, match=message):
        as_batches(data, 3)


@pytest.mark.parametrize("data", [X, 3, None])
def test_no_data_at_all(data: Any) -> None:
    with pytest.raises(TypeError, match="pass one batch"):
        as_batches(data, 2)


def test_n_must_be_positive() -> None:
    with pytest.raises(ValueError, match="n=0"):
        as_batches((X, Y), 0)


def test_synthetic() -> None:
    with pytest.warns(UserWarning, match="data-free"):
        inputs, labels = synthetic((64, 3, 16, 16), 7, seed=1)
    assert inputs.shape == (64, 3, 16, 16) and labels.shape == (64,)
    assert inputs.mean().abs() < 0.05 and abs(inputs.std() - 1) < 0.05
    assert labels.min() == 0 and labels.max() == 6
    with pytest.warns(UserWarning):
        again, _ = synthetic((64, 3, 16, 16), 7, seed=1)
        other, _ = synthetic((64, 3, 16, 16), 7, seed=2)
    assert torch.equal(inputs, again) and not torch.equal(inputs, other)
    for shape, classes in (((0, 3), 2), ((4, 3), 0), ((), 1)):
        with pytest.raises(ValueError, match="must be positive"):
            synthetic(shape, classes)
