"""Which connections leave, found by counting: for structures in which each unit is an element of one parameter, however many there are.

There the cost of a plan depends on nothing but how many elements of each parameter are left, so the answer that sorting and bisection give
(`path`) is found by histograms (`smallest`): at which score the budgets are met, and how many scores of each group are lower. Of a group
no more leave than may: min(that number, those that need not stay), its lowest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .budget import Target
from .cost import MEASURES, PRICED, priced, prices
from .errors import BudgetUnreachable
from .smallest import bits_of, descend, float_of, smallest, up_to
from .structure import Structure
from .tree import Keep, Scores


def countable(structure: Structure, targets: Sequence[Target], multiple: int) -> bool:
    """Whether counting gives the answer: connections that leave one by one, under our own costs that are sums over elements."""
    plain = structure.kind == "weights" and multiple == 1 and all(group.multiple == 1 for group in structure.groups.values())
    return plain and all(target.name in ("units", *PRICED) and target.cost is MEASURES[target.name] for target in targets)


def lowest_under(
    ranking: Scores, keep: Keep, structure: Structure, stay: Mapping[str, int], targets: Sequence[Target]
) -> tuple[Keep, float | None]:
    """What is kept once all targets are met, and the last score that left. Raises BudgetUnreachable."""
    names, there = list(ranking), torch.tensor([len(values) for values in ranking.values()])
    most = may_leave(ranking, stay)
    price = {target.name: prices(structure, target.name) for target in targets if target.name in PRICED}

    def value(target: Target, removed: Tensor) -> float:
        if target.name == "units":
            return float((there - removed).sum())
        left = dict(zip(names, (there - removed).tolist()))
        return priced({name: left.get(name, number) for name, number in structure.numel.items()}, price[target.name])

    def enough(removed: Tensor) -> bool:
        return all(target.met(value(target, torch.minimum(removed, most))) for target in targets)

    for target in targets:
        if not target.met(least := value(target, most)):
            raise BudgetUnreachable(target.out_of_reach(least))
    if enough(torch.zeros_like(most)):
        return {name: mask.clone(memory_format=torch.contiguous_format) for name, mask in keep.items()}, None
    bits = bits_of([*ranking.values()])
    found = descend([[values] for values in ranking.values()], enough, bits)
    assert found is not None  # all of them are enough
    first, last = 1, int(found.equal.sum())
    while first < last:
        middle = (first + last) // 2
        first, last = (first, middle) if enough(found.below + in_order(found.equal, middle)) else (middle + 1, last)
    ties, cut = in_order(found.equal, first), float_of(found.key, bits)
    gone = {}
    for name, below, equal, may in zip(names, found.below.tolist(), ties.tolist(), most.tolist()):
        values = ranking[name]
        gone[name] = up_to(values, cut, equal) if below + equal <= may else smallest(values, may)
    return without(keep, gone), cut


def lowest_below(ranking: Scores, keep: Keep, stay: Mapping[str, int], threshold: float) -> tuple[Keep, float | None]:
    """What is kept of scores of at least the threshold, and the last score that left."""
    lower = torch.tensor([int((values < threshold).count_nonzero()) for values in ranking.values()])
    removed = dict(zip(ranking, torch.minimum(lower, may_leave(ranking, stay)).tolist()))
    kept = without(keep, {name: smallest(values, removed[name]) for name, values in ranking.items()})
    gone = [float(values[~kept[name][keep[name]]].max()) for name, values in ranking.items() if removed[name]]
    return kept, max(gone, default=None)


def may_leave(ranking: Scores, stay: Mapping[str, int]) -> Tensor:
    return torch.tensor([max(0, len(values) - stay[name]) for name, values in ranking.items()])


def in_order(equal: Tensor, number: int) -> Tensor:
    """The first `number` of units that are equal, group after group."""
    return torch.minimum(equal, (number - (equal.cumsum(0) - equal)).clamp_min(0))


def without(keep: Keep, gone: Scores) -> Keep:
    """`keep` without these of the units that are still there, each group's in a flat vector."""
    kept = {}
    for name, mask in keep.items():
        stays = gone[name].logical_not_()
        if stays.numel() == mask.numel():
            kept[name] = stays.view(mask.shape)
        else:
            kept[name] = mask.clone()
            kept[name][mask] = stays
    return kept
