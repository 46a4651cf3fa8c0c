"""The models of both zoos, their families, and seeded samples of them."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence

import timm
import torchvision

from benchmarks.networks import default_size
from lwdna.zoo import all_models, matching

__all__ = ["all_models", "family", "matching", "sample"]

_QUICK_PIXELS = 256


def family(name: str) -> str:
    """The module that defines a model: ``"timm/resnet"``, ``"torchvision/video/mvit"``."""
    library, _, model = name.partition(":")
    builder = (
        timm.model_entrypoint(model)
        if library == "timm"
        else torchvision.models.get_model_builder(model)
    )
    return f"{library}/" + builder.__module__.partition(".models.")[2].replace(".", "/")


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
