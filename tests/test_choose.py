"""repair/choose.py: masks by what the fit goes by, and sums for what a mask takes."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from torch import Tensor

from secateur.flows.reading import Reading, matrix_of
from secateur.flows.watch import Call
from secateur.repair.choose import DAMPING, Asked, mask_for
from secateur.repair.side_by_side import Met, Sums

READING = Reading(Call("w", 1, "linear"), "w", "b", 1, 1)


def met_by(u: Tensor, r: Tensor, reading: Reading = READING, factor: float = 1.0) -> Met:
    train, held = Sums.none(u, r), Sums.none(u, r)
    cut = u.shape[1] * 4 // 5
    train.add(u[:, :cut], r[:, :cut])
    held.add(u[:, cut:], r[:, cut:])
    return Met(reading, train, held, torch.full((len(u), 1, r.shape[2]), factor, dtype=torch.float64))


def drawn(inputs: int, outputs: int, groups: int = 1, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """u, r and a weight of a linear layer."""
    chance = torch.Generator().manual_seed(seed)
    mixed = torch.randn(inputs, inputs, generator=chance, dtype=torch.float64)
    u = torch.randn(groups, 5 * inputs, inputs, generator=chance, dtype=torch.float64) @ mixed + 0.5
    r = torch.randn(groups, 5 * inputs, outputs, generator=chance, dtype=torch.float64)
    return u, r, torch.randn(outputs, inputs, generator=chance, dtype=torch.float64)


def test_the_first_to_leave_costs_least_of_all() -> None:
    """By the error itself: for every connection, the best fit without it."""
    u, r, weight = drawn(6, 4)
    met = met_by(u, r, factor=2.0)
    mask = mask_for(met, weight, Asked().group(READING, weight.shape), 1 / 24, True)
    assert int((~mask).sum()) == 1
    centred, missing_ = (u - u.mean(1, keepdim=True))[0], (r - r.mean(1, keepdim=True))[0]
    a = centred.T @ centred
    a += DAMPING * a.diagonal().mean() * torch.eye(6)
    w = 2.0 * weight.T
    costs = torch.empty(4, 6, dtype=torch.float64)
    for output in range(4):
        best = w[:, output] + torch.linalg.solve(a, centred.T @ missing_[:, output])
        for gone in range(6):
            stays = torch.arange(6) != gone
            left = torch.zeros(6, dtype=torch.float64)
            left[stays] = torch.linalg.solve(a[stays][:, stays], a[stays] @ best)
            costs[output, gone] = (left - best) @ a @ (left - best)
    assert not mask.flatten()[costs.argmin()]


@pytest.mark.parametrize("exact", [0, 2**40])
@pytest.mark.parametrize("amount", [0.0, 0.3, 0.5, 1.0])
def test_so_many_leave(exact: int, amount: float) -> None:
    u, r, weight = drawn(10, 3)
    with mock.patch("secateur.repair.choose.EXACT", exact):
        mask = mask_for(met_by(u, r), weight, Asked().group(READING, weight.shape), amount, True)
    assert int((~mask).sum()) == min(round(amount * 30), 29)  # one stays


@pytest.mark.parametrize("reads", [0, 1])
def test_runs_and_blocks_lie_along_what_is_read(reads: int) -> None:
    u, r, weight = drawn(8, 6)
    reading = Reading(Call("w", 1, "matmul"), "w", None, reads, 1)
    weight = weight.movedim(1, reads)
    runs = mask_for(met_by(u, r, reading), weight, Asked(run=(1, 4)).group(reading, weight.shape), 0.0, False)
    assert (torch.unflatten(runs.movedim(reads, 1), 1, (-1, 4)).sum(2) == 1).all()
    blocks = mask_for(met_by(u, r, reading), weight, Asked(block=(3, 2)).group(reading, weight.shape), 0.5, False).movedim(reads, 1)
    tiles = blocks.view(2, 3, 4, 2).float().mean((1, 3))
    assert int((tiles == 0).sum()) == 4 and int((tiles == 1).sum()) == 4


def test_kernels_have_blocks_along_channels() -> None:
    reading = Reading(Call("w", 1, "conv2d"), "w", "b", 1, 2)
    group = Asked(block=(2, 3)).group(reading, torch.Size((8, 6, 3, 3)))
    assert group.block == (2, 3, 1, 1) and group.shape == (4, 2, 3, 3)


def test_inputs_that_are_always_zero_leave_first_and_nothing_fails() -> None:
    u, r, weight = drawn(6, 4)
    u[..., :3] = 0
    mask = mask_for(met_by(u, r), weight, Asked().group(READING, weight.shape), 0.5, True)
    assert not mask[:, :3].any()
    assert int(mask_for(met_by(u * 0, r), weight, Asked().group(READING, weight.shape), 0.5, True).sum()) == 12


def test_what_a_mask_takes_is_missing_too() -> None:
    u, r, weight = drawn(6, 4)
    gone = weight * (torch.rand(weight.shape, generator=torch.Generator().manual_seed(0)) < 0.5)
    then, expected = met_by(u, r, factor=0.5).without(gone), met_by(u, r + 0.5 * u @ matrix_of(gone, READING), factor=0.5)
    for found, wanted in ((then.train, expected.train), (then.held, expected.held)):
        for name in ("gram", "cross", "square"):
            torch.testing.assert_close(getattr(found, name), getattr(wanted, name))
