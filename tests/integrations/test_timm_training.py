"""What timm's training does to a model: parameter groups, averages, clipping, memory."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from timm.models import group_parameters, model_parameters
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3, dispatch_clip_grad
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import lwdna
from benchmarks.networks import build_on_meta
from lwdna.fx_passes import verify
from tests.integrations.networks import close, each, images, loss_of, original, shrunk

#: Models that say more about their parameters than the three networks do: patterns of names, tables
#: of biases, a matcher that is a function; with a small image each.
TELLING = {
    "swin_tiny_patch4_window7_224": {
        "embed_dim": 24,
        "depths": (1, 1, 1, 1),
        "num_heads": (1, 2, 4, 8),
        "window_size": 2,
        "img_size": 64,
    },
    "levit_128s": {},
    "cait_xxs24_224": {"embed_dim": 48, "depth": 2, "num_heads": 4, "img_size": 64},
    "test_convnext": {},
}


def groups_by_name(optimizer: torch.optim.Optimizer, network: nn.Module) -> list[dict[str, Any]]:
    """Parameter groups with names in place of parameters."""
    names = {id(p): name for name, p in network.named_parameters()}
    return [{**g, "params": [names[id(p)] for p in g["params"]]} for g in optimizer.param_groups]


@each
@pytest.mark.parametrize("layer_decay", [None, 0.7])
@pytest.mark.parametrize("way", ["shrunk", "copied", "pickled", "captured again"])
def test_parameter_groups_are_the_originals(name: str, layer_decay: Any, way: str) -> None:
    net = {
        "shrunk": lambda net: net,
        "copied": copy.deepcopy,
        "pickled": lambda net: pickle.loads(pickle.dumps(net)),
        "captured again": lambda net: lwdna.capture(net, images()),
    }[way](shrunk(name))
    found, expected = (
        groups_by_name(
            create_optimizer_v2(network, "adamw", weight_decay=0.05, layer_decay=layer_decay),
            network,
        )
        for network in (net, original(name))
    )
    assert found == expected
    if name == "vit":
        decayed = {n for group in found if group["weight_decay"] for n in group["params"]}
        assert "pos_embed" not in decayed and "blocks.0.attn.qkv.weight" in decayed


@pytest.mark.parametrize("name", TELLING)
@pytest.mark.filterwarnings("ignore:.*overrides train")
def test_what_a_model_says_of_its_parameters_comes_along(name: str) -> None:
    model, size = build_on_meta(f"timm:{name}", **TELLING[name])
    side = TELLING[name].get("img_size", size[-1])
    x = torch.empty(2, 3, side, side, device="meta")
    gm = lwdna.capture(model, x)
    graph = lwdna.analyse(gm, x)
    copies = verify.random_copies(graph, 0.7, np.random.default_rng(0))
    for net in (gm, lwdna.resize(gm, graph, copies)):
        assert hasattr(net, "no_weight_decay") == hasattr(model, "no_weight_decay")
        if hasattr(model, "no_weight_decay"):
            assert net.no_weight_decay() == set(model.no_weight_decay())
        for coarse in (False, True):
            found, expected = (
                group_parameters(m, m.group_matcher(coarse=coarse), reverse=True)
                for m in (net, model)
            )
            assert found == expected
            assert found.keys() == {parameter for parameter, _ in model.named_parameters()}


def test_answers_are_the_callers_own() -> None:
    net = shrunk("vit")
    net.no_weight_decay().clear()
    net.group_matcher().clear()
    assert "cls_token" in net.no_weight_decay() and "blocks" in net.group_matcher()


class _Failing(nn.Linear):
    def no_weight_decay(self) -> set[str]:
        raise KeyError("pos_embed")

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        assert not coarse, "no stages here"
        return {"stem": "^weight"}


def test_a_method_that_fails_on_the_model_fails_on_the_result_in_the_same_way() -> None:
    gm = copy.deepcopy(lwdna.capture(_Failing(4, 4), torch.randn(2, 4)))
    for _ in range(2):
        with pytest.raises(KeyError, match="pos_embed"):
            gm.no_weight_decay()
        with pytest.raises(AssertionError, match="no stages here"):
            gm.group_matcher(coarse=True)
    assert gm.group_matcher() == {"stem": "^weight"}


def test_a_model_without_these_methods_gets_none() -> None:
    gm = lwdna.capture(nn.Sequential(nn.Linear(4, 4)), torch.randn(2, 4))
    assert not hasattr(gm, "no_weight_decay") and not hasattr(gm, "group_matcher")


@each
def test_an_average_of_weights(name: str) -> None:
    net = shrunk(name)
    ema = ModelEmaV3(net, decay=0.75)
    before = copy.deepcopy(net.state_dict())
    with torch.no_grad():
        for p in net.parameters():
            p.add_(1.0)
    net(images())  # moves the statistics of batch norms
    ema.update(net)
    assert net.training and not ema.module.training
    after = net.state_dict()
    for key, value in ema.module.state_dict().items():
        if value.is_floating_point():
            close(value, 0.75 * before[key] + 0.25 * after[key])
    reference = copy.deepcopy(net).eval()
    reference.load_state_dict(ema.module.state_dict())
    assert torch.equal(ema(images()), reference(images()))


@each
def test_adaptive_clipping_leaves_the_classifier_out(name: str) -> None:
    net = shrunk(name)
    kept = {id(p) for p in model_parameters(net, exclude_head=True)}
    head = [n for n, p in net.named_parameters() if id(p) not in kept]
    classifier = original(name).pretrained_cfg["classifier"]
    assert head == [f"{classifier}.weight", f"{classifier}.bias"]
    loss_of(net).backward()
    before = {n: p.grad.clone() for n, p in net.named_parameters()}
    dispatch_clip_grad(model_parameters(net, exclude_head=True), 1e-3, mode="agc")
    changed = {n for n, p in net.named_parameters() if not torch.equal(p.grad, before[n])}
    assert changed and not changed & set(head)


def kept_for_backward(network: Any, x: Tensor) -> tuple[int, list[Tensor]]:
    """(bytes of activations that forward keeps, the gradients that backward computes with them)."""
    own = {p.untyped_storage().data_ptr() for p in network.parameters()}
    kept: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss = network(x).square().mean()
    return sum(kept.values()), list(torch.autograd.grad(loss, list(network.parameters())))


class Checkpointed(nn.Module):
    """A network whose activations are computed again in backward."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = checkpoint(self.network, x, use_reentrant=False)
        return out


@each
def test_activations_are_computed_again_in_backward(name: str) -> None:
    all_of_them, expected = kept_for_backward(shrunk(name), images())
    few, found = kept_for_backward(Checkpointed(shrunk(name)), images())
    close(found, expected)
    assert few <= images().nbytes + 4096 < all_of_them  # the input alone, and the logits


@pytest.mark.slow
@each
def test_the_compiler_computes_again_what_is_over_the_budget(name: str) -> None:
    results = []
    for budget in (1.0, 0.3):
        torch._dynamo.reset()
        with torch._functorch.config.patch(activation_memory_budget=budget):
            compiled = torch.compile(shrunk(name), backend="aot_eager_decomp_partition")
            results.append(kept_for_backward(compiled, images()))
    (all_of_them, expected), (few, found) = results
    close(found, expected)
    assert few < 0.8 * all_of_them
