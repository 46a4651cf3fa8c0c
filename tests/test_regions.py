"""Networks that are no static graph: captured in parts, coupled across the code between them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule

import lwdna
from lwdna.fx_passes import region_follow, verify
from lwdna.fx_passes.analyse import analyse
from lwdna.fx_passes.capture import capture
from lwdna.fx_passes.regions import graphs, of_samples
from lwdna.graph import ChannelGraph
from tests.quality import resized
from tests.toy_detector import Detector, batch, conv, detector, losses, step


def analysed(model: nn.Module) -> ChannelGraph:
    return analyse(capture(model, batch()), batch())


def group(graph: ChannelGraph, name: str) -> Any:
    return next(g for g in graph.groups if g.name == name)


def quick(cases: Iterable[str], n: int) -> list[Any]:
    """Parameters of which all but the first ``n`` run with the slow tests only."""
    return [
        case if k < n else pytest.param(case, marks=pytest.mark.slow)
        for k, case in enumerate(cases)
    ]


def shrinks_exactly(model: nn.Module) -> None:
    """What a network and a random shrinking of it must agree on."""
    verify.stir(model)
    resized(capture(model, batch()), batch())


# --- a detector of one's own ---


def test_the_largest_parts_that_are_graphs_are_captured() -> None:
    model = detector()
    net = capture(model, batch())
    assert type(net) is Detector
    # Head has a method that is called from outside; the ModuleDict is never called itself.
    assert sorted(graphs(net)) == [
        "box.deltas",
        "box.scores",
        "box_head",
        "head.score",
        "head.tower",
        "level",
        "stem",
    ]
    assert all(isinstance(part, GraphModule) for part in graphs(net).values())
    assert list(net.state_dict()) == list(model.state_dict())


def test_all_invariants_hold_and_everything_is_prunable() -> None:
    model = detector()
    verify.verify(model, batch())
    graph = analysed(model)
    widths = {g.name: g.width for g in graph.groups if g.prunable}
    assert widths == {"stem.0": 16, "level.0": 16, "head.tower.0": 12, "box_head.1": 20} or (
        # both levels meet in the one tower
        widths == {"stem.0": 16, "head.tower.0": 12, "box_head.1": 20}
    )


def test_channels_are_coupled_across_the_code_between_parts() -> None:
    graph = analysed(detector())
    slots = {str(slot): n for slot, n in group(graph, "stem.0").slots}
    assert slots["level.0.weight[0]"] == 1  # both levels meet in the head's one tower
    assert slots["head.tower.0.weight[1]"] == 1
    assert slots["box_head.1.weight[1]"] == 9  # roi_align keeps channels; 3 x 3 positions


def test_shrink_gives_a_detector_that_trains_and_detects() -> None:
    model = detector()
    with verify.untouched(model):
        net = lwdna.shrink(model, 0.6, data=[batch(), batch()], step_fn=step, progress=False)
    assert type(net) is Detector
    dna = net.meta["lwdna"]
    assert 0.55 * dna.before.macs < dna.after.macs <= 0.6 * dna.before.macs
    assert dna.after.params == sum(p.numel() for p in net.parameters())
    net.train()
    losses(net, batch(3)).backward()
    unused = {name for name, p in net.named_parameters() if p.grad is None}
    assert not unused
    net.eval()
    (found,) = net([torch.rand(3, 33, 27)])
    assert found["boxes"].shape[1] == 4
    again = copy.deepcopy(net)
    again.load_state_dict(net.state_dict(), strict=True)
    assert torch.equal(again(batch()[0])[0]["scores"], net(batch()[0])[0]["scores"])


@pytest.mark.parametrize("criterion", quick(["taylor", "magnitude", "latent-magnitude"], 1))
def test_other_criteria_score_parts(criterion: str) -> None:
    net = lwdna.shrink(
        detector(), 0.8, data=[batch()], step_fn=step, criterion=criterion, progress=False
    )
    assert net.meta["lwdna"].criterion.startswith(criterion)


def test_attainable_and_explain_know_parts(capsys: pytest.CaptureFixture[str]) -> None:
    model = detector()
    least, most = lwdna.attainable(model, example_inputs=batch())["macs"]
    assert least < analysed(model).cost().macs < most
    lwdna.explain(model, batch())
    assert "head.tower.0" in capsys.readouterr().out


# --- what must not change, and why ---


def fixed_width(_: Any, m: Tensor) -> Tensor:
    result = torch.zeros(len(m), 16, *m.shape[2:], dtype=m.dtype)  # a size that is written down
    index = torch.arange(len(m))
    result[index] = m
    return result


FROZEN: dict[str, tuple[Callable[[Any, Tensor], Tensor], str]] = {
    "a written size": (fixed_width, "the code between the parts fails on other widths"),
    "half of the channels, swapped": (
        lambda _, m: torch.cat([m[:, 8:], m[:, :8]], 1),
        "outside of the captured parts does not hand it on",
    ),
    "a mean over channels": (
        lambda _, m: m - m.mean(1, keepdim=True),
        "outside of the captured parts does not hand it on",
    ),
    "a parameter": (
        lambda s, m: m * s.gain[:, None, None],
        "meets a fixed dimension in mul",
    ),
    "channels by index": (lambda _, m: m[:, torch.arange(15, -1, -1)], "addressed by an index"),
    "an operator without a rule": (
        lambda _, m: torch.histc(m, 4).sum() * 0 + m,
        "has no channel rule",
    ),
}


@pytest.mark.parametrize("case", quick(FROZEN, 2))
def test_what_code_between_parts_does_not_hand_on_is_frozen(case: str) -> None:
    between, reason = FROZEN[case]
    model = detector(between)
    if case == "a parameter":
        model.gain = nn.Parameter(torch.rand(16))
    stem = group(analysed(model), "stem.0")
    assert not stem.prunable
    assert any(reason in why for why, _ in stem.reasons), stem.reasons
    shrinks_exactly(model)


PASSED: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "relu and a sum": lambda _, m: F.relu(m) + m,
    "resampling": lambda _, m: F.interpolate(F.max_pool2d(m, 2), scale_factor=2.0),
    "by sample": lambda _, m: torch.stack([row * 2 for row in m]),
    "masked rows": lambda _, m: m[torch.ones(len(m), dtype=torch.bool)],
    "dynamic zeros": lambda _, m: torch.zeros_like(m).index_put_((torch.arange(len(m)),), m),
}


@pytest.mark.parametrize("case", quick(PASSED, 1))
def test_what_code_between_parts_hands_on_stays_prunable(case: str) -> None:
    model = detector(PASSED[case])
    assert group(analysed(model), "stem.0").prunable
    shrinks_exactly(model)


def test_without_freezing_between_parts_the_oracle_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oracles are no formality."""
    monkeypatch.setattr(region_follow.CrossingMode, "finish", lambda self, op: op.out)
    with pytest.raises((lwdna.LwdnaError, RuntimeError)):
        shrinks_exactly(detector(lambda _, m: m - m.mean(1, keepdim=True)))


