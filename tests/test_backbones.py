"""Backbones with several outputs: widths of the outputs fixed or free."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils._pytree import tree_leaves, tree_map_only
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.feature_extraction import create_feature_extractor

import lwdna
from lwdna import output_channels
from lwdna.fx_passes import verify
from lwdna.fx_passes.outputs import freed
from lwdna.graph import ChannelGraph
from tests.documents import run_page

X = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def features() -> nn.Module:
    model: nn.Module = timm.create_model("resnet18", features_only=True)
    return model


def bottlenecks() -> nn.Module:
    model: nn.Module = timm.create_model("resnet50", features_only=True, out_indices=(1, 4))
    return model


def extractor() -> nn.Module:
    model = torchvision.models.resnet18(weights=None)
    nodes = {"layer2.1.relu_1": "middle", "layer4.1.relu_1": "last", "fc": "logits"}
    return create_feature_extractor(model, nodes)


def pyramid() -> nn.Module:
    return resnet_fpn_backbone(backbone_name="resnet18", weights=None, trainable_layers=5)


BACKBONES: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "timm features": (features, [64, 64, 128, 256, 512]),
    "timm resnet50": (bottlenecks, [256, 2048]),
    "extractor": (extractor, {"middle": 128, "last": 512, "logits": 1000}),
    "fpn": (pyramid, {"0": 256, "1": 256, "2": 256, "3": 256, "pool": 256}),
}


def stirred(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    model = make()
    verify.stir(model)
    return model


def channels(network: nn.Module) -> Any:
    """Channel counts by running the network."""
    with torch.no_grad():
        out = network.eval()(X)
    return tree_map_only(Tensor, lambda t: t.shape[1], out)


def shrunk(model: nn.Module, outputs: Any) -> tuple[GraphModule, ChannelGraph, Any, GraphModule]:
    """(captured, its graph, copies, network at 70 % of the MACs)."""
    gm = lwdna.capture(model, X)
    graph = lwdna.analyse(gm, X, outputs=outputs)
    saliency = lwdna.score(lwdna.ScoringContext(gm, graph), "random")
    selection = lwdna.select(graph, saliency, lwdna.Budget(macs=0.7).limits(graph.cost()))
    assert 0.69 <= selection.cost.macs / graph.cost().macs <= 0.7
    return gm, graph, selection.copies, lwdna.shrink_graph(gm, graph, selection.copies)


def check_invariants(gm: GraphModule, graph: ChannelGraph, copies: Any, net: GraphModule) -> None:
    verify.cost(graph, copies, net)
    verify.masked_equivalence(gm, graph, copies, net, X)
    verify.restriction(graph, copies, net)
    verify.trains(net, X)


@pytest.mark.parametrize("name", BACKBONES)
def test_fixed_outputs_keep_their_channels(name: str) -> None:
    make, expected = BACKBONES[name]
    model = stirred(make)
    gm, graph, copies, net = shrunk(model, "fixed")
    verify.identity(model, gm, X)
    check_invariants(gm, graph, copies, net)
    assert tree_leaves(channels(model)) == tree_leaves(expected)
    assert channels(net) == expected
    assert output_channels(graph) == output_channels(graph.restrict(copies)) == expected
    assert freed(graph) == {}


@pytest.mark.parametrize("name", BACKBONES)
def test_free_outputs_change_their_channels(name: str) -> None:
    make, before = BACKBONES[name]
    gm, graph, copies, net = shrunk(stirred(make), "free")
    check_invariants(gm, graph, copies, net)
    after = channels(net)
    assert output_channels(graph) == before
    assert output_channels(graph.restrict(copies)) == after
    assert output_channels(lwdna.analyse(net, X)) == after
    assert output_channels(lwdna.analyse(net, X, outputs="free")) == after
    assert type(after) is type(before)
    for old, new in zip(tree_leaves(before), tree_leaves(after), strict=True):
        assert new == old if old == 1000 else new < old
    classifiers = {name for name, role in graph.roles.items() if role.classifier}
    assert classifiers == ({"fc.weight"} if name == "extractor" else set())
    feeding = {g.name for g in graph.groups if g.feeds_classifier}
    assert feeding == (_feeding(graph, "fc.weight") if classifiers else set())


def _feeding(graph: ChannelGraph, weight: str) -> set[str]:
    """Groups along the input dimension of a linear layer."""
    vector = graph.tensors[weight][1]
    return {graph.groups[g].name for g in np.unique(graph.group_of[vector])}


def test_verify_checks_free_outputs() -> None:
    said = lwdna.verify(stirred(features), X, outputs="free")
    assert said.statements["masked equivalence"].startswith("5 outputs")


def test_the_masked_oracle_sees_a_wrong_output_channel() -> None:
    gm, graph, copies, net = shrunk(stirred(features), "free")
    group = next(g for g in graph.groups if "layer4" in g.name)
    wrong = copies.copy()
    removed, kept = (group.units[copies[group.units] == n][0] for n in (0, 1))
    wrong[[removed, kept]] = 1, 0
    with pytest.raises(lwdna.VerificationError, match="masked equivalence"):
        verify.masked_equivalence(gm, graph, wrong, net, X)


def test_each_output_has_its_own_choice() -> None:
    model = stirred(extractor)
    _, graph, _, net = shrunk(model, {"last": "free"})
    after = channels(net)
    assert after["middle"] == 128
    assert after["logits"] == 1000
    assert after["last"] < 512
    assert freed(graph) == {"last": "free"}
    gm = lwdna.capture(features(), X)
    graph = lwdna.analyse(gm, X, outputs={"4": "fixed", "[34]": "free"})
    assert freed(graph) == {"3": "free"}  # the first pattern that matches


# --- which dimension is the channels' ---


class Tokens(nn.Module):
    """(B, N, C) tokens with a position table, as given by ``form``."""

    def __init__(self, form: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.embed, self.fc = nn.Conv2d(3, 12, 8, 8), nn.Linear(12, 20)
        self.table = nn.Parameter(torch.randn(1, 64, 12))
        self.form = form

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2) + self.table
        return self.form(self.fc(x))


@pytest.mark.parametrize(
    ("form", "dim"),
    [
        (lambda t: t, 2),
        (lambda t: t.transpose(1, 2), 1),
        (lambda t: t.unflatten(1, (8, 8)), 3),
        (lambda t: t.transpose(1, 2).unflatten(2, (8, 8)), 1),
        (lambda t: t.unflatten(1, (8, 8)).unsqueeze(1), 4),
        (lambda t: t.unflatten(2, (4, 5)), None),  # either axis
    ],
    ids=["BNC", "BCN", "BHWC", "BCHW", "B1HWC", "heads"],
)
def test_the_channel_dimension_is_found_by_its_channels(form: Any, dim: int | None) -> None:
    torch.manual_seed(0)
    gm = lwdna.capture(Tokens(form), X)
    graph = lwdna.analyse(gm, X, outputs="free")
    free = {g.name for g in graph.groups if g.prunable}
    assert free == ({"embed", "fc"} if dim is not None else {"embed"})
    assert output_channels(graph) == (20 if dim is not None else None)
    lwdna.verify(Tokens(form), X, outputs="free")


def test_where_channels_lie_along_two_dimensions_of_three_nothing_is_free() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 7, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x).mean((2, 3))[:, :, None] * self.b(x).mean((2, 3))[:, None, :]

    graph = lwdna.analyse(lwdna.capture(Outer(), X), X, outputs="free")
    assert not any(g.prunable for g in graph.groups)
    assert output_channels(graph) is None


# --- bad arguments ---


def test_choices_that_cannot_be_made_are_refused() -> None:
    gm = lwdna.capture(extractor(), X)
    for outputs in ("open", {"last": "open"}):
        with pytest.raises(ValueError, match="outputs 'open'"):
            lwdna.analyse(gm, X, outputs=outputs)  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match=r"'layer9' matches none of \['middle', 'last', 'logits'\]"
    ):
        lwdna.analyse(gm, X, outputs={"layer9": "free"})
    with pytest.raises(ValueError, match=r"'logits'='free'.*\(1, 1000\)"):
        lwdna.analyse(gm, X, outputs={"logits": "free"})
    with pytest.raises(ValueError, match="class scores and embeddings"):
        lwdna.analyse(lwdna.capture(timm.create_model("resnet18"), X), X, outputs="free")


# --- the documentation ---


def test_the_code_of_the_documentation_runs() -> None:
    torch.manual_seed(0)
    names = run_page("docs/backbones.md", {"resnet50": "resnet18", "224": "64"})
    dnas = {key: value.meta["lwdna"] for key, value in names.items() if "lwdna" in meta_of(value)}
    assert list(dnas) == ["fixed", "free", "fixed_maps", "free_maps", "slim", "narrow"]
    for dna in dnas.values():
        assert 0.995 * 0.7 <= dna.after.macs / dna.before.macs <= 0.7

    assert channels(names["fixed"]) == [128, 256]
    assert channels(names["free"]) == names["channels"] != [128, 256]
    assert channels(names["fixed_maps"]) == {"middle": 128, "last": 512, "logits": 1000}
    assert channels(names["free_maps"]) == names["new_channels"]
    assert names["new_channels"] == {**names["new_channels"], "last": 512, "logits": 1000}
    assert names["new_channels"]["middle"] != 128
    assert set(channels(names["slim"]).values()) == {256}
    (level,) = set(channels(names["narrow"]).values())
    assert level < 256
    for detector in (names["detector"], names["narrow_detector"]):
        for name, p in detector.named_parameters():
            assert p.grad is None or p.grad.isfinite().all(), name


def meta_of(value: Any) -> dict[str, Any]:
    return getattr(value, "meta", {})
