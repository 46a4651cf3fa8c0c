"""Copies of module trees: what deepcopy gives, at any depth."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter

import lwdna
from lwdna.fx_passes.capture import capture
from lwdna.fx_passes.module import detached_copy, meta_twin, tree_of


class Odd(nn.Module):
    """Refers to its parent, shares dicts and tensors, and keeps modules outside ``_modules``."""

    def __init__(self, settings: dict[str, Any], parent: list[nn.Module]) -> None:
        super().__init__()
        self.settings, self.parent = settings, parent
        self.layer = nn.Linear(2, 2)
        self.register_buffer("table", torch.ones(1), persistent=False)
        self.same = self.layer.weight
        self.plain = torch.zeros(())
        self.empty: dict[str, int] = {}
        self.also_empty = self.empty
        self.method = self.layer.extra_repr


class Own(nn.Linear):
    """Says itself what its copies are."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Own:
        new = Own(self.in_features, self.out_features)
        new.copied = True
        return new


class Stated(nn.Linear):
    """Rebuilds an attribute when its state is set."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.rebuilt = True


def tree() -> nn.Module:
    root = nn.Sequential()
    settings = {"width": 3, "layers": [1, 2]}
    parents: list[nn.Module] = [root]
    root.extend([Odd(settings, parents), Odd(settings, parents), Own(1, 1), Stated(1, 1)])
    root.append(nn.LSTM(2, 3))
    root[0].layer.bias = root[1].layer.bias
    root.append(root[0].layer)
    return root.eval()


@pytest.mark.parametrize("copied", [detached_copy, meta_twin, copy.deepcopy])
def test_a_copy_is_connected_as_its_original(copied: Any) -> None:
    old = tree()
    new = copied(old)
    first, second = new[0], new[1]
    assert [type(m) for m in new.modules()] == [type(m) for m in old.modules()]
    assert not {id(m) for m in new.modules()} & {id(m) for m in old.modules()}
    assert list(new.state_dict()) == list(old.state_dict())
    assert not any(m.training for m in new.modules() if not isinstance(m, Own))
    assert first.parent[0] is new and first.parent is second.parent
    assert first.settings is second.settings is not old[0].settings
    assert first.settings == old[0].settings
    assert first.settings["layers"] is not old[0].settings["layers"]
    assert first.empty is first.also_empty is not old[0].empty
    assert first.same is first.layer.weight and first.layer.bias is second.layer.bias
    assert new[5] is first.layer and first.method.__self__ is first.layer
    assert first.plain.shape == () and first._non_persistent_buffers_set == {"table"}
    assert new[2].copied and new[3].rebuilt
    assert new[4]._flat_weights[0] is new[4].weight_ih_l0


def test_nothing_is_shared_with_a_copy() -> None:
    old, seen = tree(), set()
    for module in old.modules():
        seen |= {id(v) for v in vars(module).values() if isinstance(v, (dict, list, set, Tensor))}
    for module in detached_copy(old).modules():
        shared = [
            name
            for name, v in vars(module).items()
            if isinstance(v, (dict, list, set, Tensor)) and id(v) in seen
        ]
        assert not shared


def test_depth_does_not_matter() -> None:
    deep: nn.Module = nn.Linear(1, 1)
    for _ in range(300):
        deep = nn.Sequential(deep)
    assert len(list(meta_twin(deep).modules())) == 301


def test_depth_does_not_matter_after_something_was_compiled() -> None:
    torch.compile(nn.Linear(1, 1), backend="eager")(torch.ones(1))
    test_depth_does_not_matter()


def test_the_tree_alone_runs_the_graph() -> None:
    x = torch.randn(2, 4)
    gm = capture(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), x).eval()
    root = tree_of(gm)
    assert not isinstance(root, GraphModule)
    assert torch.equal(Interpreter(root, graph=gm.graph).run(x), gm(x))


class Modal(nn.Module):
    """Drops out, and scales by its mode; calls C functions of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(torch.ops.aten.relu.default(self.fc(x)), 0.5, self.training)
        x = F.avg_pool1d(x.relu() * math.floor(2.5), 2) * (3 if self.training else 2)
        return torch.softmax(F.gelu(torch.conv1d(x[:, None], x.new_ones(1, 1, 2))), -1)


def test_a_pickled_network_follows_its_mode() -> None:
    x, model = torch.randn(2, 6), Modal()
    gm = capture(model, x)
    again = pickle.loads(pickle.dumps(gm))
    assert type(again).__name__ == "Modal" and again.code == gm.code
    assert again.meta.keys() == gm.meta.keys()
    for training in (True, False):
        outputs = []
        for network in (gm.train(training), again.train(training)):
            torch.manual_seed(0)
            outputs.append(network(x))
        assert torch.equal(*outputs)


class _Written(nn.Module):
    """Assigns to items and to views in place, rounds sizes, calls operators and methods."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.unused = nn.Conv2d(3, 12, 3, padding=1), nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.conv(x)
        view = x[:, :4]
        view += 1.0
        x[:, 4:8] = 0.5
        height = math.ceil(x.shape[2] / 3)
        pooled = F.max_pool2d(x[:, :, :height], 2)
        return {"pooled": torch.ops.aten.relu(pooled), "tanh": torch.ops.aten.tanh.default(x)}


def test_pickling_keeps_every_node() -> None:
    x, gm = torch.randn(2, 3, 9, 9), lwdna.capture(_Written(), torch.randn(2, 3, 9, 9))
    again = pickle.loads(pickle.dumps(gm))
    assert type(again).__mro__[1] is type(gm).__mro__[1]
    assert again.code == gm.code and again.meta.keys() == gm.meta.keys()
    assert [n.meta for n in again.graph.nodes] == [n.meta for n in gm.graph.nodes]
    assert list(again.state_dict()) == list(gm.state_dict())
    expected = gm(x)
    for key, value in again(x).items():
        assert torch.equal(value, expected[key])
    assert lwdna.verify(again, x)


def test_pickling_a_local_function_is_refused() -> None:
    gm = lwdna.capture(nn.Sequential(nn.Linear(3, 4)), torch.randn(2, 3))
    node = next(n for n in gm.graph.nodes if n.op == "output")
    with gm.graph.inserting_before(node):
        gm.graph.call_function(lambda: None, ())
    with pytest.raises(pickle.PicklingError, match="at the top level"):
        pickle.dumps(gm)
