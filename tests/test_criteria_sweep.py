"""criteria/sweep.py: SparseGPT's order beside its definition, input after input."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from torch import Tensor

from secateur.criteria.sweep import swept, swept_runs


def problem(groups: int, inputs: int, outputs: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    chance = torch.Generator().manual_seed(seed)
    mixed = torch.randn(inputs, inputs, generator=chance, dtype=torch.float64)
    u = torch.randn(groups, 3 * inputs, inputs, generator=chance, dtype=torch.float64) @ mixed
    a = u.mT @ u + torch.eye(inputs, dtype=torch.float64)
    return torch.randn(groups, inputs, outputs, generator=chance, dtype=torch.float64), a


def slow(w: Tensor, a: Tensor, keep: Tensor) -> Tensor:
    """Of one group: the weights as each input finds them at its turn, when those behind it made up for what left before, exactly."""
    w, found = w.clone(), torch.zeros_like(w)
    for j in range(len(w)):
        inverse = torch.linalg.inv(a[j:, j:])  # of those that are not settled
        found[j] = w[j]
        w[j:] -= inverse[:, :1] * torch.where(keep[j], 0, w[j] / inverse[0, 0])
    return found


@pytest.mark.parametrize(("groups", "inputs", "outputs"), [(1, 12, 5), (2, 8, 3)])
@pytest.mark.parametrize("step", [1, 4, 128])
def test_of_so_many_inputs_those_leave_that_cost_least(groups: int, inputs: int, outputs: int, step: int) -> None:
    w, a = problem(groups, inputs, outputs)
    number, inverse = groups * inputs * outputs // 2, torch.linalg.inv(a)
    with mock.patch("secateur.criteria.sweep.AT_ONCE", step):
        keep = swept(w, inverse, number)
    assert int((~keep).sum()) == number
    found = w if step == 128 else torch.stack([slow(*one) for one in zip(w, a, keep)])
    costs = found.square() / inverse.diagonal(dim1=1, dim2=2)[..., None]
    for start in range(0, inputs, step) if step != 4 else ():
        cost, stays = costs[:, start : start + step], keep[:, start : start + step]
        assert stays.all() or not stays.any() or cost[~stays].max() <= cost[stays].min()


def slow_runs(w: Tensor, a: Tensor, n: int, m: int) -> Tensor:
    """Of one group: what its connections cost as each run finds them, when those behind it made up for what left before, exactly."""
    w, costs = w.clone(), torch.zeros_like(w)
    for start in range(0, len(w), m):
        inverses = {j: torch.linalg.inv(a[j:, j:]) for j in range(start, start + m)}
        for j, inverse in inverses.items():
            costs[j] = w[j] ** 2 / inverse[0, 0]
        gone = costs[start : start + m] < costs[start : start + m].sort(0).values[m - n]
        for j, inverse in inverses.items():
            w[j:] -= inverse[:, :1] * torch.where(gone[j - start], w[j] / inverse[0, 0], 0)
    return costs


@pytest.mark.parametrize("step", [1, 8, 128])
@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 3), (3, 4)])
def test_of_every_run_each_costs_what_it_does_at_its_turn(n: int, m: int, step: int) -> None:
    w, a = problem(2, 12, 5)
    order = a.diagonal(dim1=1, dim2=2).view(2, -1, m).sum(2).argsort(descending=True)
    with mock.patch("secateur.criteria.sweep.AT_ONCE", step):
        costs = swept_runs(w, torch.linalg.inv(a), n, m)
    for group in range(2):
        turned = torch.cat([torch.arange(m) + m * run for run in order[group]])
        torch.testing.assert_close(costs[group][turned], slow_runs(w[group][turned], a[group][turned][:, turned], n, m))


def test_it_is_better_than_magnitude() -> None:
    """By the error after what stays is fitted exactly, where inputs are of uneven size and of several blocks."""
    chance = torch.Generator().manual_seed(0)
    sizes = torch.logspace(0, -1.5, 96, dtype=torch.float64)[torch.randperm(96, generator=chance)]
    u = torch.randn(400, 96, generator=chance, dtype=torch.float64) @ (torch.randn(96, 96, generator=chance).double() * sizes)
    a = (u.T @ u + 1e-2 * u.square().sum(0).mean() * torch.eye(96))[None]
    w = torch.randn(1, 96, 16, generator=chance, dtype=torch.float64)
    inverse = torch.linalg.inv(a)

    def error(keep: Tensor) -> float:
        total = 0.0
        for output in range(16):
            gone = (~keep[0, :, output]).nonzero()[:, 0]
            part = w[0, gone, output]
            total += float(part @ torch.linalg.solve(inverse[0][gone][:, gone], part))
        return total

    lowest = w.abs() > w.abs().flatten().kthvalue(w.numel() // 2).values
    assert error(swept(w, inverse, w.numel() // 2)) < 0.3 * error(lowest)
    of_four = w.abs().view(1, 24, 4, 16).argsort(2).argsort(2).view(w.shape) >= 2
    costs = swept_runs(w, inverse, 2, 4)
    assert error(costs.view(1, 24, 4, 16).argsort(2).argsort(2).view(w.shape) >= 2) < 0.5 * error(of_four)
