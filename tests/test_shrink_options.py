"""Arguments of shrink beyond the first: constraints, tasks, weights, outputs, attainable."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lwdna
from lwdna.scoring import NamedCriterion, ScoringContext, generated
from tests.test_api import Net, batch


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


def widths(network: Any) -> dict[str, int]:
    return {g.name: g.width for g in network.meta["lwdna"].groups if g.prunable}


def never(context: ScoringContext) -> np.ndarray:
    raise AssertionError("scored")


# --- budgets, constraints, allocation -------------------------------------------------------------


@pytest.mark.parametrize("metric", ["macs", "params", "flops_paper", "activations"])
def test_attainable_is_what_shrink_attains(net: Net, metric: str) -> None:
    constraints = lwdna.Constraints(lwdna.Floors(0.3), divisor=2, max_growth=1.5)
    example = batch()[0][:1]
    ranges = lwdna.attainable(
        net.to("meta"), widen=2.0, constraints=constraints, example_inputs=example
    )
    least, most = ranges[metric]
    net = Net()
    options = {"data": batch(), "constraints": constraints, "criterion": "random"}
    assert (
        lwdna.shrink(net, lwdna.Budget(**{metric: least}), **options).meta["lwdna"].after[metric]
        == least
    )
    assert (
        lwdna.shrink(net, lwdna.Budget(**{metric: most}), **options).meta["lwdna"].after[metric]
        == most
    )
    with pytest.raises(lwdna.BudgetError, match=f"{least:,}"):
        lwdna.shrink(net, lwdna.Budget(**{metric: least - 1}), **options)


def test_contradictions_come_together_and_before_any_scoring(net: Net) -> None:
    constraints = lwdna.Constraints(
        lwdna.Floors(overrides={"stem": 1000, "nobody": 3}),
        divisor={"conv1": 64},
        max_growth={"conv1": 0.5},
        freeze=["nowhere"],
    )
    with pytest.raises(lwdna.ConstraintError) as caught:
        lwdna.shrink(net, 0.8, data=batch(), constraints=constraints, criterion=never)
    text = str(caught.value)
    assert all(word in text for word in ("'stem'", "'nobody'", "'conv1'", "'nowhere'")), text
    assert len(caught.value.problems) == 4


def test_frozen_groups_keep_width_and_weights(net: Net) -> None:
    constraints = lwdna.Constraints(freeze=["conv1"])
    small = lwdna.shrink(net, 0.95, data=batch(), constraints=constraints, weights="inherit")
    assert small.conv1.out_channels == net.conv1.out_channels
    (group,) = (g for g in small.meta["lwdna"].groups if g.name == "conv1")
    assert group.widened == group.baseline and not group.prunable


def test_text_budgets_and_saliency_per_cost(net: Net) -> None:
    by_threshold = lwdna.shrink(net, "70%", data=batch())
    by_cost = lwdna.shrink(net, "70%", data=batch(), allocation="saliency-per-cost")
    assert by_threshold.meta["lwdna"].limits == by_cost.meta["lwdna"].limits
    assert by_cost.meta["lwdna"].settings["allocation"] == "saliency-per-cost"
    assert widths(by_cost) != widths(by_threshold)


# --- tasks ----------------------------------------------------------------------------------------


def test_dicts_step_functions_and_loaders_score_alike(net: Net) -> None:
    x, y = batch()
    expected = widths(lwdna.shrink(net, 0.7, data=(x, y)))
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=len(x))

    def step(model: nn.Module, given: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(model(given["picture"]), given["kind"])

    for data, options in (
        ({"image": x, "label": y}, {}),
        ({"x": x, "anything": y}, {}),
        (loader, {}),
        (iter([(x, y)]), {}),
        ([{"picture": x, "kind": y}], {"step_fn": step}),
    ):
        assert widths(lwdna.shrink(net, 0.7, data=data, **options)) == expected


class TwoInputs(nn.Module):
    """Two inputs and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 12, 3), nn.Conv2d(1, 12, 3)
        self.join, self.a, self.b = nn.Conv2d(24, 16, 3), nn.Linear(16, 4), nn.Linear(16, 2)

    def forward(self, image: Tensor, depth: Tensor) -> tuple[Tensor, Tensor]:
        both = torch.cat([self.left(image).relu(), self.right(depth).relu()], 1)
        x = self.join(both).mean((2, 3)).relu()
        return self.a(x), self.b(x)


