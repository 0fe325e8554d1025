"""Adjust what is left to make up for what was removed."""

from .least_squares import least_squares
from .statistics import reestimate, reestimate_plain

__all__ = ["least_squares", "reestimate", "reestimate_plain"]
