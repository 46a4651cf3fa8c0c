"""How a model wants its parameters grouped: timm's two methods, on captured networks, too.

``timm.optim.create_optimizer_v2`` asks a model which parameters take no weight decay and which
layer each belongs to, and goes without where the model has no such method: a captured network
without them would be trained by another protocol than its model, and nobody be told. Both methods
speak of names, which never change: what they return on the model holds for the result.

Source: timm, ``optim/_optim_factory.py`` (``no_weight_decay``), ``optim/_param_groups.py``
(``group_matcher``) and ``models/_manipulate.py`` (``group_with_matcher``: what a matcher is).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from lwdna.errors import UnsupportedModelError

_NO_WEIGHT_DECAY = "no_weight_decay"
_GROUP_MATCHER = "group_matcher"


@dataclass(frozen=True)
class NoWeightDecay:
    """``no_weight_decay()`` of a model.

    Attributes:
        names: of parameters that take no weight decay, or patterns of such names.
    """

    names: tuple[str, ...]

    def __call__(self) -> set[str]:
        """The names, as the model's own method returns them."""
        return set(self.names)


@dataclass(frozen=True)
class Ordinals:
    """A matcher that is a function of names, as the table of what it returned.

    Attributes:
        table: name of a parameter or module -> its place in the order of layers.
    """

    table: Mapping[str, Any]

    def __call__(self, name: str) -> Any:
        """The place of this name; after all others, as timm does, where it is not known."""
        return self.table.get(name, float("inf"))


@dataclass(frozen=True)
class GroupMatcher:
    """``group_matcher(coarse=False)`` of a model.

    Attributes:
        fine: the matcher for single layers: regular expressions by name of a group, or a function.
        coarse: the one for whole stages.
    """

    fine: Any
    coarse: Any

    def __call__(self, coarse: bool = False) -> Any:
        """The matcher; a copy, which callers are free to change."""
        return copy.deepcopy(self.coarse if coarse else self.fine)


def groupings(model: nn.Module) -> Iterator[tuple[str, NoWeightDecay | GroupMatcher]]:
    """Which of timm's methods a model has, and what stands for each on captured networks.

    Args:
        model: any module; not changed.

    Raises:
        UnsupportedModelError: such a method fails, so that no optimiser could use it either.
    """
    if callable(getattr(model, _NO_WEIGHT_DECAY, None)):
        yield _NO_WEIGHT_DECAY, NoWeightDecay(tuple(sorted(_asked(model, _NO_WEIGHT_DECAY))))
    if callable(getattr(model, _GROUP_MATCHER, None)):
        fine, coarse = (
            _without_code(_asked(model, _GROUP_MATCHER, coarse=c), model) for c in (False, True)
        )
        yield _GROUP_MATCHER, GroupMatcher(fine, coarse)


def _asked(model: nn.Module, name: str, **arguments: bool) -> Any:
    try:
        return getattr(model, name)(**arguments)
    except Exception as e:
        raise UnsupportedModelError(
            f"{type(model).__name__}.{name}(), which timm's optimisers call, fails with "
            f"{type(e).__name__}: {e}. Mend the method, or delete it"
        ) from e


def _without_code(matcher: Any, model: nn.Module) -> Any:
    """The matcher; a function of names becomes its table: it may refer to the model."""
    if not callable(matcher):
        return copy.deepcopy(matcher)
    members = (*model.named_parameters(), *model.named_modules())
    return Ordinals({name: matcher(name) for name, _ in members})
