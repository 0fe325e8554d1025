"""Carry a plan out on a copy: `mask` zeroes, `shrink` really makes tensors smaller, `hold` keeps zeros zero through training."""

from .hold import held, hold, masks_of
from .mask import mask, masks, with_values
from .shrink import shrink
from .verify import proved, unequal

__all__ = ["held", "hold", "mask", "masks", "masks_of", "proved", "shrink", "unequal", "with_values"]
