"""timm's ways of building a model, and what a shrunk network says about itself."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.fx import GraphModule
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.feature_extraction import create_feature_extractor

import lwdna
from benchmarks.networks import build_on_meta
from lwdna.fx_passes import verify
from lwdna.graph import ChannelGraph

SMALL_SWIN = {"embed_dim": 24, "depths": (2, 1, 1, 1), "num_heads": (1, 2, 4, 8), "window_size": 2}
SMALL_VIT = {"embed_dim": 48, "depth": 3, "num_heads": 3}


@dataclass(frozen=True)
class Family:
    """An architecture at a size that is quick to verify."""

    name: str
    size: int = 64
    options: Mapping[str, Any] = field(default_factory=dict)

    def model(self, **options: Any) -> nn.Module:
        torch.manual_seed(0)
        model: nn.Module = timm.create_model(self.name, **{**self.options, **options})
        verify.stir(model)
        return model

    def images(self, channels: int = 3, size: int | None = None) -> Tensor:
        side = size or self.size
        return torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(1))


FAMILIES = {
    "resnet": Family("resnet10t"),
    "efficientnet": Family("efficientnet_b0"),
    "convnext": Family("convnext_atto", options={"depths": (1, 1, 2, 1)}),
    "vit": Family("vit_tiny_patch16_224", options={**SMALL_VIT, "img_size": 64}),
    "swin": Family("swin_tiny_patch4_window7_224", options={**SMALL_SWIN, "img_size": 64}),
    "hrnet": Family("hrnet_w18_small"),
    "regnet": Family("regnetx_002"),
}
SIZED = ("vit", "swin")  # tables of positions: the resolution is fixed when they are built
CNNS = tuple(name for name in FAMILIES if name not in SIZED)
LARGE = ("efficientnet", "swin", "hrnet", "regnet")  # seconds each
each_family = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in LARGE else n for n in FAMILIES]
)


def shrunk(
    model: nn.Module, x: Tensor, outputs: Any = "fixed"
) -> tuple[GraphModule, ChannelGraph, Any, GraphModule]:
    """(captured, its graph, copies, network with about 30 % less of each group)."""
    gm = lwdna.capture(model, x)
    graph = lwdna.analyse(gm, x, outputs=outputs)
    copies = verify.random_copies(graph, 0.7, np.random.default_rng(0))
    return gm, graph, copies, lwdna.resize(gm, graph, copies)


def checked(model: nn.Module, x: Tensor, outputs: Any = "fixed") -> GraphModule:
    """The shrunk network, after every oracle that is not slow."""
    with verify.untouched(model):
        gm, graph, copies, net = shrunk(model, x, outputs)
    assert graph.cost(copies).macs < 0.8 * graph.cost().macs
    verify.identity(model, gm, x)
    verify.masked_equivalence(gm, graph, copies, net, x)
    verify.cost(graph, copies, net)
    verify.trains(net, x)
    return net


# --- ways of building ---


@each_family
@pytest.mark.parametrize(
    "options",
    [{"num_classes": 0}, {"num_classes": 0, "global_pool": ""}, {"in_chans": 1}],
    ids=["no classifier", "no pooling", "one image channel"],
)
def test_heads_and_stems(name: str, options: dict[str, Any]) -> None:
    family = FAMILIES[name]
    model = family.model(**options)
    channels = options.get("in_chans", 3)
    x = family.images(channels)
    net = checked(model, x)
    assert net(x).shape == model(x).shape
    assert net.num_classes == model.num_classes == options.get("num_classes", 1000)
    assert getattr(net, "in_chans", channels) == channels
    assert lwdna.inputs.default_inputs(net).shape[1] == channels


@pytest.mark.parametrize("name", SIZED)
def test_another_resolution(name: str) -> None:
    family = FAMILIES[name]
    x = family.images(size=96 if name == "vit" else 128)
    net = checked(family.model(img_size=x.shape[-1]), x)
    assert net(x).shape == (2, 1000)


@pytest.mark.parametrize("name", CNNS)
def test_the_resolution_of_a_convolutional_network_stays_free(name: str) -> None:
    family = FAMILIES[name]
    net = shrunk(family.model(), family.images())[-1]
    assert net(family.images(size=96)).shape == (2, 1000)


@each_family
def test_scriptable_layers(name: str) -> None:
    family = FAMILIES[name]
    x = family.images()
    plain, scriptable = (shrunk(family.model(scriptable=s), x)[-1] for s in (False, True))
    for net in (plain, scriptable):
        net.eval()
    assert torch.equal(plain(x), scriptable(x))


# --- features_only ---


@each_family
@pytest.mark.parametrize("outputs", ["fixed", "free"])
def test_feature_maps_and_their_description(name: str, outputs: str) -> None:
    family = FAMILIES[name]
    x = family.images()
    indices = (0, 2) if name == "vit" else (1, 3)
    model = family.model(features_only=True, out_indices=indices)
    before = copy.deepcopy(model.feature_info.info)
    net = checked(model, x, outputs)
    maps = net(x)
    measured = [m.shape[3 if name == "swin" and m.shape[3] != m.shape[2] else 1] for m in maps]
    assert net.feature_info.channels() == measured
    assert net.feature_info.reduction() == model.feature_info.reduction()
    assert model.feature_info.info == before
    assert (measured == model.feature_info.channels()) == (outputs == "fixed")


def test_indices_that_count_from_the_end() -> None:
    family = FAMILIES["resnet"]
    model = family.model(features_only=True, out_indices=(-2, -1))
    net = shrunk(model, family.images(), "free")[-1]
    assert net.feature_info.channels() == [m.shape[1] for m in net(family.images())]


def test_a_stage_that_the_network_does_not_have_has_no_channels() -> None:
    family = FAMILIES["resnet"]
    net = shrunk(family.model(features_only=True, out_indices=(1, 2)), family.images(), "free")[-1]
    assert net.feature_info.channels([1, 2]) == [m.shape[1] for m in net(family.images())]
    assert net.feature_info.channels(4) is None


# --- what the network says about itself ---


_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def transplanted(model: nn.Module, net: GraphModule) -> nn.Module:
    """The model's own Python code on the layers of the shrunk network."""
    own = copy.deepcopy(model)
    for path, module in list(own.named_modules()):
        source = net.get_submodule(path)
        if type(source) is type(module) and not isinstance(module, _CONTAINERS):
            own.set_submodule(path, source)
        else:  # traced through: its code stays, on the new tensors
            module._parameters.update(source._parameters)
            module._buffers.update(source._buffers)
            if isinstance(module, nn.LayerNorm):
                module.normalized_shape = tuple(module.weight.shape)
    return own


