"""Remembered meta kernels: what they return is what the operator returns."""

from __future__ import annotations

import itertools
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lwdna.fx_passes.analyse import single_batch
from lwdna.fx_passes.formulas import POINTWISE, WRITING
from lwdna.fx_passes.kernels import MetaKernels, MetaMode
from lwdna.fx_passes.module import meta_twin, to_meta
from lwdna.inputs import as_arguments
from tests.rules.all_samples import SAMPLES, Sample

aten = torch.ops.aten


def layouts(tree: Any) -> list[Any]:
    return [
        (tuple(t.shape), t.stride(), t.dtype, t.device.type) if isinstance(t, Tensor) else t
        for t in tree_leaves(tree)
    ]


class Compared(TorchDispatchMode):
    """Runs every operator directly and, twice, through one :class:`MetaKernels`."""

    def __init__(self, kernels: MetaKernels) -> None:
        super().__init__()
        self.kernels = kernels

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if not func._schema.is_mutable:
            wanted = func(*args, **kwargs)
            for _ in range(2):
                found = self.kernels(func, args, kwargs)
                assert type(found) is type(wanted), func
                assert layouts(found) == layouts(wanted), func
        return func(*args, **kwargs)


@pytest.fixture(scope="module")
def shared() -> MetaKernels:
    """One memory for all samples, which differ in sizes."""
    return MetaKernels()


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("sample", SAMPLES, ids=[s.id for s in SAMPLES])
def test_known_results_have_the_layouts_of_executed_ones(
    sample: Sample, training: bool, shared: MetaKernels
) -> None:
    twin = meta_twin(sample.net()).train(training)
    inputs = as_arguments(twin, sample.inputs())
    with torch.inference_mode(), torch.device("meta"), Compared(shared):
        twin(*(to_meta(inputs) if training else single_batch(inputs)))


CONVOLUTIONS = [
    ("conv2d", (2, 6, 9, 8), (4, 3, 3, 2), {"stride": 2, "padding": (1, 0), "groups": 2}),
    ("conv2d", (1, 6, 1, 1), (4, 6, 1, 1), {}),
    ("conv2d", (3, 6, 7, 7), (6, 1, 3, 3), {"groups": 6, "dilation": 2, "padding": 2}),
    ("conv1d", (2, 4, 9), (8, 4, 4), {"stride": 3}),
    ("conv3d", (2, 4, 5, 6, 7), (8, 2, 3, 1, 2), {"groups": 2, "padding": (1, 0, 2)}),
    ("conv2d", (6, 9, 8), (4, 6, 3, 2), {}),  # no batch
]


@pytest.mark.parametrize("name, size, weight, options", CONVOLUTIONS)
@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
def test_convolutions_have_the_layouts_of_executed_ones(
    name: str, size: Any, weight: Any, options: Any, format: Any
) -> None:
    x, w = torch.empty(size, device="meta"), torch.empty(weight, device="meta")
    if format is torch.channels_last and x.dim() == w.dim() == 4:
        x = x.contiguous(memory_format=format)
    bias = torch.empty(weight[0], device="meta")
    for given in (None, bias):
        with Compared(MetaKernels()):
            getattr(torch, name)(x, w, given, **options)


