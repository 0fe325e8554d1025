"""Reductions of a stream of contexts whose size does not depend on how many come, and which merge: however the stream was split, and in
whatever order its parts are joined, the result is that of the whole stream.

    count, mean, M2     n = n_a + n_b,  d = mean_b - mean_a,  mean = mean_a + d n_b / n,  M2 = M2_a + M2_b + d^2 n_a n_b / n
                        (Chan, Golub and LeVeque, 1979, "Updating formulae and a pairwise algorithm for computing sample variances")
    highest             the maximum of the two
    sample              the k contexts of the lowest random numbers among those of both (bottom-k; Cohen and Kaplan, 2007)

Means are kept in float64, since a ranking over millions of contexts hangs on them; M2, maximum and sample in the scores' own type. So
a unit takes 8 bytes more than in float32, and an update no measurable time beside a backward pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from . import tree
from .sharded import absolute_sum, local
from .task import mixed
from .tree import Scores

ROOM = 1 << 22  # numbers that a sample of contexts may take
LEAST, MOST = 64, 4096  # contexts in it
State = tuple[dict[str, object], dict[str, Tensor]]  # numbers and names that go into JSON, and tensors


def contexts_kept(units: int) -> int:
    """How many contexts a quantile is taken over: 4,096 where there are few units, 64 where there are very many."""
    return max(LEAST, min(MOST, ROOM // max(units, 1)))


def rank_error(kept: int, chance: float = 0.05) -> float:
    """How far off a quantile over a sample of `kept` contexts may be, in rank, for a unit with probability 1 - chance.

    epsilon = sqrt(ln(2 / chance) / (2 k))    (Dvoretzky, Kiefer and Wolfowitz, 1956, with the constant of Massart, 1990)

    The q-quantile of the sample lies between the quantiles q - epsilon and q + epsilon of all contexts (and one place of the sample
    further, 1 / k, for interpolating). At one q it also holds for drawing without replacement, as is done here (Hoeffding, 1963, theorem
    4). So at 5 % it is 0.17 for 64 contexts and 0.021 for 4,096.
    """
    return math.sqrt(math.log(2 / chance) / (2 * kept))


class Mean:
    """A running mean (Welford, 1962) of named tensors, in float64."""

    def __init__(self, count: int = 0, mean: Scores | None = None) -> None:
        self.count, self.mean = count, mean or {}

    def add(self, scores: Mapping[str, Tensor]) -> Scores:
        """Takes another in; how far it was from the mean of those before."""
        if not self.count:
            self.mean = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in scores.items()}
        self.count += 1
        apart = {name: value - self.mean[name] for name, value in scores.items()}
        for name, value in apart.items():
            self.mean[name].add_(value, alpha=1 / self.count)
        return apart

    def merge(self, other: Mean) -> Mean:
        if not (self.count and other.count):
            one = self if self.count else other
            return Mean(one.count, tree.apply(torch.clone, one.mean) if one.count else None)
        share = other.count / (self.count + other.count)
        return Mean(self.count + other.count, tree.apply(lambda a, b: a + (b - a) * share, self.mean, other.mean))

    def without(self, part: Mean) -> Mean:
        """What is left of the mean when a part of its contexts is taken out."""
        count = self.count - part.count
        if not count or not part.count:
            return Mean(count, self.mean if count else None)
        return Mean(count, tree.apply(lambda a, b: a + (a - b) * (part.count / count), self.mean, part.mean))


class Reductions:
    """Running mean, sum of squared deviations and maximum; for a quantile, a sample of the contexts that depends on their numbers only."""

    def __init__(self, by: str | float, seed: int, limit: int | None = None) -> None:
        self.by, self.seed, self.limit = by, seed, limit
        self.average = Mean()
        self.m2: Scores = {}
        self.highest: Scores = {}
        self.sample: dict[int, Scores] = {}  # by a random number each
        self.highest_draw = -1

    @property
    def count(self) -> int:
        return self.average.count

    @property
    def mean(self) -> Scores:
        return self.average.mean

    def add(self, scores: Scores, number: int | None = None) -> None:
        """A context; its number, which no other one may have, decides whether it is in the sample. None: as many as came before."""
        number = self.count if number is None else number
        if not self.count:
            self.m2, self.highest = tree.apply(torch.zeros_like, scores), tree.apply(torch.clone, scores)
        for name, apart in self.average.add(scores).items():
            value = scores[name]
            self.m2[name].add_(apart.square_().to(value.dtype), alpha=1 - 1 / self.count)  # (x - mean before) (x - mean after)
            torch.maximum(self.highest[name], value, out=self.highest[name])
        if self.by != "max":
            self.keep({mixed(self.seed, number): scores})

    def keep(self, more: Mapping[int, Scores]) -> None:
        """Of the sample and more, those of the lowest random numbers."""
        for draw, scores in more.items():
            self.limit = self.limit or contexts_kept(tree.size(scores))
            if len(self.sample) >= self.limit and draw > self.highest_draw:
                continue
            while draw in self.sample:
                draw += 1  # of two contexts of one number both count
            self.sample[draw] = scores
            if len(self.sample) > self.limit:
                del self.sample[max(self.sample)]
            self.highest_draw = max(self.sample)

    def merge(self, other: Reductions) -> Reductions:
        """The reductions of both streams. Neither is changed."""
        joint = Reductions(self.by, self.seed, self.limit)
        joint.average = self.average.merge(other.average)
        joint.keep(self.sample)
        joint.keep(other.sample)
        if not (self.count and other.count):
            one = self if self.count else other
            joint.m2, joint.highest = (tree.apply(torch.clone, part) if one.count else {} for part in (one.m2, one.highest))
            return joint
        factor = self.count * other.count / joint.count
        apart = tree.apply(lambda a, b, m2: (b - a).square().mul(factor).to(m2.dtype), self.mean, other.mean, self.m2)
        joint.m2 = tree.add(tree.add(self.m2, other.m2), apart)
        joint.highest = tree.apply(torch.maximum, self.highest, other.highest)
        return joint

    def local(self) -> Scores:
        if isinstance(self.by, str):
            return self.highest
        chosen = [self.sample[draw] for draw in sorted(self.sample)]
        return {name: quantile(torch.stack([local(scores[name]) for scores in chosen]), float(self.by)) for name in self.mean}

    def state(self) -> State:
        """All that it holds, as JSON values and tensors."""
        parts = {"mean": self.mean, "m2": self.m2, "highest": self.highest}
        parts |= {str(draw): scores for draw, scores in self.sample.items()}
        tensors = {f"{part}/{name}": value for part, scores in parts.items() for name, value in scores.items()}
        return {"count": self.count, "limit": self.limit, "sample": list(self.sample)}, tensors

    def restored(self, state: State) -> Reductions:
        """New ones of these settings, that hold what `state` says."""
        told, tensors = state
        part = parts_of(tensors)
        new = Reductions(self.by, self.seed, whole(told["limit"]) if told["limit"] is not None else None)
        new.average, new.m2, new.highest = Mean(whole(told["count"]), part("mean")), part("m2"), part("highest")
        new.keep({whole(draw): part(str(draw)) for draw in listed(told["sample"])})
        return new


def parts_of(tensors: Mapping[str, Tensor]) -> Callable[[str], Scores]:
    """A part's tensors by the rest of their names: "mean/a" is a in the part mean."""
    return lambda part: {name[len(part) + 1 :]: value for name, value in tensors.items() if name.startswith(f"{part}/")}


def whole(value: object) -> int:
    """A whole number that was read from a file. Raises TypeError for what is none."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{value!r} is not a whole number")
    return value


def listed(value: object) -> list[object]:
    if not isinstance(value, list):
        raise TypeError(f"{value!r} is not a list")
    return value


def quantile(values: Tensor, q: float) -> Tensor:
    """Along the first dimension, interpolated linearly. (torch.quantile refuses more than 16 million elements.)"""
    ordered = values.sort(dim=0).values
    place = q * (len(values) - 1)
    low, high = math.floor(place), math.ceil(place)
    return torch.lerp(ordered[low], ordered[high], place - low)


def magnitude(scores: Mapping[str, Tensor]) -> float:
    """sum |s| over all units of all groups."""
    return absolute_sum(list(scores.values()))


def normalised(scores: Scores, total: float | None = None) -> Scores:
    """s / sum |s|, total, where that is known; all zeros stay zeros."""
    total = (magnitude(scores) if total is None else total) or 1.0
    return tree.apply(lambda value: value / total, scores)
