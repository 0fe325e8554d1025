"""Reductions of a stream of contexts whose size does not depend on how many come."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping

import torch
from torch import Tensor

from . import tree
from .tree import Scores

RESERVOIR = 64  # contexts that a quantile is taken over


class Reductions:
    """Running mean, sum of squared deviations (Welford, 1962) and maximum; for a quantile, a reservoir (Vitter, 1985)."""

    def __init__(self, by: str | float, seed: int, limit: int = RESERVOIR) -> None:
        self.by, self.limit, self.chance = by, limit, random.Random(seed)
        self.count = 0
        self.mean: Scores = {}
        self.m2: Scores = {}
        self.highest: Scores = {}
        self.reservoir: list[Scores] = []

    def add(self, scores: Scores) -> None:
        if not self.count:
            self.mean, self.m2 = tree.apply(torch.zeros_like, scores), tree.apply(torch.zeros_like, scores)
            self.highest = tree.apply(torch.clone, scores)
        self.count += 1
        for name, value in scores.items():
            deviation = value - self.mean[name]
            self.mean[name].add_(deviation, alpha=1 / self.count)
            self.m2[name].addcmul_(deviation, value - self.mean[name])
            torch.maximum(self.highest[name], value, out=self.highest[name])
        if self.by == "max":
            return
        if len(self.reservoir) < self.limit:
            self.reservoir.append(scores)
        elif (place := self.chance.randrange(self.count)) < self.limit:
            self.reservoir[place] = scores

    def local(self) -> Scores:
        if isinstance(self.by, str):
            return self.highest
        return {name: quantile(torch.stack([scores[name] for scores in self.reservoir]), float(self.by)) for name in self.mean}


def quantile(values: Tensor, q: float) -> Tensor:
    """Along the first dimension, interpolated linearly. (torch.quantile refuses more than 16 million elements.)"""
    ordered = values.sort(dim=0).values
    place = q * (len(values) - 1)
    low, high = math.floor(place), math.ceil(place)
    return torch.lerp(ordered[low], ordered[high], place - low)


def magnitude(scores: Mapping[str, Tensor]) -> float:
    """sum |s| over all units of all groups, in float64, with one transfer from the device."""
    return float(torch.stack([value.abs().sum(dtype=torch.float64) for value in scores.values()]).sum())


def normalised(scores: Scores) -> Scores:
    """s / sum |s|; all zeros stay zeros."""
    whole = magnitude(scores) or 1.0
    return tree.apply(lambda value: value / whole, scores)
