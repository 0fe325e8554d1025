"""How many units every group keeps, whatever its scores: a least, a most that may leave, and groups that are left alone.

`select` on global scores can empty a layer down to a single unit, which cuts the network nearly in two; `least=0.1` keeps a tenth of each.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase

from .errors import BadInput
from .structure import Group

Limit = float | int | Mapping[str, "float | int"]  # a number of units (int), a share of the group (float), or either by pattern


def floors(groups: Mapping[str, Group], least: Limit = 1, most: Limit = 1.0, keep: Collection[str] = ()) -> dict[str, int]:
    """For every group the number of its units that have to stay.

    least: a whole number of units that stay, or a share of them (0.1; 1.0 is all); by a mapping from names or patterns ("layer1.*"), of
        which the group's own name, or else the first pattern that matches it, holds for it.
    most: the same for what may leave.
    keep: names or patterns of the groups that stay whole.
    Raises BadInput for a pattern that no group matches, naming some that there are.
    """
    patterns = [keep] if isinstance(keep, str) else list(keep)
    for pattern in [*patterns, *(name for limit in (least, most) if isinstance(limit, Mapping) for name in limit)]:
        if not any(matches(name, pattern) for name in groups):
            raise BadInput(f"No group is called {pattern!r}. There are {', '.join(list(groups)[:8])}{', ...' if len(groups) > 8 else ''}.")
    stay = {}
    for name, group in groups.items():
        whole = any(matches(name, pattern) for pattern in patterns)
        kept = number(of_group(name, least, 1), group.size, "least", up=True)
        gone = number(of_group(name, most, 1.0), group.size, "most", up=False)
        stay[name] = group.size if whole else min(group.size, max(group.least, 1, kept, group.size - gone))
    return stay


def matches(name: str, pattern: str) -> bool:
    return name == pattern or fnmatchcase(name, pattern)


def of_group(name: str, limit: Limit, otherwise: float) -> float:
    if not isinstance(limit, Mapping):
        return limit
    return limit[name] if name in limit else next((value for pattern, value in limit.items() if matches(name, pattern)), otherwise)


def number(value: object, size: int, what: str, up: bool) -> int:
    """Of a group of `size` units: a whole number is a number of units, any other a share."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return min(value, size)
    if isinstance(value, float) and 0 <= value <= 1:
        share = value * size
        return math.ceil(share - 1e-9) if up else math.floor(share + 1e-9)
    raise BadInput(f"{what}= is a whole number of units or a share of the group (a fraction 0..1), but it is {value!r}. Try {what}=0.1.")