def test_several_inputs_and_outputs() -> None:
    image, depth, y = torch.randn(4, 3, 9, 9), torch.randn(4, 1, 9, 9), torch.randint(2, (4,))

    def loss(outputs: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
        return F.cross_entropy(outputs[0], target) + F.cross_entropy(outputs[1], target)

    torch.manual_seed(0)
    model = TwoInputs()
    by_position = lwdna.shrink(model, 0.6, data=((image, depth), y), loss_fn=loss)
    by_name = lwdna.shrink(model, 0.6, data=({"depth": depth, "image": image}, y), loss_fn=loss)
    flat = {"depth": depth, "image": image, "target": y}
    by_entry = lwdna.shrink(model, 0.6, data=flat, loss_fn=loss)
    assert widths(by_position) == widths(by_name) == widths(by_entry)
    a, b = by_position(image, depth)
    assert a.shape == (4, 4) and b.shape == (4, 2)


# --- weights --------------------------------------------------------------------------------------


def trained(net: Net) -> Net:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(net(batch()[0]), batch()[1]).backward()
        optimizer.step()
    return net


@pytest.mark.parametrize(
    ("criterion", "widen", "train", "expected"),
    [
        ("latent-grad", 2.0, False, "hyper"),
        ("latent-grad", 2.0, True, "hyper"),
        ("latent-grad", 1.0, False, "hyper"),
        ("latent-grad", 1.0, True, "inherit"),
        ("magnitude", 2.0, False, "hyper"),
        ("magnitude", 1.0, True, "inherit"),
    ],
)
def test_default_weights(
    net: Net, criterion: str, widen: float, train: bool, expected: str
) -> None:
    model = trained(net) if train else net
    small = lwdna.shrink(model, 0.7, data=batch(), widen=widen, criterion=criterion)
    assert small.meta["lwdna"].settings["weights"] == expected


def test_inherited_weights_are_slices_of_the_models(net: Net) -> None:
    small = lwdna.shrink(trained(net), 0.7, data=batch(), widen=1.0)
    kept = {g.name: list(g.kept) for g in small.meta["lwdna"].groups}
    expected = net.conv1.weight.detach()[kept["conv1"]][:, kept["stem"]]
    assert torch.equal(small.conv1.weight, expected)
    assert torch.equal(small.bn.running_var, net.bn.running_var[kept["stem"]])


def test_hyper_weights_are_slices_of_the_generated_ones(net: Net) -> None:
    contexts: list[ScoringContext] = []

    def spy(context: ScoringContext, *, embedding: int) -> np.ndarray:
        contexts.append(context)
        result: np.ndarray = lwdna.scoring.latent_grad(context, embedding=embedding)
        return result

    spied = NamedCriterion("spy", {"embedding": 3}, spy)
    small = lwdna.shrink(net, 0.7, data=batch(), criterion=spied, weights="hyper")
    weights = generated(contexts[0], embedding=3)
    kept = {g.name: list(g.kept) for g in small.meta["lwdna"].groups}
    expected = weights["conv1.weight"][kept["conv1"]][:, kept["stem"]]
    assert torch.equal(small.conv1.weight, expected)
    other = lwdna.shrink(net, 0.7, data=batch(), criterion="latent-grad", weights="hyper")
    assert not torch.equal(other.conv1.weight, small.conv1.weight)  # of another embedding size


def test_fresh_weights_follow_the_seed_and_nothing_else(net: Net) -> None:
    a, b, c = (
        lwdna.shrink(net, 0.7, data=batch(), criterion="uniform", weights="fresh", seed=s)
        for s in (1, 1, 2)
    )
    assert torch.equal(a.conv1.weight, b.conv1.weight)
    assert widths(a) == widths(c) and not torch.equal(a.conv1.weight, c.conv1.weight)
    bound = (a.conv1.in_channels * 9) ** -0.5  # torch's default law, at the new fan-in
    assert 0.95 * bound < a.conv1.weight.abs().max() <= bound


# --- outputs --------------------------------------------------------------------------------------


def test_free_outputs_change() -> None:
    class Backbone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 24, 3)

        def forward(self, x: Tensor) -> list[Tensor]:
            one = self.one(x).relu()
            return [one, self.two(one)]

    def step(model: nn.Module, x: Tensor) -> Tensor:
        return sum(out.square().mean() for out in model(x))  # type: ignore[return-value]

    x = torch.randn(2, 3, 12, 12)
    fixed = lwdna.shrink(Backbone(), 0.9, data=x, step_fn=step, constraints=_LOW, outputs="free")
    assert [out.shape[1] for out in fixed(x)] == list(widths(fixed).values()) != [16, 24]
    with pytest.raises(lwdna.BudgetError):
        lwdna.shrink(Backbone(), 0.5, data=x, step_fn=step, constraints=_LOW)  # all is fixed


