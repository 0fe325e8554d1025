"""How sure a ranking is: whether two halves of the data agree on what would be removed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from . import tree
from .smallest import smallest

SAMPLED = 1 << 18  # units that are compared; of more, so many drawn by chance


@dataclass(frozen=True)
class Stability:
    """How well two halves of the contexts agree (of pieces of data, where contexts have keys): every other one is in the first.

    amount: the share of all units that is removed, those of the lowest global sensitivity, to look at the agreement there.
    agreement: |A and B| / |A or B| (Jaccard, 1901) of what either half would remove: 1 is the same, and amount / (2 - amount) is chance.
    correlation: of the ranks of all units (Spearman, 1904).
    The whole of the data is twice as much as a half, so both are what can be counted on at least. Of more than 2^18 units so many are
    drawn (always the same), which leaves the agreement a standard error of 0.0014 at the most (at an amount of a half).
    """

    amount: float
    agreement: float
    correlation: float


def stability(a: Mapping[str, Tensor], b: Mapping[str, Tensor], amount: float) -> Stability:
    first, second = tree.flat(a), tree.flat(b)
    if len(first) > SAMPLED:
        chosen = drawn(len(first)).to(first.device)
        first, second = first[chosen], second[chosen]
    return Stability(amount, agreement(first, second, amount), correlation(first, second))


def drawn(number: int) -> Tensor:
    """The places of SAMPLED units, one in each of as many equal parts of the row."""
    places = torch.arange(SAMPLED, dtype=torch.float64)
    places += torch.rand(SAMPLED, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return (places * (number / SAMPLED)).long().clamp(max=number - 1)


def agreement(a: Tensor, b: Tensor, amount: float) -> float:
    """Jaccard's index of the lowest of a and the lowest of b; 1 where nothing is removed."""
    removed = round(amount * len(a))
    first, second = smallest(a, removed), smallest(b, removed)
    both = int((first & second).count_nonzero())
    return both / (2 * removed - both) if removed else 1.0


def correlation(a: Tensor, b: Tensor) -> float:
    """Of ranks, equal values sharing theirs."""
    first, second = ranks(a), ranks(b)
    first, second = first - first.mean(), second - second.mean()
    scale = float((first.square().sum() * second.square().sum()).sqrt())
    return float((first * second).sum()) / scale if scale else 1.0


def ranks(values: Tensor) -> Tensor:
    _, which, counts = torch.unique(values, return_inverse=True, return_counts=True)
    return (counts.cumsum(0) - (counts - 1) / 2)[which].double()
