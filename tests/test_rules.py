"""Rules from outside, and the arithmetic of shapes that views rest on."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import secateur as sc
from secateur.structure.labels import inert
from secateur.structure.rules import RULES, name_of, reshape
from secateur.structure.trace import Trace


def factors(n: int) -> st.SearchStrategy[list[int]]:
    return st.sampled_from(
        [[n], *([k, n // k] for k in range(1, n + 1) if n % k == 0), *([k, 2, n // k // 2] for k in range(1, n + 1) if n % (2 * k) == 0)]
    )


@given(factors(24), factors(24), st.data())
def test_a_view_keeps_every_index_where_it_is(before: list[int], after: list[int], data: st.DataObject):
    trace = Trace()
    dims = tuple(trace.labels.fresh(size) if size > 1 else inert(1) for size in before)
    viewed = reshape(trace, dims, after)
    assert [dim.shape[1] for dim in viewed] == after
    roots = np.unique(np.concatenate([trace.labels.resolve(dim).ravel() for dim in (*dims, *viewed)]))
    gone = np.zeros(trace.labels.size, bool)
    gone[roots[roots > 0]] = data.draw(st.lists(st.booleans(), min_size=int((roots > 0).sum()), max_size=int((roots > 0).sum())))

    def removed(shape_dims: tuple[np.ndarray, ...]) -> np.ndarray:
        grid = np.zeros([dim.shape[1] for dim in shape_dims], bool)
        for at, dim in enumerate(shape_dims):
            atoms = trace.labels.resolve(dim)
            line = gone[atoms].any(0) if len(atoms) else np.zeros(dim.shape[1], bool)
            grid |= line.reshape([-1 if d == at else 1 for d in range(grid.ndim)])
        return grid.ravel()

    assert (removed(dims) == removed(viewed)).all()


def test_names_of_operators():
    assert name_of(torch.ops.aten.add.Tensor) == name_of(torch.ops.aten.add) == name_of("add") == "aten::add"
    assert name_of("mine::op") == "mine::op"


LIBRARY = torch.library.Library("secateur_tests", "DEF")
LIBRARY.define("doubled(Tensor x) -> Tensor")
LIBRARY.impl("doubled", lambda x: x * 2, "CompositeExplicitAutograd")


class Doubling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.ops.secateur_tests.doubled(self.a(x)))


def test_a_custom_operator_freezes_and_is_named_until_it_has_a_rule():
    model, example = Doubling(), torch.randn(3, 4)
    frozen = sc.channels(model, example).frozen["a"].frozen
    assert "no rule for this operator: by secateur_tests::doubled at test_rules.py:" in frozen
    try:

        @sc.rule("secateur_tests::doubled")
        def doubled(t, out, x):
            return t[x]

        assert sc.channels(model, example).groups["a"].size == 6
    finally:
        del RULES["secateur_tests::doubled"]


def test_labels_that_do_not_fit_the_output_are_caught():
    @sc.rule("secateur_tests::doubled")
    def wrong(t, out, x):
        return (t[x][0],)

    try:
        frozen = sc.channels(Doubling(), torch.randn(3, 4)).frozen["a"].frozen
        assert "the operator's rule does not fit this call (labels [3] for a tensor (3, 6)): by secateur_tests::doubled" in frozen
    finally:
        del RULES["secateur_tests::doubled"]