def _empty(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(size, dtype=dtype, device="meta")


BY_FORMULA = [
    lambda: aten.mean.dim(_empty(2, 3, 4), [-1, 0]),
    lambda: aten.mean.dim(_empty(2, 3, 4, dtype=torch.float64), [1], True),
    lambda: aten.mean.dim(_empty(2, 3, 4), None, True),
    lambda: aten.mean.dim(_empty(2, 3, 4), []),
    lambda: aten.sum.dim_IntList(_empty(2, 3, 4), [2]),
    lambda: aten.sum.dim_IntList(_empty(2, 3, dtype=torch.int32), [0]),
    lambda: aten.sum.dim_IntList(_empty(2, 3), [0], dtype=torch.float64),
    lambda: aten.amax.default(_empty(2, 3, 4), [1, 2], True),
    lambda: aten.amin.default(_empty(2, 3, 4)),
    lambda: aten.mean.dim(_empty(2, 3, 4).transpose(0, 1), [0]),
    lambda: aten.mean.dim(_empty(2, 0, 4), [0]),
    lambda: aten.cat.default([_empty(2, 3), _empty(2, 5)], -1),
    lambda: aten.cat.default([_empty(2, 3), _empty(4, 3)]),
    lambda: aten.cat.default([_empty(2, 3), _empty(2, 3, dtype=torch.float64)]),
    lambda: aten.cat.default([_empty(0), _empty(2, 3)]),
    lambda: aten.layer_norm.default(_empty(2, 3, 4), [4], _empty(4), _empty(4), 1e-5),
    lambda: aten.layer_norm.default(_empty(2, 3, 4), [3, 4]),
    lambda: aten.layer_norm.default(_empty(2, 3, 4).mT, [3], _empty(3)),
    lambda: aten.roll.default(_empty(2, 3, 4), [1, -2], [0, -1]),
    lambda: aten.roll.default(_empty(2, 3, 4), [1]),
    lambda: aten.roll.default(_empty(2, 3, 4).mT, [1], [0]),
    lambda: aten.contiguous.default(_empty(2, 3, 4).mT),
    lambda: aten.contiguous.default(_empty(2, 3, 4)),
    lambda: aten.reshape.default(_empty(2, 3, 4).mT, [2, 12]),
    lambda: aten.reshape.default(_empty(2, 3, 4), [-1]),
]


@pytest.mark.parametrize("call", BY_FORMULA)
def test_formulas_give_the_layouts_of_executed_operators(call: Any) -> None:
    with torch.inference_mode(), Compared(MetaKernels()):
        call()


SHAPES = [(), (3,), (1,), (2, 3), (2, 1), (1, 3), (1, 4, 2, 3), (2, 4, 1, 1), (4, 1, 3)]
SHAPES += [(1, 4, 1, 1), (1, 1, 2, 3), (2, 4, 1, 3), (0, 3)]
FLOATS = sorted((*POINTWISE, *WRITING), key=str)


@pytest.mark.parametrize("func", FLOATS, ids=str)
def test_pointwise_formulas_give_the_layouts_of_executed_operators(func: Any) -> None:
    second = func.name().endswith(".Tensor")
    for size, other in itertools.product(SHAPES, SHAPES if second else [()]):
        arguments = [_empty(*size), *([_empty(*other)] if second else [])]
        if func in (aten.clamp.default, aten.clamp_.default):
            arguments = [*arguments, 0.0, 6.0]
        kernels = MetaKernels()
        try:
            wanted = func(*arguments)
        except RuntimeError:
            with pytest.raises(RuntimeError):
                kernels(func, tuple(arguments), {})
            continue
        found = kernels(func, tuple(arguments), {})
        assert layouts(found) == layouts(wanted), (size, other)
        assert (found is arguments[0]) == (func in WRITING)


MIXED = [
    lambda: aten.add.Tensor(_empty(2, 3), _empty(2, 3, dtype=torch.float64)),
    lambda: aten.add.Tensor(_empty(2, 3), _empty(2, 3).mT.contiguous().mT),
    lambda: aten.add.Tensor(_empty(1, 3, 2).mT, _empty(4, 2, 3)),
    lambda: aten.add.Tensor(_empty(2, 3), 1j),
    lambda: aten.add.Tensor(_empty(2, 3, dtype=torch.int32), 0.5),
    lambda: aten.mul.Tensor(_empty(2, 3), torch.tensor(2.0)),
    lambda: aten.relu.default(_empty(2, 3, dtype=torch.int32)),
    lambda: aten.sigmoid.default(_empty(2, 3, dtype=torch.int32)),
    lambda: aten.gelu.default(_empty(2, 3).mT, approximate="tanh"),
    lambda: aten.batch_norm.default(_empty(2, 3, 4), *[_empty(3)] * 4, True, 0.1, 1e-5, True),
    lambda: aten.batch_norm.default(_empty(2, 3), *[None] * 4, True, 0.1, 1e-5, True),
    lambda: aten.batch_norm.default(_empty(2, 3, 4).mT, *[None] * 4, True, 0.1, 1e-5, True),
    lambda: aten.linear.default(_empty(3), _empty(4, 3), _empty(4)),
    lambda: aten.linear.default(_empty(2, 1, 3), _empty(4, 3)),
    lambda: aten.linear.default(_empty(2, 3, 5).mT, _empty(4, 3)),
]


@pytest.mark.parametrize("call", MIXED)
def test_formulas_leave_other_layouts_and_types_to_the_operators(call: Any) -> None:
    with torch.inference_mode(), Compared(MetaKernels()):
        call()


REFUSED = [
    lambda: aten.batch_norm.default(_empty(2, 3), *[_empty(4)] * 4, False, 0.1, 1e-5, True),
    lambda: aten.linear.default(_empty(2, 3), _empty(4, 2)),
    lambda: aten.linear.default(_empty(2, 3), _empty(4, 3), _empty(5)),
    lambda: aten.add_.Tensor(_empty(2, 1), _empty(2, 3)),
    lambda: aten.add.Tensor(_empty(2, 3), _empty(3, 2)),
    lambda: aten.mean.dim(_empty(2, 3), [2]),
    lambda: aten.mean.dim(_empty(2, 3), [0, -2]),
    lambda: aten.mean.dim(_empty(2, 3, dtype=torch.int32), [0]),
    lambda: aten.cat.default([_empty(2, 3), _empty(4, 5)]),
    lambda: aten.cat.default([_empty(2, 3), _empty(2, 3)], 2),
    lambda: aten.layer_norm.default(_empty(2, 3), [2]),
    lambda: aten.layer_norm.default(_empty(2, 3), [3], _empty(2)),
    lambda: aten.roll.default(_empty(2, 3), [1], [2]),
    lambda: aten.roll.default(_empty(2, 3), [1], [0, 1]),
]


@pytest.mark.parametrize("call", REFUSED)
def test_formulas_refuse_what_operators_refuse(call: Any) -> None:
    for mode in (nullcontext(), MetaMode()):
        with torch.inference_mode(), pytest.raises((RuntimeError, IndexError, ValueError)), mode:
            call()


def test_another_default_dtype_is_another_call(meta: Tensor) -> None:
    for dtype in (torch.float32, torch.float64):
        torch.set_default_dtype(dtype)
        try:
            with MetaMode():
                assert (meta / 2).dtype == meta.sum(0).true_divide(3).dtype == dtype
        finally:
            torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    "weight, bias",
    [((4, 5, 1, 1), (4,)), ((4, 6, 9, 9), (4,))],
    ids=["channels", "kernel"],
)
def test_what_does_not_fit_still_fails(weight: Any, bias: Any) -> None:
    x, w, b = (torch.empty(n, device="meta") for n in ((2, 6, 8, 8), weight, bias))
    with pytest.raises(RuntimeError), MetaMode():
        torch.conv2d(x, w, b)
    with pytest.raises(RuntimeError), MetaMode():
        for other in (x, x[:, :4].contiguous()):  # the second is no call of the first's pattern
            x.add_(other)


