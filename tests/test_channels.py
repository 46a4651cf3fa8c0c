"""Channel units, choice points and index maps, against naive and hand-computed answers."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lwdna.channels import ChannelSpace, Ids, Slot
from lwdna.choices import choose_axis, resolve
from lwdna.copies import Resizing, completed, entry_map

N = 12
ids = st.lists(st.integers(0, N - 1), min_size=1, max_size=6)
pairs = st.integers(1, 6).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(0, N - 1), min_size=n, max_size=n),
        st.lists(st.integers(0, N - 1), min_size=n, max_size=n),
    )
)
steps = st.lists(st.one_of(pairs, ids), max_size=12)


def space_of(n: int) -> tuple[ChannelSpace, Ids]:
    space = ChannelSpace()
    return space, space.fresh(n, Slot("w", 0))


def partition(labels: Any) -> set[frozenset[int]]:
    return {
        frozenset(i for i, other in enumerate(labels) if other == label) for label in set(labels)
    }


# --- union-find ---


@given(steps)
@settings(deadline=None, max_examples=200)
def test_union_find_agrees_with_relabelling(steps: list[Any]) -> None:
    space, _ = space_of(N)
    label, frozen = list(range(N)), [False] * N
    for step in steps:
        if isinstance(step, tuple):
            space.unite(np.array(step[0]), np.array(step[1]), "node", "add")
            for a, b in zip(*step, strict=True):
                old, new = label[b], label[a]
                either = any(f for f, own in zip(frozen, label, strict=True) if own in (old, new))
                label = [new if own == old else own for own in label]
                frozen = [
                    f or (either and own == new) for f, own in zip(frozen, label, strict=True)
                ]
        else:
            space.freeze(np.array(step), "because", "node")
            frozen = [
                f or own in {label[i] for i in step} for f, own in zip(frozen, label, strict=True)
            ]
    assert partition(space.find(np.arange(N)).tolist()) == partition(label)
    assert space.frozen(np.arange(N)).tolist() == frozen


@given(steps)
@settings(deadline=None, max_examples=50)
def test_the_representative_is_the_smallest_id_of_its_unit(steps: list[Any]) -> None:
    space, everything = space_of(N)
    for step in steps:
        if isinstance(step, tuple):
            space.unite(np.array(step[0]), np.array(step[1]), "node", "add")
    roots = space.find(everything)
    for unit in partition(roots.tolist()):
        assert {int(roots[i]) for i in unit} == {min(unit)}


def test_fresh_ids_survive_growth_and_know_their_slot() -> None:
    space = ChannelSpace()
    a = space.fresh(1000, Slot("a", 0))
    space.unite(a[:1], a[999:], "node", "add")
    b = space.fresh(5000, Slot("b", 1))
    assert b[0] == 1000 and space.size == 6000
    assert space.find(a[[0, 999]]).tolist() == [0, 0]
    assert [space.slots[k].name for k in space.owner(np.array([0, 999, 1000, 5999]))] == [*"aabb"]


def test_freezing_keeps_the_first_reason_of_each_unit() -> None:
    space, a = space_of(4)
    space.unite(a[:1], a[1:2], "n0", "add")
    space.freeze(a[:1], "first", "n1")
    space.freeze(a[1:3], "second", "n2")
    assert [(f.ids.tolist(), f.reason, f.node) for f in space.freezes] == [
        ([0], "first", "n1"),
        ([2], "second", "n2"),  # unit of 1 is frozen already
    ]
    space.freeze(None, "nothing", "n3")
    assert len(space.freezes) == 2


def test_coupling_with_a_fixed_dimension_freezes() -> None:
    space, a = space_of(3)
    space.couple(a, None, "n", "matmul")
    assert space.frozen(a).all()
    assert space.freezes[0].reason == "meets a fixed dimension in matmul"


# --- reshapes ---


def test_split_and_merge_are_inverse() -> None:
    space, whole = space_of(24)
    axes = space.split(whole, (2, 3, 4), "view")
    assert [len(axis) for axis in axes if axis is not None] == [2, 3, 4]
    assert space.merge((2, 3, 4), axes, "back") is whole
    assert space.split(whole, (2, 3, 4), "again") is axes


def test_merge_and_split_are_inverse() -> None:
    space, a = space_of(2)
    b = space.fresh(3, Slot("b", 0))
    whole = space.merge((2, 3), (a, b), "flatten")
    assert whole is not None and len(whole) == 6
    back = space.split(whole, (2, 3), "view")
    assert back[0] is a and back[1] is b


def test_merging_one_live_axis_repeats_or_tiles_it() -> None:
    space, a = space_of(2)
    outer, inner = space.merge((2, 3), (a, None), "n"), space.merge((3, 2), (None, a), "n")
    assert outer is not None and outer.tolist() == [0, 0, 0, 1, 1, 1]
    assert inner is not None and inner.tolist() == [0, 1, 0, 1, 0, 1]
    assert space.merge((2, 3), (None, None), "n") is None
    assert space.rectangles == []  # none of these leaves a choice


def test_splitting_what_depends_on_one_axis_opens_no_choice() -> None:
    space, a = space_of(2)
    assert [
        None if v is None else v.tolist() for v in space.split(np.repeat(a, 3), (2, 3), "n")
    ] == [
        [0, 1],
        None,
    ]
    assert [None if v is None else v.tolist() for v in space.split(np.tile(a, 3), (3, 2), "n")] == [
        None,
        [0, 1],
    ]
    assert space.rectangles == []


def test_dimensions_of_one_entry_are_never_channels() -> None:
    space, whole = space_of(6)
    axes = space.split(whole, (1, 2, 1, 3), "view")
    assert axes[0] is None and axes[2] is None
    assert [len(axis) for axis in axes if axis is not None] == [2, 3]
    assert space.split(whole, (6, 1), "view")[0] is whole


def test_a_frozen_dimension_stays_fixed_through_reshapes() -> None:
    space, whole = space_of(6)
    space.freeze(whole, "because", "n")
    assert space.split(whole, (2, 3), "view") == (None, None)
    assert space.merge((6, 2), (whole, None), "flatten") is None


# --- choice points ---

AXIS = {"outer": 0, "inner": 1, 0: 0, 1: 1}


@pytest.mark.parametrize(
    "policy", ["outer", "inner", {"view": 0}, {"vi*": "inner"}, {"x": 0, "v*": 1}]
)
def test_the_chosen_axis_is_the_one_whose_slices_are_units(policy: Any) -> None:
    chosen = AXIS[policy if isinstance(policy, str) else list(policy.values())[-1]]
    space, whole = space_of(15)
    space.split(whole, (3, 5), "view")
    resolve(space, policy)
    grid = space.find(whole).reshape(3, 5)
    along = grid if chosen == 0 else grid.T
    assert (along == along[:, :1]).all()
    assert len(np.unique(grid)) == (3, 5)[chosen]
    assert [c.chosen for c in space.choices] == [chosen]
    assert space.choices[0].candidates == (0, 1)


@pytest.mark.parametrize(
    ("sizes", "chosen"),
    [
        ((4, 2), 0),
        ((2, 4), 1),
        ((3, 3), 0),
        ((32, 16), 1),
        ((64, 15), 0),
        ((2, 16, 3), 1),
        ((16, 20, 17), 2),
    ],
)
def test_auto_takes_the_innermost_axis_of_sixteen_or_else_the_longest(
    sizes: tuple[int, ...], chosen: int
) -> None:
    assert choose_axis("auto", "n", sizes, range(len(sizes))) == chosen
    assert choose_axis({"other": 0}, "n", sizes, range(len(sizes))) == chosen


def test_policy_corner_cases() -> None:
    assert (
        choose_axis({"n": 0, "*": "inner"}, "n", (4, 32), (0, 1)) == 0
    )  # the first pattern that matches
    assert choose_axis({"n": 0}, "n", (2, 3, 4), (1, 2)) == 2  # axis 0 cannot change
    assert choose_axis("outer", "n", (2, 3, 4), (1, 2)) == 1
    for unknown in ("sideways", {"n": "inner", "m": "sideways"}):
        with pytest.raises(ValueError, match=r"'sideways'.*'auto', 'inner', 'outer'"):
            resolve(ChannelSpace(), unknown)


@pytest.mark.parametrize("policy", ["auto", "outer", "inner"])
def test_no_choice_falls_on_a_frozen_axis(policy: str) -> None:
    space, whole = space_of(3 * 2 * 4)
    qkv, heads, width = space.split(whole, (3, 2, 4), "view")
    space.freeze(qkv, "addressed one by one", "unbind")
    space.freeze(width, "fixed", "n")
    resolve(space, policy)
    grid = space.find(whole).reshape(3, 2, 4)
    assert (grid == grid[:1, :, :1]).all() and len(np.unique(grid)) == 2
    assert not space.frozen(whole).any()
    assert np.array_equal(space.find(heads), grid[0, :, 0])
    assert space.choices[0].chosen == 1


def test_freezing_spreads_between_a_rectangle_and_its_axes() -> None:
    space, whole = space_of(6)
    outer, inner = space.split(whole, (2, 3), "view")
    space.freeze(whole[:1], "part", "n")
    resolve(space, "auto")
    assert not space.frozen(whole).all()  # one row or column is frozen, the others live
    assert space.frozen(whole).sum() in (2, 3)

    space, whole = space_of(6)
    outer, inner = space.split(whole, (2, 3), "view")
    space.freeze(whole, "all", "n")
    resolve(space, "auto")
    assert space.frozen(outer).all() and space.frozen(inner).all()

    space, whole = space_of(6)
    outer, inner = space.split(whole, (2, 3), "view")
    space.freeze(outer, "a", "n")
    space.freeze(inner, "b", "n")
    resolve(space, "auto")
    assert space.frozen(whole).all()
    assert space.choices[0].chosen is None


@given(
    st.lists(st.integers(2, 4), min_size=2, max_size=3).map(tuple),
    st.sampled_from(["auto", "inner", "outer"]),
    st.randoms(use_true_random=False),
)
@settings(deadline=None, max_examples=60)
def test_any_removal_of_units_leaves_a_rectangle(
    sizes: tuple[int, ...], policy: str, rng: Any
) -> None:
    n = int(np.prod(sizes))
    space, whole = space_of(n)
    first = space.split(whole, sizes, "a")
    other = space.split(whole, tuple(reversed(sizes)), "b")  # a second view of the same entries
    space.couple(first[0], space.fresh(sizes[0], Slot("v", 0)), "c", "add")
    resolve(space, policy)
    removed = np.array([rng.random() < 0.4 for _ in range(space.size)])
    removed &= ~space.frozen(np.arange(space.size))
    for axes, shape in ((first, sizes), (other, tuple(reversed(sizes)))):
        kept = ~removed[space.find(whole)].reshape(shape)
        alive = [
            np.ones(size, bool) if axis is None else ~removed[space.find(axis)]
            for axis, size in zip(axes, shape, strict=True)
        ]
        assert np.array_equal(kept, np.array([all(p) for p in product(*alive)]).reshape(shape))


@given(
    st.lists(st.integers(2, 6), min_size=2, max_size=3).map(tuple),
    st.sampled_from(["auto", "inner", "outer", "both"]),
    st.randoms(use_true_random=False),
)
@settings(deadline=None, max_examples=60)
def test_copies_stand_where_they_stand_along_the_axes(
    sizes: tuple[int, ...], policy: str, rng: Any
) -> None:
    space, whole = space_of(int(np.prod(sizes)))
    first = space.split(whole, sizes, "a")
    other = space.split(whole, sizes[1:] + sizes[:1], "b")
    resolve(space, policy)
    copies = np.array([rng.choice([0, 1, 1, 2, 3]) for _ in range(space.size)])
    copies[space.frozen(np.arange(space.size))] = 1
    factors = np.full((space.size, space.products.factors.shape[1]), -1)
    factors[space.products.units] = space.products.factors
    copies = completed(copies, factors)
    for axes, shape in ((first, sizes), (other, sizes[1:] + sizes[:1])):
        maps = [
            np.arange(size) if axis is None else entry_map(space.find(axis), copies, factors)[0]
            for axis, size in zip(axes, shape, strict=True)
        ]
        grid = np.meshgrid(*maps, indexing="ij")
        expected = np.ravel_multi_index([g.reshape(-1) for g in grid], shape)
        got, _ = entry_map(space.find(whole), copies, factors)
        assert got.tolist() == expected.tolist()


# --- index maps ---


@pytest.mark.parametrize(
    ("vector", "copies", "entries", "number"),
    [
        ([0, 1, 2], [1, 0, 1], [0, 2], [0, 0]),
        ([0, 1, 2], [1, 0, 3], [0, 2, 2, 2], [0, 0, 1, 2]),
        # pixel shuffle, or whole groups of a grouped convolution: runs of 4 stay together
        (
            [0, 0, 0, 0, 1, 1, 1, 1],
            [2, 1],
            [0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6, 7],
            [0] * 4 + [1] * 4 + [0] * 4,
        ),
        # the same position in every group: the copy stands beside its original, in every group
        ([0, 1, 0, 1], [2, 1], [0, 0, 1, 2, 2, 3], [0, 1, 0, 0, 1, 0]),
        ([0, 1, 0, 1], [0, 2], [1, 1, 3, 3], [0, 1, 0, 1]),
        # interleaved runs: two heads of (key 0 0, value 1)
        (
            [0, 0, 1, 0, 0, 1],
            [2, 1],
            [0, 1, 0, 1, 2, 3, 4, 3, 4, 5],
            [0, 0, 1, 1, 0, 0, 0, 1, 1, 0],
        ),
        # a mirrored dimension (flip)
        ([1, 0, 0, 1], [1, 2], [0, 0, 1, 2, 3, 3], [0, 1, 0, 0, 0, 1]),
        ([0, 1], [0, 0], [], []),
        ([], [1], [], []),
    ],
)
def test_copies_stand_after_the_original_run(
    vector: list[int], copies: list[int], entries: list[int], number: list[int]
) -> None:
    found = entry_map(np.array(vector, dtype=np.int64), np.array(copies, dtype=np.int64))
    assert [part.tolist() for part in found] == [entries, number]


@given(st.data())
@settings(deadline=None, max_examples=200)
def test_keeping_the_originals_undoes_any_widening(data: st.DataObject) -> None:
    vector = np.array(
        data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=20)), dtype=np.int64
    )
    copies = np.array(
        data.draw(st.lists(st.integers(0, 3), min_size=5, max_size=5)), dtype=np.int64
    )
    entries, number = entry_map(vector, copies)
    assert len(entries) == copies[vector].sum()
    assert entries[number == 0].tolist() == np.flatnonzero(copies[vector]).tolist()
    for entry in range(len(vector)):
        assert sorted(number[entries == entry]) == list(range(copies[vector[entry]]))


def test_what_becomes_of_equal_vectors_is_worked_out_once() -> None:
    copies = np.array([1, 0, 2, 1])
    resizing = Resizing(copies, np.zeros((4, 0), dtype=np.int64))
    for _ in range(2):
        for vector in (np.array([0, 3]), np.array([2, 2, 1, 0]), np.array([1, 3])):
            assert resizing.length(vector) == copies[vector].sum()
            found = resizing.entries(vector)
            if (copies[vector] == 1).all():
                assert found is None
            else:
                assert found is not None and found is resizing.entries(vector.copy())
                for ours, theirs in zip(found, entry_map(vector, copies), strict=True):
                    assert np.array_equal(ours, theirs)
