"""Digit by digit finds what a stable sort finds."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from secateur.errors import BadInput
from secateur.smallest import BINS, CHUNK, histogram, keys, smallest, threshold

TYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64, "int64": torch.int64}


def by_sorting(values: Tensor, k: int) -> Tensor:
    chosen = torch.zeros(values.numel(), dtype=torch.bool)
    chosen[values.flatten().argsort(stable=True)[:k]] = True
    return chosen.view(values.shape)


def drawn(seed: int, kind: str, size: int, spread: float, ties: bool) -> Tensor:
    chance = torch.Generator().manual_seed(seed)
    values = torch.randn(size, generator=chance, dtype=torch.float64) * spread
    return (values.round() if ties else values).to(TYPES[kind])


@given(
    st.integers(0, 10**6), st.sampled_from(sorted(TYPES)), st.integers(1, 400), st.sampled_from([1e-30, 1e-3, 1.0, 3.0, 1e4]),
    st.booleans(), st.floats(0, 1),
)  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_the_k_smallest_are_those_of_a_stable_sort(seed: int, kind: str, size: int, spread: float, ties: bool, share: float) -> None:
    values, k = drawn(seed, kind, size, spread, ties), round(share * size)
    assert torch.equal(smallest(values, k), by_sorting(values, k))
    if k:
        end, ordered = threshold(values, k), values.sort().values
        assert end.value == float(ordered[k - 1])
        assert end.below == int((values < ordered[k - 1]).sum()) and end.equal == int((values == ordered[k - 1]).sum())
        assert end.ties == k - end.below


@given(st.integers(0, 10**6), st.integers(2, 300), st.integers(1, 4), st.booleans())
@settings(max_examples=50, deadline=None)
def test_parts_in_several_processes_find_the_same_end(seed: int, size: int, world: int, ties: bool) -> None:
    """Each process hands over its histogram and gets the sum of all: here one after the other, as an all-reduce would."""
    values, k = drawn(seed, "float32", size, 2.0, ties), size // 2
    parts = [part.contiguous() for part in values.tensor_split(world)]
    low, high = -(1 << 63), 1 << 63
    whole = sum(histogram(part, low, high, 64) for part in parts)
    assert torch.equal(whole, histogram(values, low, high, 64))
    spans: list[Tensor] = []

    def noted(counts: Tensor) -> Tensor:
        spans.append(counts)
        return counts

    expected = threshold(values, k, add=noted)
    sums = iter(spans)
    assert threshold(parts[0], k, add=lambda mine: next(sums)) == expected == threshold(parts, k)


def test_scores_are_read_in_chunks_in_their_order() -> None:
    values = torch.zeros(2 * CHUNK + 3)
    values[CHUNK] = -1
    chosen = smallest(values, CHUNK + 5)
    assert int(chosen.sum()) == CHUNK + 5 and chosen[: CHUNK + 5].all()
    assert torch.equal(smallest(values.view(-1, 1).expand(-1, 2), 3), by_sorting(values.view(-1, 1).expand(-1, 2), 3))


def test_both_zeros_are_one_score_and_extremes_have_their_place() -> None:
    top = torch.finfo(torch.float32).max
    values = torch.tensor([0.0, -0.0, top, -top, 1e-45, -1e-45, 0.0])
    assert keys(values, 32)[0] == keys(values, 32)[1]
    for k in range(8):
        assert torch.equal(smallest(values, k), by_sorting(values, k))
    assert math.isclose(threshold(values, 7).value, top)


def test_a_histogram_counts_only_what_lies_within() -> None:
    values = torch.tensor([1.0, 2.0, 3.0, 2.0])
    key = int(keys(torch.tensor([2.0]), 32))
    counts = histogram(values, key, key + 1, 32)
    assert len(counts) == BINS and counts[0] == 2 and counts.sum() == 2
    assert histogram([values, values], -(1 << 31), 1 << 31, 32).sum() == 8


@pytest.mark.parametrize("k", [-1, 0, 4])
def test_more_than_there_are_is_refused(k: int) -> None:
    with pytest.raises(BadInput, match=f"The {k} smallest"):
        threshold({"a": torch.ones(1), "b": torch.ones(2)}, k)


def test_whole_numbers_that_would_be_merged_are_refused() -> None:
    exact = torch.tensor([2**53, 2**53 - 1, -(2**53), 3])
    assert threshold(exact, 3).value == 2**53 - 1
    for beyond in (2**53 + 1, -(2**53) - 1, -(2**63)):
        with pytest.raises(BadInput, match="beyond 2\\^53"):
            threshold(torch.tensor([beyond, 1]), 1)
