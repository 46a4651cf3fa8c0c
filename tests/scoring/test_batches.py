from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lwdna.errors import ScoringError
from lwdna.scoring import ScoringContext, as_batches, score, synthetic, take
from tests.scoring.networks import Net, analysed, context_of, made

X, Y = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])


class TwoInputs(nn.Module):
    """Two images and an optional third argument; two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 6, 3), nn.Conv2d(3, 6, 3)
        self.fc, self.more = nn.Linear(6, 5), nn.Linear(6, 2)

    def forward(
        self, left: Tensor, right: Tensor, scale: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        x = torch.tanh(self.one(left)) + torch.tanh(self.two(right))
        if scale is not None:
            x = x * scale
        x = x.mean((2, 3))
        return self.fc(x), self.more(x)


def two_losses(outputs: tuple[Tensor, Tensor], targets: Tensor) -> Tensor:
    logits, values = outputs
    return F.cross_entropy(logits, targets) + values.square().mean()


@pytest.mark.parametrize("data", [(X, Y), [X, Y], {"x": X, "label": Y}, ((X,), Y), ({"x": X}, Y)])
def test_one_batch(data: Any) -> None:
    (batch,) = as_batches(data, 2, network=made(Net))
    (inputs,) = batch.inputs
    assert torch.equal(inputs, X) and torch.equal(batch.targets, Y) and batch.size == 4


def test_a_list_of_two_batches_is_no_batch() -> None:
    assert len(as_batches([(X, Y), (X, Y)], 2)) == 2
    with pytest.raises(TypeError, match="a tuple of two tuples, which may be one batch or two"):
        as_batches(((X, Y), (X, Y)), 5)
    assert len(as_batches([{"image": X, "label": Y}] * 2, 5)) == 2


@pytest.mark.parametrize("data", [[X], (X,)])
def test_one_tensor_in_a_list_is_a_batch_or_holds_one(data: Any) -> None:
    """A step function would get the list where its batch is the tensor."""
    got = []

    def step(model: Any, batch: Any) -> Any:
        got.append(batch)
        return model(batch[0] if isinstance(batch, list) else batch)

    with pytest.raises(TypeError, match=r"of one tensor, which may be the batch or hold it"):
        as_batches(data, network=made(Net), step_fn=step)
    as_batches(X, network=made(Net), step_fn=step)
    as_batches([[X]], network=made(Net), step_fn=step)
    as_batches(DataLoader(TensorDataset(X), batch_size=len(X)), network=made(Net), step_fn=step)
    assert [type(batch) for batch in got] == [torch.Tensor, list, list]


def test_a_loader_gives_up_to_n() -> None:
    loader = DataLoader(TensorDataset(torch.arange(10.0)[:, None], torch.arange(10)), batch_size=2)
    batches = as_batches(loader, 3)
    assert [batch.targets.tolist() for batch in batches] == [[0, 1], [2, 3], [4, 5]]
    assert len(as_batches(loader, 99)) == 5


def test_no_more_is_taken_from_an_iterator_than_asked_for() -> None:
    taken = []

    def stream() -> Iterator[Any]:
        for k in range(5):
            taken.append(k)
            yield X, Y

    iterator = stream()
    as_batches(iterator, 2)
    assert taken == [0, 1] and len(list(iterator)) == 3


def test_take_gives_batches_as_they_are() -> None:
    assert take(X, 3)[0] is X and take([X, Y, 3], 1)[0][2] == 3
    data = ["a", 3, (X, Y, Y)]
    assert take(data, 2) == ["a", 3]


def test_moved_to_the_networks_dtype() -> None:
    network = made(Net).double()
    (batch,) = as_batches((X, Y), network=network)
    assert batch.inputs[0].dtype is torch.float64 and batch.targets.dtype is torch.int64
    (batch,) = as_batches((X, {"image": X, "weight": 2.0}), network=network)
    assert batch.targets["image"].dtype is torch.float64 and batch.targets["weight"] == 2.0
    (batch,) = as_batches(
        [(X, [{"boxes": X}])], network=network, step_fn=lambda model, batch: model(batch[0])
    )
    assert batch.whole[1][0]["boxes"].dtype is torch.float64
    assert X.dtype is torch.float32


def test_tensors_made_in_inference_mode() -> None:
    with torch.inference_mode():
        data = X + 1, Y + 0
    context = context_of(made(Net), [data])
    assert not context.batches[0].inputs[0].is_inference()
    assert score(context).any()


@pytest.mark.parametrize("data", [((X, X), Y), ([X, X], Y), ({"right": X, "left": X + 1}, Y)])
def test_nested_inputs(data: Any) -> None:
    (batch,) = as_batches(data, network=made(TwoInputs))
    left, right = batch.inputs[:2]
    assert torch.equal(left, X + 1 if isinstance(data[0], dict) else X) and torch.equal(right, X)
    assert torch.equal(batch.targets, Y) and batch.size == 4


@pytest.mark.parametrize(
    ("entries", "inputs", "targets"),
    [
        ({"left": X, "right": X + 1, "label": Y}, (X, X + 1), Y),
        ({"label": Y, "right": X + 1, "left": X}, (X, X + 1), Y),
        (OrderedDict(left=X, right=X + 1, mask=X, label=Y), (X, X + 1), {"mask": X, "label": Y}),
    ],
)
def test_entries_named_like_arguments(entries: Any, inputs: Any, targets: Any) -> None:
    (batch,) = as_batches(entries, network=made(TwoInputs))
    assert all(torch.equal(a, b) for a, b in zip(batch.inputs, inputs, strict=False))
    if isinstance(targets, Mapping):
        assert batch.targets.keys() == targets.keys()
    else:
        assert torch.equal(batch.targets, targets)


@pytest.mark.parametrize("image", ["image", "img", "pixel_values", "lq", "input"])
@pytest.mark.parametrize("label", ["label", "labels", "target", "gt", "class"])
def test_conventional_names(image: str, label: str) -> None:
    (batch,) = as_batches({"path": ["a"], label: Y, image: X}, network=made(Net))
    assert torch.equal(batch.inputs[0], X) and torch.equal(batch.targets, Y)


@pytest.mark.parametrize(
    "entries",
    [
        {"image": X, "lq": X, "label": Y},
        {"image": X, "label": Y, "target": Y},
        {"image": X},
        {"photo": X, "label": Y},
        {"left": X, "right": X},
    ],
)
def test_ambiguous_entries_are_named(entries: dict[str, Any]) -> None:
    names = ", ".join(map(repr, entries))
    with pytest.raises(ScoringError, match=f"batch 0 .* {names}: .*left, right, scale.*step_fn"):
        as_batches(entries, network=made(TwoInputs))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "holds no batch"),
        (iter([]), "holds no batch"),
        ([X, X, X], "batch 0 is a list of length 3, not a pair"),
        ([(X, Y), (X, Y, Y)], "batch 1 is a tuple of length 3, not a pair"),
        (X, "batch 0 is a Tensor, not a pair"),
        (["ab"], "batch 0 is a str"),
        ((X[:0], Y[:0]), "targets of batch 0 are empty"),
        ((X[:0], 3), r"inputs of batch 0 are empty: shape \(0, 3, 8, 8\)"),
        ((X, Y[:0]), "targets of batch 0 are empty"),
        ([(X, Y), (X / 0, Y)], "inputs of batch 1 hold NaN or infinite"),
        ((X * float("nan"), Y), "inputs of batch 0 hold NaN"),
        ((X, X * float("nan")), "targets of batch 0 hold NaN"),
        (((X, X / 0), Y), "inputs of batch 0 hold NaN"),
        ({"image": X, "label": X / 0}, "label of batch 0 hold NaN"),
    ],
)
def test_bad_data(data: Any, message: str) -> None:
    with pytest.raises(ScoringError, match=message):
        as_batches(data, 3)


@pytest.mark.parametrize("data", [3, None])
def test_no_data_at_all(data: Any) -> None:
    with pytest.raises(TypeError, match="pass one batch"):
        as_batches(data, 2)


def test_n_must_be_positive() -> None:
    with pytest.raises(ValueError, match="n=0"):
        as_batches((X, Y), 0)


def test_several_inputs_and_outputs_are_scored() -> None:
    example = torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 8, 8)
    scores = []
    for data in (
        [((X, X + 1), Y)],
        [({"right": X + 1, "left": X}, Y)],
        [{"right": X + 1, "label": Y, "left": X}],
    ):
        context = context_of(
            made(TwoInputs), data, dtype=torch.float32, example=example, loss_fn=two_losses
        )
        scores.append(score(context))
        assert scores[-1][context.graph.prunable[context.graph.group_of]].all()
        np.testing.assert_array_equal(scores[-1], scores[0])
    swapped = context_of(
        made(TwoInputs), [((X + 1, X), Y)], dtype=torch.float32, example=example, loss_fn=two_losses
    )
    assert (score(swapped) != scores[0]).any()


STEPS = {
    "pair": (lambda model, b: two_losses(model(*b[0]), b[1]), ((X, X + 1), Y)),
    "triple": (lambda model, b: two_losses(model(b[0], b[1]), b[2]), (X, X + 1, Y)),
    "keywords": (lambda m, b: two_losses(m(right=b[1], left=b[0]), b[2]), (X, X + 1, Y)),
    "dict": (
        lambda m, b: two_losses(m(**b["in"]), b["y"]),
        {"in": {"right": X + 1, "left": X}, "y": Y},
    ),
    "pops": (
        lambda m, b: two_losses(targets=b.pop("y"), outputs=m(**b)),
        {"y": Y, "left": X, "right": X + 1},
    ),
    "objects": (
        lambda m, b: two_losses(m(b["a"], b["a"] + 1), torch.arange(4)),
        {"a": X, "n": ["s"]},
    ),
}


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("criterion", ["latent-grad", "fisher", "snip"])
def test_step_functions_take_batches_of_any_form(name: str, criterion: str) -> None:
    example = torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 8, 8)
    step, batch = STEPS[name]
    kwargs: dict[str, Any] = {"dtype": torch.float32, "example": example}
    context = context_of(made(TwoInputs), [batch], step_fn=step, **kwargs)
    assert context.batches[0].size == 4
    assert torch.equal(context.batches[0].inputs[0], X)
    assert torch.equal(context.batches[0].inputs[1], X + 1)
    plain = context_of(made(TwoInputs), [((X, X + 1), Y)], loss_fn=two_losses, **kwargs)
    np.testing.assert_array_equal(score(context, criterion), score(plain, criterion))


def test_a_step_function_on_a_tensor_alone() -> None:
    def step(model: Any, batch: Tensor) -> Tensor:
        return (model(batch).softmax(1) * model(batch).log_softmax(1)).sum(1).mean()

    context = context_of(made(Net), [X], step_fn=step)
    assert torch.equal(context.batches[0].inputs[0], X.double())
    assert score(context).any()


def test_a_step_function_may_leave_an_argument_out() -> None:
    scale = torch.rand(4, 1, 1, 1)
    (batch,) = as_batches(
        [(X, scale)], network=made(Skips), step_fn=lambda model, b: model(b[0], scale=b[1])
    )
    assert torch.equal(batch.inputs[0], X) and batch.inputs[1] is None
    assert torch.equal(batch.inputs[2], scale)


class Skips(nn.Conv2d):
    def __init__(self) -> None:
        super().__init__(3, 5, 1)

    def forward(self, x: Tensor, bias: Tensor | None = None, scale: Any = None) -> Tensor:
        return super().forward(x) * (1 if scale is None else scale)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (lambda model, b: b[0].sum(), "step_fn does not call the model on batch 0"),
        (lambda model, b: model(b["x"]), "step_fn fails on batch 0: TypeError: tuple indices"),
        (
            lambda model, b: model(b[0], photo=b[0]),
            "on batch 0 as it can be: .*unexpected.*'photo'",
        ),
        (lambda model, b: model(), "inputs of batch 0 are empty: no tensor"),
        (lambda model, b: model.head(b[0]), "step_fn fails on batch 0: AttributeError.*'head'"),
    ],
)
def test_bad_step_functions(step: Any, message: str) -> None:
    with pytest.raises(ScoringError, match=message):
        as_batches((X, Y), network=made(Net), step_fn=step)


def test_a_step_function_that_catches_errors() -> None:
    def step(model: Any, batch: Any) -> Tensor:
        try:
            return F.cross_entropy(model(batch[0]), batch[1])
        except Exception:
            return torch.zeros(())

    (batch,) = as_batches((X, Y), network=made(Net), step_fn=step)
    assert torch.equal(batch.inputs[0], X)


def test_step_functions_draw_the_same_random_numbers_afterwards() -> None:
    def step(model: Any, batch: Any) -> Tensor:
        return F.cross_entropy(model(batch[0] + torch.randn_like(batch[0])), batch[1])

    gm, graph = analysed(made(Net))
    before = torch.get_rng_state()
    context = ScoringContext(gm, graph, as_batches((X, Y), network=gm, step_fn=step), step_fn=step)
    assert torch.equal(before, torch.get_rng_state())
    np.testing.assert_array_equal(score(context), score(context))
    assert torch.equal(before, torch.get_rng_state())


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
