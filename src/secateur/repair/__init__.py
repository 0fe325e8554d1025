"""Adjust what is left to make up for what was removed."""

from .least_squares import least_squares
from .moments import match_moments
from .prune_shards import PrunedShards, prune_shards
from .statistics import reestimate, reestimate_plain

__all__ = ["PrunedShards", "least_squares", "match_moments", "prune_shards", "reestimate", "reestimate_plain"]
