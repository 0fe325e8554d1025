"""In which order the units of a plan left, one by one or in blocks, where that stopped, and who would have been next."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .explanation import Other
from .leaving import Coupled
from .path import blocks
from .plan import Plan
from .select import EACH
from .tree import Scores

INSTEAD = 5  # other units that are told


@dataclass(frozen=True)
class Leaves:
    """How a group's units left: `block` at a time, by the score in `marks`, their block's mean; places: blocks, the lowest first.

    stay: so many of them had to stay.
    """

    marks: Tensor
    stay: int
    block: int = 1
    places: tuple[Tensor, ...] = ()


def leaves(values: Tensor, plan: Plan, coupled: Coupled | None) -> Leaves:
    """Of a group's scores as the scope made them, as `path.blocks` orders them."""
    asked = plan.made.get("multiple", 1)
    size = coupled.block if coupled else asked if isinstance(asked, int) else 1
    stay = max(1, coupled.stay if coupled else 1)
    there = values.isnan().logical_not().nonzero()[:, 0]
    if size == 1 or len(there) <= size:
        return Leaves(values, stay, size, (there,) if size > 1 else ())
    block, _ = blocks(values[there], size)
    marks, places = values.double().clone(), []
    for number in range(int(block.max()) + 1):
        chosen = there[block == number]
        marks[chosen] = values[chosen].double().mean()
        places.append(chosen[values[chosen].argsort(stable=True)])
    return Leaves(marks, stay, size, tuple(places))


def blocks_known(plan: Plan, left: Mapping[str, Leaves]) -> bool:
    """Which units left together is not known where an earlier plan had removed some that are not told."""
    told = any(each.marks.isnan().any() for each in left.values())
    return not plan.made.get("within") or told or all(each.block == 1 for each in left.values())


def cut_of(plan: Plan, marks: Scores) -> float | None:
    """The score at which the plan stopped: its own, or the last that left these groups."""
    if plan.made.get("scope") != EACH and "cut" in plan.made:
        cut = plan.made["cut"]
        return float(cut) if isinstance(cut, (int, float)) else None
    gone = [values[~flat(plan.keep[name])] for name, values in marks.items()]
    return max((float(values.max()) for values in gone if len(values)), default=None)


def queue(plan: Plan, left: Mapping[str, Leaves], cut: float | None) -> list[Other]:
    """The units (or blocks) that stay, in the order in which they would go; of a group none of those that have to stay."""
    waiting: list[tuple[float, str, tuple[int, ...]]] = []
    for name, each in left.items():
        kept = flat(plan.keep[name]).nonzero()[:, 0]
        free = len(kept) - each.stay
        if each.block > 1:
            stays = [places for places in each.places if bool(flat(plan.keep[name])[places[0]])]
            some = stays[: max(0, len(stays) - math.ceil(each.stay / each.block))][: INSTEAD + 1]
            waiting += [(float(each.marks[places[0]]), name, tuple(places.tolist())) for places in some]
        elif free > 0:
            values = each.marks[kept]
            near = (values <= values.kthvalue(count := min(free, INSTEAD + 1)).values).nonzero()[:, 0]
            first = near[values[near].argsort(stable=True)[:count]]  # of equals, those that stand before
            waiting += [(float(values[index]), name, (int(kept[index]),)) for index in first.tolist()]
    told = []
    for value, name, places in sorted(waiting, key=lambda one: one[0])[: INSTEAD + 1]:
        units = tuple(f"{name}:{position(place, plan.keep[name])}" for place in places)
        told.append(Other(units[0], value, value / cut if cut is not None and cut > 0 else None, units if len(units) > 1 else ()))
    return told


def position(place: int, mask: Tensor) -> str:
    return ",".join(str(int(part)) for part in torch.unravel_index(torch.tensor(place), mask.shape))


def flat(values: Tensor) -> Tensor:
    return values.detach().cpu().flatten()
