"""Shrunk networks for the tests of files, and what a saved and loaded one must agree on."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import lwdna
from lwdna.fx_passes import verify
from lwdna.fx_passes.likeness import differences, named_tensors

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
TRUST = ("tests.factories",)


def shrunk(name: str, x: Any = X, *, budget: float = 0.7, widen: float = 1.0, **arguments: Any):
    """A network with values that hide nothing, shrunk at random."""
    torch.manual_seed(0)
    model = lwdna.create(name, **arguments)
    verify.stir(model)
    net = lwdna.shrink(
        model, budget, criterion="random", widen=widen, example_inputs=x, progress=False
    )
    verify.stir(net, seed=1)
    return net


def outputs(net: nn.Module, *inputs: Any) -> list[Tensor]:
    """Of a copy: a forward in training mode changes running statistics."""
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        return [t for t in tree_leaves(copy.deepcopy(net)(*inputs)) if isinstance(t, Tensor)]


def assert_same(net: nn.Module, again: nn.Module, *inputs: Any) -> None:
    """The same structure and values, and the same outputs to the last bit."""
    assert not list(differences(net, again))
    assert again.meta["lwdna"] == net.meta["lwdna"]
    assert list(net.state_dict()) == list(again.state_dict())
    pairs = list(zip(named_tensors(net), named_tensors(again), strict=True))
    for (name, old), (other, new) in pairs:
        assert name == other and old.dtype == new.dtype and torch.equal(old, new), name
        assert old.stride() == new.stride() and old.requires_grad == new.requires_grad, name
    modes = [[m.training for m in n.modules()] for n in (net, again)]
    assert modes[0] == modes[1]
    if inputs:
        for a, b in zip(outputs(net, *inputs), outputs(again, *inputs), strict=True):
            assert torch.equal(a, b)


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())