_LOW = lwdna.Constraints(lwdna.Floors(0.0, 1, 0.0))


# --- errors ---------------------------------------------------------------------------------------


def endless() -> Iterator[Any]:
    while True:
        yield batch()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"criterion": "lamp"}, ValueError, "'lamp': one of .*latent-grad"),
        (
            {"criterion": lwdna.get_criterion("random"), "allocation": "best"},
            ValueError,
            "allocation='best'",
        ),
        ({"scoring": 2}, TypeError, "scoring is a int: pass lwdna.Scoring"),
        ({"step_fn": lambda m, b: 0, "data": None}, ValueError, "step_fn without data"),
        ({"step_fn": len, "loss_fn": len}, ValueError, "both loss_fn and step_fn"),
        ({"loss_fn": 3}, TypeError, "loss_fn is a int: pass a function"),
        ({"outputs": "loose"}, ValueError, "outputs"),
        (
            {"criterion": lambda c: np.full(c.graph.units, np.nan)},
            lwdna.ScoringError,
            "in .* channel groups \\('stem'",
        ),
    ],
)
def test_bad_arguments(
    net: Net, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        lwdna.shrink(net, 0.8, **{"data": endless(), **options})


def test_images_are_no_labels() -> None:
    model, images = nn.Sequential(nn.Conv2d(3, 16, 1), nn.Conv2d(16, 3, 1)), torch.rand(2, 3, 8, 8)
    with pytest.raises(lwdna.ScoringError, match=r"no class probabilities.*the task's own"):
        lwdna.shrink(model, 0.95, data=(images, images))


def test_networks_without_norms_are_drawn_afresh() -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 1), nn.ReLU(), nn.Conv2d(16, 3, 1))
    images = torch.rand(2, 3, 8, 8)
    small = lwdna.shrink(model, 0.95, data=(images, images), loss_fn=F.l1_loss)
    assert small.meta["lwdna"].settings["weights"] == "fresh"


def test_a_leaf_of_several_layers_keeps_its_widths() -> None:
    class Dropped(nn.Module):
        """A running statistic, which training alone changes in place: one opaque module."""

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(8, 8, 1), nn.LayerNorm(8)
            self.register_buffer("mean", torch.zeros(1, 8, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
            if self.training:
                self.mean.lerp_(y.detach().mean((0, 2, 3), keepdim=True), 0.1)
            return x + y - self.mean

    model = nn.Sequential(
        nn.Conv2d(3, 16, 1),
        nn.Conv2d(16, 8, 1),
        Dropped(),
        nn.Conv2d(8, 12, 1),
        nn.Conv2d(12, 3, 1),
    )
    images = torch.rand(2, 3, 6, 6)
    small = lwdna.shrink(model, 0.95, data=(images, images), loss_fn=F.l1_loss)
    assert list(widths(small)) == ["0", "3"] and small(images).shape == images.shape
