"""Blocks of a tensor, against loops over its elements."""

from __future__ import annotations

import itertools
import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from secateur.structure.tiles import blocks_along, cells, padded, spread, summed

SIZES = st.lists(st.tuples(st.integers(1, 7), st.integers(1, 4)), min_size=1, max_size=4)


def drawn(sizes: list[tuple[int, int]], seed: int = 0) -> tuple[Tensor, tuple[int, ...], tuple[int, ...]]:
    shape, block = (tuple(pair[side] for pair in sizes) for side in (0, 1))
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)), shape, block


def inside(shape: tuple[int, ...], block: tuple[int, ...], unit: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The elements of a block, one by one."""
    return [
        place
        for place in itertools.product(*map(range, shape))
        if all(index // step == number for index, step, number in zip(place, block, unit))
    ]


@given(SIZES)
@settings(deadline=None, max_examples=60)
def test_sums_and_cells_are_those_of_a_loop(sizes: list[tuple[int, int]]) -> None:
    values, shape, block = drawn(sizes)
    count = blocks_along(shape, block)
    found, rows = summed(values, block), cells(values, block)
    assert found.shape == count and len(rows) == math.prod(count)
    for row, unit in zip(rows, itertools.product(*map(range, count))):
        own = [float(values[place]) for place in inside(shape, block, unit)]
        torch.testing.assert_close(found[unit], torch.tensor(sum(own), dtype=torch.float64))
        assert sorted(value for value in row.tolist() if value) == sorted(own)


@given(SIZES)
@settings(deadline=None, max_examples=60)
def test_spreading_is_what_a_loop_does_and_the_transpose_of_summing(sizes: list[tuple[int, int]]) -> None:
    values, shape, block = drawn(sizes)
    units = torch.randn(blocks_along(shape, block), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    wide = spread(units, block, shape)
    assert wide.shape == shape
    for place in itertools.product(*map(range, shape)):
        assert wide[place] == units[tuple(index // step for index, step in zip(place, block))]
    torch.testing.assert_close((values * wide).sum(), (summed(values, block) * units).sum())


def test_single_elements_are_blocks_of_their_own_and_a_batch_stays_in_front() -> None:
    values = torch.arange(24.0).view(2, 3, 4)
    assert blocks_along((3, 4), ()) == (3, 4)
    assert torch.equal(summed(values, ()), values) and torch.equal(spread(values, (), (2, 3, 4)), values)
    assert torch.equal(cells(values, ()), values.view(-1, 1))
    assert torch.equal(summed(values, (2, 3)), torch.stack([summed(one, (2, 3)) for one in values]))


def test_all_cells_are_in_one_order() -> None:
    """The first of every block is its first element, whatever is lacking at the end."""
    rows = cells(torch.arange(1, 16).view(3, 5), (2, 3))
    assert rows.tolist() == [[1, 2, 3, 6, 7, 8], [4, 5, 0, 9, 10, 0], [11, 12, 13, 0, 0, 0], [14, 15, 0, 0, 0, 0]]
    assert padded(torch.ones(4), 0, 2).tolist() == [1.0] * 4 and padded(torch.ones(3), 0, 2).tolist() == [1.0, 1.0, 1.0, 0.0]