def test_a_mode_that_does_not_run_freezes_what_crosses() -> None:
    images, _ = batch()
    graph = analyse(capture(detector(), (images,)), (images,))
    stem = group(graph, "stem.0")
    assert not stem.prunable
    assert any("unknown in training mode" in why for why, _ in stem.reasons)
    assert group(graph, "head.tower.0").width == 12


def test_a_parameter_that_is_not_reached_freezes_what_crosses() -> None:
    model = detector()
    model.extra = nn.Linear(16, 2)
    stem = group(analysed(model), "stem.0")
    assert any("do not reach all parameters" in why for why, _ in stem.reasons)


def test_ties_between_parts_survive() -> None:
    model = detector(lambda s, m: s.again(m))
    model.again = conv(16, 16)
    model.again[0].weight = model.level[0].weight
    net = capture(model, batch())
    assert net.get_submodule("level.0").weight is net.get_submodule("again.0").weight
    shrinks_exactly(model)


# --- refusals ---


def test_inputs_without_values_are_refused_with_the_remedy() -> None:
    with pytest.raises(lwdna.CaptureError, match="give real example inputs"):
        lwdna.explain(detector())


def test_criteria_that_need_one_graph_say_so() -> None:
    for criterion in ("fisher", "synflow"):
        with pytest.raises(lwdna.ScoringError, match="captured in parts"):
            lwdna.shrink(
                detector(), 0.8, data=[batch()], step_fn=step, criterion=criterion, progress=False
            )


def test_only_what_can_be_captured_in_parts_is_asked_for_values() -> None:
    class Branching(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            return y if y.sum() > 0 else -y

    with pytest.raises(lwdna.CaptureError, match="control flow") as caught:
        lwdna.explain(Branching(nn.Conv2d(3, 8, 1)))
    assert "captured in parts" not in str(caught.value)


def test_criteria_without_data_need_none_of_a_detector() -> None:
    net = lwdna.shrink(detector(), 0.8, criterion="random", example_inputs=batch(), progress=False)
    assert net.meta["lwdna"].after.macs <= 0.8 * net.meta["lwdna"].before.macs


def test_noise_is_no_data_for_a_detector() -> None:
    with pytest.raises(lwdna.ScoringError, match="cannot be scored on noise"):
        lwdna.shrink(detector(), 0.8, example_inputs=batch(), progress=False)


def test_micro_batches_of_lists_are_refused() -> None:
    with pytest.raises(lwdna.ScoringError, match="lists of samples"):
        lwdna.shrink(
            detector(),
            0.8,
            data=[batch()],
            step_fn=step,
            scoring=lwdna.Scoring(micro_batch=1),
            progress=False,
        )


def test_an_attribute_named_meta_is_refused() -> None:
    model = detector()
    model.meta = "mine"
    with pytest.raises(lwdna.UnsupportedModelError, match="'meta'"):
        capture(model, batch())


def test_samples_are_entries_of_lists_and_rows_of_tensors() -> None:
    images, rows = of_samples(([1, 2], torch.arange(4)), 3)
    assert images == [1, 2, 1]
    assert rows.tolist() == [0, 1, 2]
    assert of_samples(({"a": [1]}, None), 2) == ({"a": [1, 1]}, None)