@pytest.mark.parametrize("name", CNNS)
def test_counts_are_what_the_models_own_code_gives_on_the_new_layers(name: str) -> None:
    family = FAMILIES[name]
    model, x = family.model().eval(), family.images()
    net = shrunk(model, x)[-1]
    own = transplanted(model, net)
    assert torch.equal(own(x), net(x))  # so the code is that of this very network
    features = own.forward_features(x)
    assert net.num_features == features.shape[1] < model.num_features
    hidden = own.forward_head(features, pre_logits=True)
    assert net.head_hidden_size == hidden.shape[1] < model.head_hidden_size
    assert net.num_classes == 1000
    results = dict[str, Any]()
    for path, module in own.named_modules():
        module.register_forward_hook(lambda *call, path=path: results.update({path: call[2]}))
    own(x)
    for entry in net.feature_info:  # HRNet names a stem that is none, and stages of several maps
        result = results.get(entry["module"])
        assert entry["num_chs"] == (result.shape[1] if isinstance(result, Tensor) else None)


@pytest.mark.parametrize("name", SIZED)
def test_counts_of_transformers_are_their_layers_widths(name: str) -> None:
    family = FAMILIES[name]
    model = family.model()
    net = shrunk(model, family.images())[-1]
    width = len(net.norm.weight)
    head = net.get_submodule("head" if name == "vit" else "head.fc")
    assert net.num_features == net.head_hidden_size == width == head.in_features
    assert width < model.num_features
    assert net.embed_dim == net.patch_embed.proj.out_channels < model.embed_dim
    last = "blocks.{}.mlp.fc2" if name == "vit" else "layers.{}.blocks.0.mlp.fc2"
    widths = [net.get_submodule(last.format(k)).out_features for k in range(len(net.feature_info))]
    assert [e["num_chs"] for e in net.feature_info] == widths


def test_widening_counts_too_and_the_way_back() -> None:
    family = FAMILIES["resnet"]
    model, x = family.model(), family.images()
    gm = lwdna.capture(model, x)
    graph = lwdna.analyse(gm, x)
    wide, wide_graph = lwdna.widen(gm, graph, 2.0)
    assert wide.num_features == wide.fc.in_features == 2 * model.num_features
    originals = wide_graph.keep_all()
    originals[1:][wide_graph.origin[1:] == wide_graph.origin[:-1]] = 0
    back = lwdna.shrink_graph(wide, wide_graph, originals)
    assert back.num_features == model.num_features
    assert back.feature_info == gm.feature_info == model.feature_info


def test_shrink_passes_everything_on() -> None:
    model = FAMILIES["resnet"].model()
    net = lwdna.shrink(model, 0.6, example_inputs=FAMILIES["resnet"].images(), criterion="uniform")
    assert net.pretrained_cfg == net.default_cfg == model.pretrained_cfg
    assert net.pretrained_cfg is not model.pretrained_cfg
    assert timm.data.resolve_model_data_config(net) == timm.data.resolve_model_data_config(model)
    for other in (net, copy.deepcopy(net), pickle.loads(pickle.dumps(net)), lwdna.capture(net, ())):
        assert other.num_features == other.fc.in_features < 512
        assert other.feature_info == net.feature_info
    assert net.feature_info is not copy.deepcopy(net).feature_info


