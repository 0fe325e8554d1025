"""Labels against what they mean: whichever units are removed, united indices leave together, and a pair leaves if either half does."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.structure.labels import Dim, Labels, inert, join, merge


def removed(labels: Labels, dim: Dim, gone: np.ndarray) -> np.ndarray:
    """Which indices leave when the roots `gone` do."""
    return gone[labels.resolve(dim)].any(0) if len(labels.resolve(dim)) else np.zeros(dim.shape[1], bool)


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_every_promise_holds_whatever_is_removed(data: st.DataObject):
    labels = Labels()
    dims = [labels.fresh(n) for n in data.draw(st.lists(st.sampled_from([4, 6, 8, 12]), min_size=2, max_size=4))] + [inert(4), inert(6)]
    united: list[tuple[Dim, Dim]] = []
    splits: list[tuple[Dim, Dim, Dim]] = []
    merged: list[tuple[Dim, Dim, Dim]] = []
    frozen: list[Dim] = []
    for _ in range(data.draw(st.integers(1, 8))):
        kind = data.draw(st.sampled_from(["unite", "unite", "split", "merge", "join", "slice", "freeze"]))
        a = dims[data.draw(st.integers(0, len(dims) - 1))]
        if kind == "unite":
            fitting = [dim for dim in dims if dim.shape[1] == a.shape[1]]
            b = fitting[data.draw(st.integers(0, len(fitting) - 1))]
            if data.draw(st.booleans()):
                b = b[:, ::-1]
            labels.unite(a, b)
            united.append((a, b))
        elif kind == "split":
            n = data.draw(st.sampled_from([k for k in range(1, a.shape[1] + 1) if a.shape[1] % k == 0]))
            outer, inner = labels.split(a, n, a.shape[1] // n)
            splits.append((a, outer, inner))
            dims += [outer, inner]
        elif kind == "merge":
            b = dims[data.draw(st.integers(0, len(dims) - 1))]
            if a.shape[1] * b.shape[1] <= 48:
                dims.append(merge(a, b))
                merged.append((dims[-1], a, b))
        elif kind == "join":
            b = dims[data.draw(st.integers(0, len(dims) - 1))]
            if a.shape[1] + b.shape[1] <= 24:
                dims.append(join([a, b]))
        elif kind == "slice":
            dims.append(a[:, : max(1, a.shape[1] // 2)])
        elif data.draw(st.integers(0, 3)) == 0:
            part = a[:, :1]
            labels.freeze(part, "said so")
            frozen.append(part)

    roots = np.unique(np.concatenate([labels.resolve(dim).ravel() for dim in dims]))
    free = roots[(roots > 0) & (labels.frozen[roots] == 0)]
    gone = np.zeros(labels.size, bool)
    gone[free] = data.draw(st.lists(st.booleans(), min_size=len(free), max_size=len(free)))
    for a, b in united:
        assert (removed(labels, a, gone) == removed(labels, b, gone)).all()
    for whole, outer, inner in [*splits, *merged]:
        grid = removed(labels, whole, gone).reshape(outer.shape[1], inner.shape[1])
        assert (grid == (removed(labels, outer, gone)[:, None] | removed(labels, inner, gone)[None])).all()
    for part in frozen:
        assert not removed(labels, part, gone).any()


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=12))
def test_plain_unions_are_the_connected_components(pairs: list[tuple[int, int]]):
    labels = Labels()
    dim = labels.fresh(10)
    sets = [{i} for i in range(10)]
    for i, j in pairs:
        labels.unite(dim[:, [i]], dim[:, [j]])
        together = sets[i] | sets[j]
        for k in together:
            sets[k] = together
    roots = labels.resolve(dim)[0]
    for i in range(10):
        assert set(np.flatnonzero(roots == roots[i]).tolist()) == sets[i]


def test_a_split_dimension_comes_back_whole():
    labels = Labels()
    dim = labels.fresh(12)
    heads, within = labels.split(dim, 3, 4)
    assert heads.shape == (1, 3) and within.shape == (1, 4)
    assert (labels.resolve(merge(heads, within)) == labels.resolve(dim)).all()
    again_outer, again_inner = labels.split(dim, 3, 4)
    assert (again_outer == heads).all() and (again_inner == within).all()


def test_repetition_unites_by_itself():
    """Grouped-query attention: 2 key heads serve 4 query heads."""
    labels = Labels()
    query, key = labels.fresh(4), labels.fresh(2)
    labels.unite(query, merge(key, inert(2)))
    roots = labels.resolve(query)[0]
    assert roots[0] == roots[1] != roots[2] == roots[3]


def test_labels_that_are_parts_of_each_other_come_to_rest():
    """13 and 15 against 16, and 13 and 16 against 15: neither can stand for the other, so none of them leaves."""
    labels = Labels()
    x, y, z = (labels.fresh(1)[0, 0] for _ in range(3))
    labels.unite(np.array([[x, x], [y, z]]), np.array([[z, y]]))
    assert (labels.frozen[labels.resolve(np.array([[y, z]]))] > 0).all()


def test_lengths_must_agree():
    labels = Labels()
    with pytest.raises(ValueError, match="3 with 4"):
        labels.unite(labels.fresh(3), labels.fresh(4))


def test_a_reason_is_kept_through_unions():
    labels = Labels()
    a, b = labels.fresh(2), labels.fresh(2)
    labels.freeze(a, "an output")
    labels.unite(b, a)
    assert [labels.reasons[i] for i in labels.frozen[labels.resolve(b)][0]] == ["an output", "an output"]
