"""Blocks of a weight tensor as units: a quantity summed over each, spread over each, and laid out by block.

A block is `block[d]` consecutive indices of every dimension d; where a size does not divide, the last block is smaller.

    summed(v)_u = sum over i in u of v_i          spread(k)_i = k_u of the block that i lies in          <v, spread(k)> = <summed(v), k>
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Block = tuple[int, ...]  # its size along every dimension; () for single elements


def blocks_along(shape: Sequence[int], block: Block) -> tuple[int, ...]:
    """How many blocks there are along every dimension."""
    return tuple(-(-size // step) for size, step in zip(shape, block)) if block else tuple(shape)


def summed(values: Tensor, block: Block) -> Tensor:
    """(*batch, *shape) -> (*batch, *blocks)."""
    for dim, step in enumerate(block, values.dim() - len(block)):
        if step > 1:
            whole = padded(values, dim, step)
            values = whole.reshape(*whole.shape[:dim], -1, step, *whole.shape[dim + 1 :]).sum(dim + 1, dtype=values.dtype)
    return values


def spread(units: Tensor, block: Block, shape: Sequence[int]) -> Tensor:
    """One number a block -> a tensor of the weight's shape."""
    for dim, (step, size) in enumerate(zip(block, shape)):
        if step > 1:
            units = units.repeat_interleave(step, dim).narrow(dim, 0, size)
    return units


def cells(values: Tensor, block: Block) -> Tensor:
    """(blocks, elements of one), in one order; where a block is smaller, zeros stand for what it lacks."""
    if not block:
        return values.reshape(-1, 1)
    for dim, step in enumerate(block):
        values = padded(values, dim, step)
    steps = [part for size, step in zip(values.shape, block) for part in (size // step, step)]
    places = list(range(0, 2 * len(block), 2))
    count = blocks_along(values.shape, block)
    return values.reshape(steps).permute(*places, *(place + 1 for place in places)).reshape(torch.Size(count).numel(), -1)


def padded(values: Tensor, dim: int, step: int) -> Tensor:
    """With zeros behind, up to a multiple of `step`."""
    lacking = -values.shape[dim] % step
    if not lacking:
        return values
    more = [*values.shape[:dim], lacking, *values.shape[dim + 1 :]]
    return torch.cat([values, values.new_zeros(more)], dim)
