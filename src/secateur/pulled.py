"""Where a budget pulls far: a few groups decide its cost, and so they lose nearly all their units while the rest may stay.

Peak activations are those of one place; milliseconds and parameters are often those of a few layers. Scores per cost, or the tightest of
several budgets, then cut there. Nothing forbids that, so it is told.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch import Tensor

from .budget import Target
from .structure import Structure
from .structure.kinds import at_old_size
from .tree import Keep

LEFT, DECIDES = 0.1, 0.25  # the share of its units that a group is nearly gone below; the share of what was saved that it decides


def pulled(structure: Structure, before: Keep, keep: Keep, asked: Iterable[Target]) -> dict[str, dict[str, float]]:
    """Budget -> the groups that are nearly gone because of it -> the share of what it saved that would be lost with all of the group.

    It is because of it if the budget would be missed with a tenth of the group left, and the group decides if that share is 1/4 or more:

    share_g = (C(keep, with g as before) - C(keep)) / (C(before) - C(keep))

    Nothing where more than half of all groups are nearly gone: that is what was asked for. Of connections and blocks nothing is told,
    either: a tensor may well lose nine tenths of them.
    """
    thin = [name for name, mask in keep.items() if mask.sum() < min(int(before[name].sum()), LEFT * mask.numel())]
    if at_old_size(structure.kind) or not thin or 2 * len(thin) > len(keep):
        return {}
    found: dict[str, dict[str, float]] = {}
    for target in asked:
        start, end = (target.cost(structure, units) for units in (before, keep))
        missed = [name for name in thin if not target.met(target.cost(structure, keep | {name: tenth(structure, name, before, keep)}))]
        back = {name: target.cost(structure, keep | {name: before[name]}) - end for name in missed if start > end}
        if far := {name: lost / (start - end) for name, lost in back.items() if lost >= DECIDES * (start - end)}:
            found[target.name] = far
    return found


def tenth(structure: Structure, name: str, before: Keep, keep: Keep) -> Tensor:
    """What is kept of the group, and as many more of its units as make it a tenth, whichever they are."""
    group, mask = structure.groups[name], keep[name].clone()
    more = group.multiple * math.ceil(LEFT * group.size / group.multiple) - int(mask.sum())
    back = (before[name] & ~mask).flatten().nonzero()[:more, 0]
    mask.view(-1)[back] = True
    return mask
