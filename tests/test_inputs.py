"""Example inputs in the forms that callers write them."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lwdna
from lwdna.inputs import as_arguments

A, B = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8)


class Two(nn.Module):
    """conv(x) + scale * conv(y), if there is a y."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)

    def forward(
        self, x: Tensor, y: Tensor | None = None, scale: float = 1.0, *, flip: bool = False
    ) -> Tensor:
        out: Tensor = self.a(x)
        return out if y is None else out + scale * self.b(y)


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        (A, (A,)),
        ((A, B), (A, B)),
        ([A, B], (A, B)),
        ((), ()),
        (([A, B],), ([A, B],)),
        ({"x": A}, (A,)),
        ({"y": B, "x": A}, (A, B)),
        ({"x": A, "scale": 2.0}, (A, None, 2.0)),
        ({"scale": 2.0, "x": A, "y": B}, (A, B, 2.0)),
    ],
)
def test_every_form_becomes_positional_arguments(inputs: Any, expected: tuple[Any, ...]) -> None:
    for model in (Two(), inspect.signature(Two().forward)):
        found = as_arguments(model, inputs)
        assert type(found) is tuple
        assert len(found) == len(expected)
        assert all(a is b or a == b for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"image": A}, r"no argument 'image': its arguments are 'x', 'y', 'scale'"),
        ({"y": B}, r"lack forward's argument 'x'"),
        ({}, r"lack forward's argument 'x'"),
        ({"x": A, "flip": True}, r"'flip' cannot be given by position"),
    ],
)
def test_names_that_do_not_fit_are_refused(inputs: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        as_arguments(Two(), inputs)


def test_variable_arguments_have_no_names() -> None:
    signature = inspect.signature(lambda x, *rest, **more: x)
    assert as_arguments(signature, [1, 2, 3]) == (1, 2, 3)
    for name in ("rest", "more", "other"):
        with pytest.raises(TypeError, match=f"'{name}'"):
            as_arguments(signature, {"x": 1, name: 2})


@pytest.mark.parametrize(
    "inputs", [(A, B), [A, B], {"y": B, "x": A}], ids=["tuple", "list", "dict"]
)
def test_every_stage_takes_every_form(inputs: Any) -> None:
    torch.manual_seed(0)
    model = Two()
    gm = lwdna.capture(model, inputs)
    graph = lwdna.analyse(gm, inputs)
    assert graph.cost().macs == 2 * 3 * 4 * 64
    assert torch.equal(gm(A, B), model(A, B))
    lwdna.verify(model, inputs)
