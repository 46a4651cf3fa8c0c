"""What two captured networks must agree on to compute the same from the same values."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice, zip_longest
from typing import Any

from torch import Tensor, nn
from torch.fx import GraphModule

_MESSAGE = re.compile(r"(torch\._assert\(\w+), .*")
_ATOMS = (bool, int, float, str, type(None))


def named_tensors(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter, buffer (persistent or not) and plain tensor attribute, under its name.

    Shared tensors come once per name, in the order of the modules.
    """
    for path, module in network.named_modules():
        for held in (module._parameters, module._buffers, vars(module)):
            for key, value in held.items():
                if isinstance(value, Tensor):
                    yield (f"{path}.{key}" if path else key), value


def first_names(network: nn.Module) -> dict[int, str]:
    """Id of every tensor of :func:`named_tensors` -> the first of its names."""
    names: dict[int, str] = {}
    for name, tensor in named_tensors(network):
        names.setdefault(id(tensor), name)
    return names


def differences(network: nn.Module, other: nn.Module) -> Iterator[str]:
    """What distinguishes two networks besides their values: nothing, if they are one network.

    Compared are the tree with the classes and settings of its modules, names, shapes and kinds of
    tensors and which of them are shared, and the code of the graphs. Modes, gradient flags, devices
    and floating-point types are the user's.

    Args:
        network: a captured network.
        other: one that should be like it.

    Yields:
        One sentence per difference, which names the module or tensor.
    """
    trees = dict(network.named_modules()), dict(other.named_modules())
    for path in dict.fromkeys((*trees[0], *trees[1])):
        ours, theirs = trees[0].get(path), trees[1].get(path)
        if ours is None or theirs is None:
            yield f"only one of them has the module {path!r}"
        else:
            yield from _of_modules(path or "the network", ours, theirs)
    told = _told(network), _told(other)
    for name in dict.fromkeys((*told[0], *told[1])):
        if told[0].get(name) != told[1].get(name):
            yield f"tensor {name!r} is {told[0].get(name)}, and {told[1].get(name)} in the other"


def _of_modules(path: str, ours: nn.Module, theirs: nn.Module) -> Iterator[str]:
    # Every GraphModule has a class of its own; its name is that of the model's class.
    if ours._get_name() != theirs._get_name():
        yield f"{path!r} is a {ours._get_name()}, and a {theirs._get_name()} in the other"
    a, b = _settings(ours), _settings(theirs)
    for key in dict.fromkeys((*a, *b)):
        if a.get(key) != b.get(key):
            yield f"{key!r} of {path!r} is {a.get(key)!r}, and {b.get(key)!r} in the other"
    if isinstance(ours, GraphModule) and isinstance(theirs, GraphModule):
        lines = zip_longest(_code(ours), _code(theirs), fillvalue="")
        for x, y in islice((pair for pair in lines if pair[0] != pair[1]), 1):
            yield f"the code of {path!r} differs: {x.strip()!r} and {y.strip()!r}"


def _code(gm: GraphModule) -> list[str]:
    """Lines of the generated code; of an assertion what it asserts, but not what it says.

    It quotes the line of the model's code, whose place differs from one installation to another.
    """
    return [_MESSAGE.sub(r"\1)", line) for line in gm.code.splitlines()]


def _settings(module: nn.Module) -> dict[str, Any]:
    """Numbers and words that a module computes by (``p`` of a dropout, ``eps`` of a norm).

    Lists are left out: they may keep what the first forward pass worked out, as the scales of
    torchvision's MultiScaleRoIAlign.
    """
    return {
        key: value
        for key, value in vars(module).items()
        if not key.startswith("_")
        and key != "training"
        and (
            isinstance(value, _ATOMS)
            or (isinstance(value, tuple) and all(isinstance(v, _ATOMS) for v in value))
        )
    }


def _told(network: nn.Module) -> dict[str, str]:
    first = first_names(network)
    return {
        name: f"{'floating' if t.is_floating_point() else t.dtype} {tuple(t.shape)}"
        + ("" if first[id(t)] == name else f", shared with {first[id(t)]!r}")
        for name, t in named_tensors(network)
    }
