"""Adjust what is left to make up for what was removed."""

from .statistics import reestimate, reestimate_plain

__all__ = ["reestimate", "reestimate_plain"]
