"""Where networks come from: constructors by name, and example inputs as JSON."""

from __future__ import annotations

import copy
import json
from functools import partial
from typing import Any

import pytest
import timm
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

import lwdna
from lwdna.example import described, remade
from lwdna.source import ModelSource, build, source_of, without_values
from tests.factories import Plain


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("timm:test_resnet", {"num_classes": 7}),
        ("timm:test_vit.r160_in1k", {"img_size": (96, 96), "drop_path_rate": 0.1}),
        ("timm:test_resnet", {"features_only": True, "out_indices": [1, 3]}),
        ("torchvision:squeezenet1_1", {"num_classes": 7}),
        ("tests.factories:plain", {"width": 5}),
    ],
)
def test_a_created_network_tells_how_it_was_made(name: str, arguments: Any) -> None:
    torch.manual_seed(3)
    model = lwdna.create(name, **arguments)
    source = source_of(copy.deepcopy(model))
    assert source is not None and source == ModelSource.of(name, **arguments)
    assert source_of(build(source, trust=("tests.factories",))) == source
    assert source.arguments == json.loads(json.dumps(arguments))
    state = torch.get_rng_state()
    blank = without_values(partial(build, source, trust=("tests",)))
    assert torch.equal(torch.get_rng_state(), state)
    shapes = [{n: tuple(t.shape) for n, t in m.state_dict().items()} for m in (model, blank)]
    assert shapes[0] == shapes[1] and all(t.is_meta for t in blank.state_dict().values())


def test_timm_tells_it_of_all_its_models_and_torchvision_of_none() -> None:
    model = timm.create_model("test_vit", num_classes=7)
    source = source_of(model)
    assert source is not None and source.name.startswith("test_vit")
    assert source.arguments == {"num_classes": 7}
    assert source_of(torchvision.models.squeezenet1_1()) is None
    assert source_of(Plain()) is None
    model = timm.create_model("test_vit", norm_layer=nn.LayerNorm)
    assert not hasattr(model, "_model_args") or source_of(model) is None


def test_what_loads_values_is_no_part_of_the_source(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def create(name: str, **arguments: Any) -> nn.Module:
        given.update(arguments)
        return Plain()

    monkeypatch.setattr(timm, "create_model", create)
    model = lwdna.create("timm:test_resnet", pretrained=True, num_classes=7)
    assert given == {"pretrained": True, "num_classes": 7}
    assert source_of(model) == ModelSource("timm", "test_resnet", {"num_classes": 7})


def test_a_detector_of_torchvision_downloads_no_backbone() -> None:
    source = ModelSource.of("torchvision:fasterrcnn_mobilenet_v3_large_320_fpn", num_classes=3)
    assert next(without_values(partial(build, source)).parameters()).is_meta


def test_a_constructor_that_reads_values_is_built_in_full_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def reads(**_: Any) -> nn.Module:
        assert torch.linspace(0, 1, 3)[1].item() == 0.5
        return Plain()

    reads.__module__ = "tests.factories"
    monkeypatch.setattr("tests.factories.plain", reads)
    blank = without_values(lambda: lwdna.create("tests.factories:plain"))
    assert all(t.is_meta for t in blank.state_dict().values())


def test_nothing_is_drawn_for_tensors_without_values() -> None:
    def draw(*_: Any) -> nn.Module:
        net = nn.Sequential(nn.Linear(3, 4), nn.Conv2d(3, 4, 1), nn.LSTM(3, 4))
        nn.init.trunc_normal_(net[0].weight)
        nn.init.kaiming_normal_(net[1].weight)
        assert nn.init.normal_(net[0].bias) is net[0].bias
        assert torch.empty(9, device="cpu").normal_().std() > 0  # these have values
        return net

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            called.add(func.overloadpacket)
            return func(*args, **(kwargs or {}))

    called: set[Any] = set()
    state = torch.get_rng_state()
    with Watch():
        blank = without_values(draw)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.ops.aten.empty in called and torch.ops.aten.uniform_ not in called
    assert [tuple(p.shape) for p in blank[0].parameters()] == [(4, 3), (4,)]  # type: ignore[index]
    assert all(p.is_meta for p in blank.parameters())


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("resnet50", {}, "names no constructor"),
        ("timm:", {}, "names no constructor"),
        ("timm:../x", {}, "names no constructor"),
        ("os.path:join me", {}, "names no constructor"),
        ("timm:test_resnet", {"norm_layer": nn.BatchNorm2d}, "'norm_layer'.*'module:function'"),
        ("timm:test_resnet", {"drop_rate": float("nan")}, "'drop_rate'"),
        ("timm:test_resnet", {"colour": 3}, r"test_resnet \(colour=3\) fails: TypeError"),
        ("timm:test_none", {}, "has no model 'test_none'"),
        ("torchvision:none", {}, "has no model 'none'"),
        ("tests.nowhere:plain", {}, "ModuleNotFoundError"),
        ("tests.factories:nothing", {}, "AttributeError"),
        ("tests.factories:number", {}, "gives a int, and no nn.Module"),
        # What a module imports from others is theirs: it may be os.system.
        ("tests.factories:Detector", {}, "is code of 'tests.toy_detector'"),
        ("tests.factories:nn", {}, "is code of 'None'"),
        ("tests.factories:plain", {"not a name": 3}, "is no name of an argument"),
    ],
)
def test_what_is_no_constructor(name: str, arguments: Any, message: str) -> None:
    with pytest.raises(lwdna.SourceError, match=message):
        lwdna.create(name, **arguments)


# --- example inputs ---

tensors = st.builds(
    lambda shape, dtype, fill: (torch.ones(shape) * fill).to(dtype),
    st.lists(st.integers(0, 4), max_size=3),
    st.sampled_from([torch.float32, torch.float64, torch.int64, torch.uint8, torch.bool]),
    st.integers(0, 3),
)
inputs = st.recursive(
    st.one_of(tensors, st.none(), st.booleans(), st.integers(), st.text(max_size=3)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.text(max_size=2), inner, max_size=2),
    ),
    max_leaves=6,
)


@given(inputs)
def test_small_inputs_are_made_again_as_they_were(value: Any) -> None:
    again = remade(json.loads(json.dumps(described(value))))
    (old, old_tree), (new, new_tree) = tree_flatten(value), tree_flatten(again)
    assert old_tree == new_tree
    for a, b in zip(old, new, strict=True):
        if isinstance(a, torch.Tensor):
            assert a.dtype == b.dtype and torch.equal(a, b)
        else:
            assert type(a) is type(b) and a == b


def test_large_inputs_are_made_like_they_were() -> None:
    image = torch.rand(3, 40, 40) * 2 - 1
    mask = torch.ones(40, 40, dtype=torch.uint8)
    description = json.loads(json.dumps(described(([image], {"mask": mask}))))
    (again,), other = remade(description)
    assert again.shape == image.shape and again.dtype == image.dtype
    assert image.min() <= again.min() < -0.9 and 0.9 < again.max() <= image.max()
    assert torch.equal(other["mask"], mask)
    meta = remade(described(torch.empty(2, 3, device="meta", dtype=torch.int32)))
    assert meta.is_meta and meta.shape == (2, 3) and meta.dtype == torch.int32
    assert len(json.dumps(description)) < 300


@pytest.mark.parametrize("value", [torch.full((3,), torch.nan), {1: 2}, {3}, float("inf")])
def test_inputs_that_json_does_not_have_are_asked_for(value: Any) -> None:
    with pytest.raises(lwdna.DnaError, match="pass example_inputs"):
        remade(described([value]))
