"""What stays where the structure itself says how much: of every run of units the best, whatever else there is."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from .structure import Group
from .structure.n_of_m import best_of
from .tree import Keep, Scores


def best_of_runs(ranking: Scores, keep: Keep, groups: Mapping[str, Group], stay: Mapping[str, int]) -> Keep:
    """Of what is kept the n best of every m. ranking: a flat vector a group, of the units that are still there.

    Groups all of whose units have to stay lose none.
    """
    kept = {}
    for name, mask in keep.items():
        group, values = groups[name], ranking[name]
        if group.run is None or stay[name] == group.size:
            kept[name] = mask.clone(memory_format=torch.contiguous_format)
            continue
        whole = torch.full(group.shape, -math.inf, dtype=values.dtype if values.is_floating_point() else torch.float64)
        whole[mask] = values.to(whole.dtype)
        kept[name] = best_of(whole, group.run) & mask
    return kept
