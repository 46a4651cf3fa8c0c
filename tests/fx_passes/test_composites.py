"""Composite operators written out: the call is the one that torch's decomposition makes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lwdna.fx_passes.composites import primitive

aten = torch.ops.aten


class Calls(TorchDispatchMode):
    """What a composite operator consists of, and what is said to be the same."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Any] = []
        self.written: list[Any] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch._C._dispatch_has_kernel_for_dispatch_key(
            func.name(), torch._C.DispatchKey.CompositeImplicitAutograd
        ):
            self.written.append(_plain(primitive(func, args, kwargs)))
            with self:
                return func.decompose(*args, **kwargs)
        given = (*args, *(a.default_value for a in func._schema.arguments[len(args) :]))
        self.found.append(_plain((func, given, kwargs)))
        return func(*args, **kwargs)


def _plain(value: Any) -> Any:
    """A call that can be compared: tensors by identity."""
    if isinstance(value, Tensor):
        return id(value)
    if isinstance(value, (tuple, list)):
        return [_plain(v) for v in value]
    return value


CALLS = [
    ("conv2d", (2, 6, 9, 8), (4, 3, 3, 2), {"stride": 2, "padding": (1, 0), "groups": 2}),
    ("conv2d", (1, 6, 5, 5), (4, 6, 1, 1), {}),
    ("conv2d", (3, 6, 7, 7), (6, 1, 3, 3), {"groups": 6, "dilation": 2, "padding": 2}),
    ("conv1d", (2, 4, 9), (8, 4, 4), {"stride": 3}),
    ("conv3d", (2, 4, 5, 6, 7), (8, 2, 3, 1, 2), {"groups": 2, "padding": (1, 0, 2)}),
]


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("name, size, weight, options", CALLS)
def test_a_composite_is_the_call_that_torch_makes(
    name: str, size: Any, weight: Any, options: Any, biased: bool
) -> None:
    x, w = torch.empty(size, device="meta"), torch.empty(weight, device="meta")
    bias = torch.empty(weight[0], device="meta") if biased else None
    with torch.inference_mode(), Calls() as calls:
        getattr(torch, name)(x, w, bias, **options)
    assert calls.written == calls.found


@pytest.mark.parametrize(
    "call",
    [
        lambda: torch.conv2d(torch.empty(6, 9, 8), torch.empty(4, 6, 3, 2)),  # no batch
        lambda: torch.conv2d(torch.empty(1, 6, 9, 8), torch.empty(4, 6, 3, 2), padding="same"),
        lambda: torch.empty(2, 3).reshape(6),
    ],
)
def test_what_is_more_than_one_call_is_left_to_torch(call: Any) -> None:
    with torch.inference_mode(), torch.device("meta"), Calls() as calls:
        call()
    assert calls.written[0][0] is not aten.convolution.default
