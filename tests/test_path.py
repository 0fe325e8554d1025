from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.path import blocks, first_met, kept_after, removal
from secateur.structure import Group


@pytest.mark.parametrize(
    ("count", "multiple", "least", "sizes", "stay"),
    [
        (5, 1, 1, [1] * 5, 1),
        (5, 1, 3, [1] * 5, 3),
        (10, 4, 1, [2, 4, 4], 4),
        (10, 4, 5, [2, 4, 4], 8),
        (8, 4, 8, [8], 8),
        (3, 4, 1, [3], 3),
        (4, 1, 9, [4], 4),
    ],
)
def test_units_leave_in_blocks_and_so_many_stay(count: int, multiple: int, least: int, sizes: list[int], stay: int) -> None:
    values = torch.rand(count, generator=torch.Generator().manual_seed(0))
    block, marks = blocks(values, multiple, least)
    assert sorted(block.bincount().tolist()) == sorted(sizes)
    assert int(torch.isinf(marks)[block].sum()) == stay
    leaves = marks[block]
    assert values[leaves == math.inf].min() >= values[leaves < math.inf].max() if stay < count else True


def test_a_step_removes_the_next_unit_of_all_groups() -> None:
    ranking = {"a": torch.tensor([3.0, 1.0, 2.0]), "b": torch.tensor([1.5, 9.0])}
    keep = {"a": torch.tensor([True, True, False, True]), "b": torch.tensor([True, True])}
    groups = {name: Group(name, mask.shape) for name, mask in keep.items()}
    leaves, cuts = removal(ranking, keep, groups, 1, {"a": 1, "b": 1})
    assert cuts.tolist() == [1.0, 1.5, 2.0]
    assert [kept_after(leaves, steps)["a"].tolist() for steps in (0, 1, 3)] == [
        [True, True, False, True],
        [True, False, False, True],
        [True, False, False, False],
    ]
    assert kept_after(leaves, 3)["b"].tolist() == [False, True]


@given(st.lists(st.booleans(), min_size=1, max_size=40))
@settings(max_examples=100, deadline=None)
def test_the_step_found_meets_it_and_the_one_before_does_not(met: list[bool]) -> None:
    met[-1] = True
    found = first_met(len(met) - 1, lambda step: met[step])
    assert met[found] and (found == 0 or not met[found - 1])
