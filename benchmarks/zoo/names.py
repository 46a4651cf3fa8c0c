"""The models of both zoos, their families, and seeded samples of them."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

import timm
import torchvision

from benchmarks.networks import default_size

_QUICK_PIXELS = 256


def all_models() -> tuple[str, ...]:
    """Every model of both libraries, as ``"timm:resnet18"``."""
    return (
        *(f"timm:{name}" for name in timm.list_models()),
        *(f"torchvision:{name}" for name in torchvision.models.list_models()),
    )


def family(name: str) -> str:
    """The module that defines a model: ``"timm/resnet"``, ``"torchvision/video/mvit"``."""
    library, _, model = name.partition(":")
    builder = (
        timm.model_entrypoint(model)
        if library == "timm"
        else torchvision.models.get_model_builder(model)
    )
    return f"{library}/" + builder.__module__.partition(".models.")[2].replace(".", "/")


def matching(patterns: Iterable[str]) -> tuple[str, ...]:
    """The models that a pattern matches; with or without the library.

    Raises:
        ValueError: a pattern matches no model.
    """
    found: dict[str, None] = {}
    for pattern in patterns:
        full = pattern if ":" in pattern else f"*:{pattern}"
        names = [name for name in all_models() if fnmatchcase(name, full)]
        if not names:
            raise ValueError(f"{pattern!r} matches no model of timm or torchvision")
        found.update(dict.fromkeys(names))
    return tuple(found)


def sample(names: Sequence[str], count: int, seed: int) -> tuple[str, ...]:
    """``count`` models of as many families as there are, drawn by ``seed``.

    Families come in random order, one random model of each; then a second of each, and so on.
    Models of more than 256 pixels come last in their family: they differ from the others of it in
    the time that they take, and in little else.
    """
    draw = random.Random(seed)
    members: dict[str, list[str]] = defaultdict(list)
    order = draw.sample(list(names), len(names))
    for name in sorted(order, key=lambda n: default_size(n)[-1] > _QUICK_PIXELS):
        members[family(name)].append(name)
    families = draw.sample(sorted(members), len(members))
    longest = max(map(len, members.values()), default=0)
    rounds = (members[f][k] for k in range(longest) for f in families if k < len(members[f]))
    return tuple(rounds)[:count]
