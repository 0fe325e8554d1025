from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from secateur import sure
from secateur.sure import Stability, agreement, correlation, drawn, ranks, stability

VALUES = st.lists(st.integers(-3, 3), min_size=1, max_size=20)


def slow_agreement(a: list[int], b: list[int], amount: float) -> float:
    """By sets, in the order that sorting leaves."""
    first, second = ({*sorted(range(len(v)), key=lambda i: v[i])[: round(amount * len(v))]} for v in (a, b))
    return len(first & second) / len(first | second) if first | second else 1.0


def slow_ranks(values: list[int]) -> list[float]:
    return [sum(other < value for other in values) + (values.count(value) + 1) / 2 for value in values]


@settings(deadline=None)
@given(VALUES, st.randoms(), st.floats(0, 1))
def test_agreement_is_that_of_the_sets(a: list[int], chance: object, amount: float) -> None:
    b = [*a]
    chance.shuffle(b)  # type: ignore[attr-defined]
    first, second = torch.tensor(a).double(), torch.tensor(b).double()
    assert agreement(first, second, amount) == slow_agreement(a, b, amount)
    assert agreement(first, first, amount) == 1


@settings(deadline=None)
@given(VALUES)
def test_equal_values_share_their_ranks(a: list[int]) -> None:
    assert ranks(torch.tensor(a).double()).tolist() == slow_ranks(a)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([1, 2, 3, 4], [10, 20, 30, 400], 1.0),
        ([1, 2, 3, 4], [4, 3, 2, 1], -1.0),
        ([86, 97, 99, 100, 101, 103, 106, 110, 112, 113], [2, 20, 28, 27, 50, 29, 7, 17, 6, 12], -29 / 165),  # Wikipedia's
        ([1, 1, 2], [1, 2, 2], 0.5),
        ([1, 1], [1, 1], 1.0),
    ],
)
def test_correlations_are_those_of_spearman(a: list[int], b: list[int], expected: float) -> None:
    assert correlation(torch.tensor(a).double(), torch.tensor(b).double()) == pytest.approx(expected)


def test_of_very_many_units_some_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    a = torch.rand(5005, generator=torch.Generator().manual_seed(0))
    noisy: Tensor = a + 0.1 * torch.rand(5005, generator=torch.Generator().manual_seed(1))
    whole = stability({"a": a}, {"a": noisy}, 0.5)
    monkeypatch.setattr(sure, "SAMPLED", 1000)
    some, chosen = stability({"a": a}, {"a": noisy}, 0.5), drawn(5005)
    assert some == Stability(0.5, agreement(a[chosen], noisy[chosen], 0.5), correlation(a[chosen], noisy[chosen])) != whole
    assert math.isclose(some.correlation, whole.correlation, abs_tol=0.01)
    assert math.isclose(some.agreement, whole.agreement, abs_tol=0.05)


@pytest.mark.parametrize("row", range(2, 40))
def test_those_that_are_compared_lie_everywhere_in_rows(row: int) -> None:
    """Steps of a kernel's length would only ever meet one of its places."""
    number = 9 * (1 << 15)
    places = drawn(number)
    assert len(places) == sure.SAMPLED and places.max() < number and len(places.unique()) > 0.8 * sure.SAMPLED
    met = torch.bincount(places % row, minlength=row) / len(places) * row
    assert met.min() > 0.9 and met.max() < 1.1
