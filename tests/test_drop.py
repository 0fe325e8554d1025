from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.drop import largest_within
from secateur.errors import BadInput, BudgetUnreachable


def quality(amount: float) -> float:
    return 0.9 - amount**2 / 2


def same(amount: float) -> float:
    return amount


@given(st.floats(0, 60), st.integers(1, 10))
@settings(max_examples=80, deadline=None)
def test_it_is_the_largest_amount_of_the_grid_within_the_drop(drop: float, trials: int) -> None:
    told: list[tuple[int, int | None]] = []
    asked: list[float] = []

    def value(amount: float) -> float:
        asked.append(amount)
        return quality(amount)

    found = largest_within(same, value, 0.9, drop, trials, lambda *now: told.append(now))
    best = max(i / 2**trials for i in range(2**trials) if quality(i / 2**trials) >= 0.9 - drop / 100 - 1e-12)
    assert found.made == found.amount == best and found.value == quality(best)
    assert len(found.trials) == len(asked) == trials and told[-1] == (trials, trials)
    assert [amount for amount, _ in found.trials] == asked


def test_beyond_reach_nothing_is_evaluated() -> None:
    def reach(amount: float) -> float:
        if amount > 0.6:
            raise BudgetUnreachable("too much")
        return amount

    found = largest_within(reach, lambda amount: 1.0, 1.0, 0.5, trials=4)
    assert found.amount == 0.5625
    assert found.trials == ((0.5, 1.0), (0.75, None), (0.625, None), (0.5625, 1.0))


def test_nothing_is_removed_where_every_amount_costs_too_much() -> None:
    found = largest_within(same, lambda amount: 0.1, 0.9, 0.5, trials=3)
    assert (found.made, found.amount, found.value) == (0.0, 0.0, 0.9)
    assert [amount for amount, _ in found.trials] == [0.5, 0.25, 0.125]


def test_half_a_point_is_five_thousandths() -> None:
    assert largest_within(same, lambda amount: 0.9 - amount / 100, 0.9, 0.5, trials=5).amount == 0.5


@pytest.mark.parametrize(
    ("drop", "trials", "says"),
    [
        (-1, 3, "drop= is a number of points"),
        (101, 3, "but it is 101"),
        (True, 3, "True"),
        ("0.5", 3, "'0.5'"),
        (0.5, 0, "trials= must be"),
        (0.5, 2.0, "2.0"),
    ],
)
def test_what_is_no_drop_is_refused(drop: object, trials: object, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        largest_within(same, quality, 0.9, drop, trials)  # type: ignore[arg-type]
