"""The smallest networks that reach each operator with a rule.

A sample says which operators it is for and what the analysis must find there: every prunable group
with its width, and why others are frozen. A rule that silently froze everything would fail on the
first, one that freed too much on the invariants. The samples are in ``samples_*.py``, by family;
tests take them from ``all_samples.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


class Net(nn.Module):
    """Named layers and a function that runs them."""

    def __init__(self, body: Callable[..., Any], **layers: Any) -> None:
        super().__init__()
        self.body = body
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: Tensor) -> Any:
        return self.body(self, x)


@dataclass(frozen=True, eq=False)
class Sample:
    """One network.

    Attributes:
        ops: names of the operators (``aten.…``) that it is for, separated by blanks.
        net: builds the network.
        shape: input shape, batch first.
        prunable: name -> width of every prunable group.
        frozen: name -> part of a reason, for groups that have to be frozen.
        policy: choice policy of the analysis.
        tokens: the input is integers below this number.
        note: what sets it apart from the other samples of its operators.
    """

    ops: str
    net: Callable[[], nn.Module]
    shape: tuple[int, ...] = (2, 3, 6, 6)
    prunable: Mapping[str, int] = field(default_factory=lambda: {"a": 8, "b": 6})
    frozen: Mapping[str, str] = field(default_factory=dict)
    policy: Any = "auto"
    tokens: int = 0
    note: str = ""

    @property
    def id(self) -> str:
        return self.ops.replace(" ", "+") + (f"-{self.note}" if self.note else "")

    def inputs(self) -> Tensor:
        generator = torch.Generator().manual_seed(7)
        if self.tokens:
            return torch.randint(self.tokens, self.shape, generator=generator)
        return torch.randn(self.shape, generator=generator)


SAMPLES: list[Sample] = []


def sample(ops: str, net: Callable[[], nn.Module], *args: Any, **kwargs: Any) -> None:
    SAMPLES.append(Sample(ops, net, *args, **kwargs))


def between(f: Callable[[Tensor], Tensor], out: int = 8, into: int | None = None, nd: int = 2):
    """conv a -> ``f`` -> conv b -> conv c: ``f`` sees the ``out`` channels of ``a``."""
    conv = CONV[nd]
    return lambda: Net(
        lambda s, x: s.c(s.b(f(s.a(x)))),
        a=conv(3, out, 1),
        b=conv(out if into is None else into, 6, 1),
        c=conv(6, 4, 1),
    )


def layer(*modules: Callable[[], nn.Module], nd: int = 2):
    """conv a -> modules m0, m1 … -> conv b -> conv c."""

    def body(s: Any, x: Tensor) -> Tensor:
        x = s.a(x)
        for k in range(len(modules)):
            x = getattr(s, f"m{k}")(x)
        return s.c(s.b(x))

    return lambda: Net(
        body,
        a=CONV[nd](3, 8, 1),
        b=CONV[nd](8, 6, 1),
        c=CONV[nd](6, 4, 1),
        **{f"m{k}": make() for k, make in enumerate(modules)},
    )


def two(f: Callable[[Tensor, Tensor], Tensor], p: int = 8, q: int = 8, into: int = 8):
    """convs a and d side by side -> ``f`` -> conv b -> conv c."""
    return lambda: Net(
        lambda s, x: s.c(s.b(f(s.a(x), s.d(x)))),
        a=nn.Conv2d(3, p, 1),
        d=nn.Conv2d(3, q, 1),
        b=nn.Conv2d(into, 6, 1),
        c=nn.Conv2d(6, 4, 1),
    )


def tokens(f: Callable[[Any, Tensor], Tensor], into: int, **layers: Callable[[], nn.Module]):
    """(batch, positions, 5 channels) -> ``f`` with linear layers -> linear o."""
    return lambda: Net(
        lambda s, x: s.o(f(s, x)),
        **{name: make() for name, make in layers.items()},
        o=nn.Linear(into, 4),
    )


def linear(i: int, o: int) -> Callable[[], nn.Module]:
    return lambda: nn.Linear(i, o)


def param(*shape: int) -> Callable[[], nn.Parameter]:
    return lambda: nn.Parameter(torch.randn(shape))


SEQ = (2, 4, 5)
CHANNELS_FROZEN: dict[str, Any] = {"prunable": {"b": 6}}