class Described(nn.Module):
    """``f`` describes the network: what is said of a place must be true there to be kept."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 10)
        self.num_classes = 10
        for key, value in attributes.items():
            setattr(self, key, value)

    def forward_features(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return out

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.forward_features(x).mean((2, 3)))
        return out


def test_equal_numbers_do_not_make_a_count() -> None:
    """8 is the width of ``conv``; only the attribute with a place in the graph follows it."""
    model = Described(num_features=8, in_chans=3, num_prefix_tokens=8)
    net = shrunk(model, torch.randn(2, 3, 6, 6))[-1]
    assert (net.num_features, net.num_prefix_tokens, net.in_chans) == (6, 8, 3)
    assert net.conv.out_channels == 6


def test_what_is_not_true_of_its_place_is_left_out() -> None:
    model = Described(num_features=9, feature_info=[{"num_chs": 9, "module": "conv"}])
    gm, *_, net = shrunk(model, torch.randn(2, 3, 6, 6))
    assert gm.num_features == 9
    assert not hasattr(net, "num_features")
    assert net.feature_info == [{"num_chs": None, "module": "conv"}]
    again = shrunk(net, torch.randn(2, 3, 6, 6))[-1]
    assert not hasattr(again, "num_features")


@pytest.mark.parametrize("make", [lambda: ("conv", "head"), lambda: nn.Identity(), lambda: None])
def test_models_with_a_get_classifier_of_their_own(make: Callable[[], Any]) -> None:
    model = Described(num_features=8, head_hidden_size=8)
    model.get_classifier = make
    net = shrunk(model, torch.randn(2, 3, 6, 6))[-1]
    assert net.num_features == 6
    assert not hasattr(net, "head_hidden_size")


def test_modules_and_parameters_are_reached_by_name() -> None:
    model = FAMILIES["resnet"].model()
    net = shrunk(model, FAMILIES["resnet"].images())[-1]
    assert net.fc is net.get_submodule("fc")
    assert net.layer1[0].conv1.weight is net.get_parameter("layer1.0.conv1.weight")
    assert not hasattr(net, "forward_features")
    net.fc = nn.Linear(net.head_hidden_size, 7)  # what reset_classifier(7) does
    assert net(FAMILIES["resnet"].images()).shape == (2, 7)


# --- training options ---


@pytest.mark.parametrize("name", [n for n in FAMILIES if n != "hrnet"])  # which has none
@pytest.mark.parametrize("way", ["drop_path_rate", "set_grad_checkpointing"])
@pytest.mark.filterwarnings("ignore:the model checkpoints activations")
def test_training_options_change_no_group(name: str, way: str) -> None:
    family = FAMILIES[name]
    x = family.images().to("meta")
    options = {"drop_path_rate": 0.2} if way == "drop_path_rate" else {}
    plain, model = (
        build_on_meta(f"timm:{family.name}", **family.options, **more)[0] for more in ({}, options)
    )
    if not options:
        model.set_grad_checkpointing()
    groups = [
        [(g.name, g.width, g.prunable) for g in lwdna.analyse(lwdna.capture(m, x), x).groups]
        for m in (plain, model)
    ]
    assert groups[0] == groups[1]
    assert any(prunable for *_, prunable in groups[0])


def test_checkpointing_is_left_behind_with_a_warning() -> None:
    family = FAMILIES["resnet"]
    model = family.model()
    model.set_grad_checkpointing()
    with pytest.warns(UserWarning, match="checkpoints activations"):
        gm = lwdna.capture(model, family.images())
    gradients = []
    for network in (model.train(), gm.train()):
        network(family.images()).square().mean().backward()
        gradients.append([p.grad for p in network.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


# --- torchvision's ways ---


def test_maps_are_taken_from_a_result_by_the_names_of_its_layers() -> None:
    model = torchvision.models.resnet18(weights=None)
    x = torch.randn(2, 3, 64, 64)
    net = shrunk(model, x)[-1].eval()
    found = create_feature_extractor(net, {"layer2.1.bn2": "middle", "fc": "logits"})(x)
    assert found["middle"].shape[1] == net.layer2[1].bn2.num_features < 128
    assert torch.equal(found["logits"], net(x))


def test_an_intermediate_layer_getter_has_free_outputs() -> None:
    backbone = torchvision.models.resnet18(weights=None)
    model = IntermediateLayerGetter(backbone, {"layer2": "middle", "layer4": "last"})
    verify.stir(model)
    net = checked(model, torch.randn(2, 3, 64, 64), "free")
    assert set(net(torch.randn(1, 3, 64, 64))) == {"middle", "last"}