def test_what_is_written_in_place_is_returned_itself() -> None:
    kernels = MetaKernels()
    for size in (4, 7):
        x = torch.empty(2, size, device="meta")
        assert kernels(aten.hardswish_.default, (x,), {}) is x
        assert kernels(aten.add_.Tensor, (x, torch.empty(1, size, device="meta")), {}) is x
        # A result that is no float is refused in every call, not in the first one only.
        with pytest.raises(RuntimeError):
            kernels(aten.add_.Tensor, (x.to(torch.int64), x), {})


@pytest.fixture
def meta() -> Tensor:
    return torch.empty(4, 6, dtype=torch.int32, device="meta")


def test_numbers_of_equal_value_are_told_apart(meta: Tensor) -> None:
    kernels = MetaKernels()
    found = [kernels(aten.mul.Tensor, (meta, one), {}).dtype for one in (1, 1.0, True)]
    assert found == [torch.int32, torch.float32, torch.int32]


def test_layouts_are_told_apart(meta: Tensor) -> None:
    kernels = MetaKernels()
    strides = [
        kernels(aten.neg.default, (x,), {}).stride() for x in (meta, meta.t().contiguous().t())
    ]
    assert strides == [(6, 1), (1, 4)]


def test_every_call_returns_a_new_tensor(meta: Tensor) -> None:
    kernels = MetaKernels()
    first, second = (kernels(aten.neg.default, (meta,), {}) for _ in range(2))
    assert first is not second
    first.unsqueeze_(0)
    assert kernels(aten.neg.default, (meta,), {}).shape == second.shape == (4, 6)


def test_views_and_writes_reach_the_operator(meta: Tensor) -> None:
    with MetaMode():
        for _ in range(2):
            assert meta.view(24).untyped_storage()._cdata == meta.untyped_storage()._cdata
            assert meta.add_(1) is meta


def test_what_an_operator_passes_through_stays_the_same_tensor(meta: Tensor) -> None:
    with torch.inference_mode(), MetaMode():
        for _ in range(2):
            out = torch.dropout(meta, 0.5, False)
            assert out.untyped_storage()._cdata == meta.untyped_storage()._cdata


def test_data_is_computed() -> None:
    kernels, x = MetaKernels(), torch.arange(3)
    assert [kernels(aten.add.Tensor, (x, n), {}).tolist() for n in (1, 1, 2)] == [
        [1, 2, 3],
        [1, 2, 3],
        [2, 3, 4],
    ]


def test_errors_are_the_operators(meta: Tensor) -> None:
    kernels = MetaKernels()
    for _ in range(2):
        with pytest.raises(RuntimeError):
            kernels(aten.mm.default, (meta, meta), {})


def test_a_memory_forgets(meta: Tensor) -> None:
    kernels = MetaKernels()
    first = kernels(aten.softmax.int, (meta, 1), {})
    kernels.forget()
    assert not kernels._known and not kernels._named
    again = kernels(aten.softmax.int, (meta, 1), {})
    assert again.shape == first.shape and again is not first
