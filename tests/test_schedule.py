from __future__ import annotations

from itertools import pairwise

import pytest

from secateur.schedule import SCHEDULES, cubic, linear, one_shot


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_ends_with_everything_and_never_goes_back(name: str) -> None:
    shares = [SCHEDULES[name](t / 20) for t in range(21)]
    assert shares[-1] == 1 and all(0 <= a <= b <= 1 for a, b in pairwise(shares))


def test_known_values() -> None:
    assert [one_shot(t) for t in (0, 0.5, 1)] == [1, 1, 1]
    assert [linear(t) for t in (0, 0.25, 1)] == [0, 0.25, 1]
    assert [cubic(t) for t in (0, 0.5, 1)] == [0, 0.875, 1]
