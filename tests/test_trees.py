"""Pytrees: the same results as torch.utils._pytree."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from typing import Any

import pytest
import torch
from torch.fx.immutable_collections import immutable_dict, immutable_list
from torch.utils import _pytree as pytree

from lwdna.trees import tree_leaves, tree_map, tree_map_only

Pair = namedtuple("Pair", "first second")

TREES: list[Any] = [
    1,
    None,
    "text",
    (1, [2, (3.0, None)], {"b": 4, "a": [5]}),
    torch.Size([2, 3]),
    [slice(0, 2), range(3), {1, 2}],
    immutable_list([1, immutable_dict({"a": 2})]),
    OrderedDict(a=1, b=(2, 3)),
    Pair(1, [Pair(2, 3)]),
    torch.return_types.max((1, 2)),
    (),
    {},
]


@pytest.mark.parametrize("tree", TREES, ids=repr)
def test_as_torch(tree: Any) -> None:
    assert tree_leaves(tree) == pytree.tree_leaves(tree)
    for ours, theirs in (
        (tree_map(repr, tree), pytree.tree_map(repr, tree)),
        (tree_map_only(int, str, tree), pytree.tree_map_only(int, str, tree)),
    ):
        assert ours == theirs
        assert pytree.tree_structure(ours) == pytree.tree_structure(theirs)
