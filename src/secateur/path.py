"""The nested path that all selections of one call lie on: units, or blocks of them, in the order in which they leave."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from .structure import Group
from .tree import Keep, Scores


def removal(
    ranking: Scores, keep: Keep, groups: Mapping[str, Group], multiple: int, stay: Mapping[str, int]
) -> tuple[dict[str, Tensor], Tensor]:
    """The order of removal: for every unit the step at which it leaves (-1: it left earlier), and for every step the score it removes.

    Units that have to stay leave at a step beyond the last.
    """
    parts = [blocks(values, math.lcm(multiple, groups[name].multiple), stay[name]) for name, values in ranking.items()]
    marks = torch.cat([mark for _, mark in parts])
    ordered, order = marks.sort(stable=True)
    small = torch.int32 if len(order) < 2**31 else torch.int64  # the bisection reads all of it again and again
    step = torch.empty(len(order), dtype=small).scatter_(0, order, torch.arange(len(order), dtype=small))
    leaves, start = {}, 0
    for (name, mask), (block, mark) in zip(keep.items(), parts):
        leaves[name] = torch.full(mask.shape, -1, dtype=small)
        leaves[name][mask] = step[start : start + len(mark)][block]
        start += len(mark)
    return leaves, ordered[: int(torch.isfinite(ordered).count_nonzero())]


def blocks(values: Tensor, multiple: int, least: int = 1) -> tuple[Tensor, Tensor]:
    """The block every unit of a group leaves in, and every block's score: its mean, or infinity for those that have to stay.

    Of n units the lowest n % multiple leave first (where there are any), then `multiple` at a time, until the highest `multiple` are left.
    """
    count = len(values)
    if count <= max(multiple, least):
        return torch.zeros(count, dtype=torch.int64), torch.full((1,), math.inf, dtype=values.dtype)
    if multiple == 1:
        marks = values.clone()
        stay = values.argsort(stable=True)[count - least :]
        marks[stay] = math.inf  # an empty layer would cut the network in two
        return torch.arange(count), marks
    order = values.argsort(stable=True)
    block = torch.empty_like(order)
    block[order] = torch.div(torch.arange(count) + -count % multiple, multiple, rounding_mode="floor")
    sizes = block.bincount()
    means = torch.zeros(len(sizes), dtype=torch.float64).index_add_(0, block, values.double()) / sizes
    marks = means.cummax(0).values  # rounding must not turn the order round
    marks[-math.ceil(least / multiple) :] = math.inf
    return block, marks


def kept_after(leaves: Mapping[str, Tensor], steps: int) -> Keep:
    return {name: step >= steps for name, step in leaves.items()}


def first_met(last: int, met: Callable[[int], bool]) -> int:
    """A number of steps at which `met`, one step after one at which not (or none at all): the smallest where costs only fall.

    It is met at `last`.
    """
    low, high = 0, last
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if met(middle) else (middle + 1, high)
    return low
