"""Remembered meta kernels: what they return is what the operator returns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lwdna.fx_passes.analyse import single_batch
from lwdna.fx_passes.kernels import MetaKernels, MetaMode
from lwdna.fx_passes.module import meta_twin
from lwdna.inputs import as_arguments
from tests.rules.samples import SAMPLES, Sample

aten = torch.ops.aten


def layouts(tree: Any) -> list[Any]:
    return [
        (tuple(t.shape), t.stride(), t.dtype, t.device.type) if isinstance(t, Tensor) else t
        for t in tree_leaves(tree)
    ]


class Compared(TorchDispatchMode):
    """Runs every operator directly and, twice, through one :class:`MetaKernels`."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels = MetaKernels()

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


@pytest.mark.parametrize("sample", SAMPLES, ids=[s.id for s in SAMPLES])
def test_remembered_results_have_the_layouts_of_executed_ones(sample: Sample) -> None:
    twin = meta_twin(sample.net()).eval()
    inputs = single_batch(as_arguments(twin, sample.inputs()))
    with torch.inference_mode(), torch.device("meta"), Compared():
        twin(*inputs)


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
