"""Modules and tensors of a tree: what torch.nn.Module lists, in the same order."""

from __future__ import annotations

import torch
from torch import nn

from lwdna.fx_passes.members import modules_of, named_modules, named_tensors
from tests.fx_passes.test_module import tree


def shared() -> nn.Module:
    """A module at two places, on two levels; tensors of two names; entries that are None."""
    root = tree()
    inner = nn.Sequential(nn.BatchNorm2d(3), nn.Sequential(nn.Conv2d(3, 3, 1, bias=False)))
    root.add_module("first", nn.ModuleDict({"late": inner, "early": inner[1]}))
    root.add_module("second", inner[1])
    root.register_module("none", None)
    root.register_buffer("weight_too", inner[1][0].weight)
    root.register_buffer("nothing", None)
    root.register_buffer("mean_too", inner[0].running_mean)
    return root


def test_the_lists_are_those_of_torch() -> None:
    for root in (shared(), nn.Linear(2, 2), torch.jit.script(nn.Sequential(nn.BatchNorm1d(3)))):
        assert named_modules(root) == list(root.named_modules())
        assert named_modules(root, again=True) == list(root.named_modules(remove_duplicate=False))
        assert modules_of(root) == list(root.modules())
        for ours, theirs in zip(
            named_tensors(root), (root.named_parameters(), root.named_buffers()), strict=True
        ):
            expected = list(theirs)
            assert list(ours) == [name for name, _ in expected]
            assert all(a is b for a, (_, b) in zip(ours.values(), expected, strict=True))
