"""criteria/removal.py: the order of removal, against quadratic forms that are really minimised over what is left."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from secateur.criteria.removal import in_order


def problem(seed: int, problems: int, inputs: int, outputs: int) -> tuple[Tensor, Tensor]:
    chance = torch.Generator().manual_seed(seed)
    rows = torch.randn(problems, inputs + 3, inputs, generator=chance, dtype=torch.float64)
    return torch.randn(problems, inputs, outputs, generator=chance, dtype=torch.float64), rows.mT @ rows + 0.1 * torch.eye(inputs).double()


def least(w: Tensor, a: Tensor, kept: Tensor) -> float:
    """min over v, zero outside kept, of (v - w)' A (v - w)."""
    v = torch.zeros_like(w)
    if kept.any():
        v[kept] = torch.linalg.solve(a[kept][:, kept], (a @ w)[kept])
    return float(((v - w) * (a @ (v - w))).sum())


def slowly(w: Tensor, a: Tensor, size: int, may: Callable[[Tensor, int], bool]) -> Tensor:
    """Try every unit that may go, take the one that costs least, until all have gone."""
    units = len(w) // size
    kept, now, worst, scores = torch.ones(units, dtype=torch.bool), 0.0, 0.0, torch.zeros(units, dtype=torch.float64)
    for _ in range(units):
        allowed = [unit for unit in range(units) if kept[unit] and may(kept, unit)] or kept.nonzero().flatten().tolist()
        costs = {}
        for unit in allowed:
            without = kept.clone()
            without[unit] = False
            costs[unit] = least(w, a, without.repeat_interleave(size))
        unit = min(costs, key=costs.__getitem__)
        worst = max(worst, costs[unit] - now)
        scores[unit], kept[unit], now = worst, False, costs[unit]
    return scores


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 3), st.sampled_from([(1, 7), (2, 4), (3, 3)]), st.integers(1, 3))
def test_scores_are_measured_increases(seed: int, problems: int, sizes: tuple[int, int], outputs: int) -> None:
    size, units = sizes
    w, a = problem(seed, problems, size * units, outputs)
    found = in_order(w, torch.linalg.inv(a), size)
    for number in range(problems):
        torch.testing.assert_close(found[number], slowly(w[number], a[number], size, lambda *_: True), rtol=1e-6, atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([(1, 2), (2, 4), (1, 4), (2, 3)]))
def test_of_every_run_n_stay_until_the_others_have_gone(seed: int, stay: tuple[int, int]) -> None:
    n, m = stay
    w, a = problem(seed, 2, 2 * m, 1)
    found = in_order(w, torch.linalg.inv(a), 1, stay)

    def may(kept: Tensor, unit: int) -> bool:
        return int(kept[unit // m * m : (unit // m + 1) * m].sum()) > n

    for number in range(2):
        torch.testing.assert_close(found[number], slowly(w[number], a[number], 1, may), rtol=1e-6, atol=1e-9)


def test_nothing_that_was_given_is_changed() -> None:
    w, a = problem(0, 2, 9, 1)
    inverse = torch.linalg.inv(a)
    before = w.clone(), inverse.clone()
    in_order(w, inverse)
    assert torch.equal(w, before[0]) and torch.equal(inverse, before[1])


@pytest.mark.parametrize("order", [torch.arange(6), torch.tensor([3, 1, 5, 0, 2, 4])])
def test_with_the_identity_it_is_the_order_of_the_squares(order: Tensor) -> None:
    w = (order + 1).double().view(1, 6, 1)
    torch.testing.assert_close(in_order(w, torch.eye(6).double()[None])[0], (order + 1).double().square())
