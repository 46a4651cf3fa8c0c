"""How a model wants its parameters grouped: timm's two methods, on captured networks, too.

``timm.optim.create_optimizer_v2`` asks a model which parameters take no weight decay and which
layer each belongs to, and goes without where the model has no such method: a captured network
without them would be trained by another protocol than its model, and nobody be told. Both methods
speak of names, which never change: what they return on the model holds for the result. One that
fails on the model (RDNet's refuses to group by stages) fails on the result in the same way.

Source: timm, ``optim/_optim_factory.py`` (``no_weight_decay``), ``optim/_param_groups.py``
(``group_matcher``) and ``models/_manipulate.py`` (``group_with_matcher``: what a matcher is).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

_NO_WEIGHT_DECAY = "no_weight_decay"
_GROUP_MATCHER = "group_matcher"


@dataclass(frozen=True)
class NoWeightDecay:
    """``no_weight_decay()`` of a model.

    Attributes:
        names: of parameters that take no weight decay, or patterns of such names; or the error.
    """

    names: tuple[str, ...] | Exception

    def __call__(self) -> set[str]:
        """The names, as the model's own method returns them."""
        return set(_answer(self.names))


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
        fine: the matcher for single layers: regular expressions by name of a group, or a function;
            or the error.
        coarse: the one for whole stages, or the error.
    """

    fine: Any
    coarse: Any

    def __call__(self, coarse: bool = False) -> Any:
        """The matcher; a copy, which callers are free to change."""
        return _answer(self.coarse if coarse else self.fine)


def groupings(model: nn.Module) -> Iterator[tuple[str, NoWeightDecay | GroupMatcher]]:
    """Which of timm's methods a model has, and what stands for each on captured networks.

    Args:
        model: any module; not changed.
    """
    if callable(method := getattr(model, _NO_WEIGHT_DECAY, None)):
        names = _outcome(lambda: tuple(sorted(method())))
        yield _NO_WEIGHT_DECAY, NoWeightDecay(names)
    if callable(matcher := getattr(model, _GROUP_MATCHER, None)):
        fine = _outcome(lambda: _without_code(matcher(coarse=False), model))
        coarse = _outcome(lambda: _without_code(matcher(coarse=True), model))
        yield _GROUP_MATCHER, GroupMatcher(fine, coarse)


def _outcome(ask: Callable[[], Any]) -> Any:
    """What a method returns, or what it raises."""
    try:
        return ask()
    except Exception as error:
        return error.with_traceback(None)


def _answer(outcome: Any) -> Any:
    """The outcome once more: a copy, or the error raised."""
    if isinstance(outcome, Exception):
        raise copy.copy(outcome)
    return copy.deepcopy(outcome)


def _without_code(matcher: Any, model: nn.Module) -> Any:
    """The matcher; a function of names becomes its table: it may refer to the model."""
    if not callable(matcher):
        return copy.deepcopy(matcher)
    members = (*model.named_parameters(), *model.named_modules())
    return Ordinals({name: matcher(name) for name, _ in members})
