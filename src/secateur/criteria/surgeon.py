"""Optimal Brain Surgeon: what the removal of a unit costs when all that is left makes up for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from .. import tree
from ..contexts import by_sample
from ..errors import BadInput
from ..stream import Stream
from ..structure import Structure
from ..task import Task
from ..tree import Scores, Tree

TOGETHER = 16  # gradients of samples that are added at a time
ELEMENTS = 1 << 24  # of the parts of blocks that are solved at a time


def obs(task: Task, structure: Structure, block: int = 64, damping: float = 1e-5) -> Iterator[Scores]:
    """Increase of the loss when the unit is removed and the other weights of its blocks are adjusted (Hassibi & Stork, 1992, eq. 5).

    score_u = w_u' [(F^-1)_uu]^-1 w_u / 2,    of a single connection w_i^2 / (2 (F^-1)_ii)
    F = damping I + 1/N sum over samples of g g',    in blocks of `block` consecutive weights of a parameter

    F, the empirical Fisher, stands for the Hessian, as in WoodFisher (Singh & Alistarh, 2020, eq. 7 and 13). As F is of blocks, the score
    of a unit that lies in several is exactly the sum over the blocks of what it has there. Where a unit fills a block, nothing is left in
    it to make up for the unit, and its part is w' F w / 2. Memory is a few times `block` copies of the weights, in float64. Yields once,
    for all samples, each of which costs a backward pass.
    """
    if block < 1 or not damping > 0:
        raise BadInput(f"OBS needs a block of 1 or more and a damping above zero, but they are {block!r} and {damping!r}.")
    weights = task.parameters()
    inverse = inverse_fisher(task, block, damping)
    numbers = tree.unflat(torch.arange(1, 1 + tree.size(weights), device=tree.flat(weights).device), weights)  # 0: none
    at, first = [], 0  # where each weight lies among the blocks, the last of every parameter filled up
    for value in weights.values():
        at.append(first + torch.arange(value.numel(), device=value.device))
        first += -(-value.numel() // block) * block
    places, values = torch.cat(at), tree.flat(weights).double()
    yield {
        name: saliency(indices, places, values, inverse).reshape(structure.groups[name].shape)
        for name, indices in structure.parts(numbers).items()
    }


def inverse_fisher(task: Task, block: int, damping: float) -> Tensor:
    """(blocks, block, block): the inverse of the damped Fisher.

    The paper updates the inverse for each sample (Woodbury, eq. 11). Blocks are small enough to be summed first and inverted once.
    """
    fisher = torch.zeros(0)
    waiting: list[Tensor] = []
    samples = 0

    def add() -> None:
        rows = torch.stack(waiting, 1)  # (blocks, samples, block)
        fisher.baddbmm_(rows.mT, rows)
        waiting.clear()

    for gradients in replace(task, data=Stream(task.data, by_sample)).gradients():
        waiting.append(blocks(gradients, block))
        samples += 1
        if not len(fisher):
            fisher = waiting[0].new_zeros(len(waiting[0]), block, block)
        if len(waiting) == TOGETHER:
            add()
    if waiting:
        add()
    identity = torch.eye(block, dtype=fisher.dtype, device=fisher.device)
    return torch.cholesky_inverse(torch.linalg.cholesky(fisher / samples + damping * identity))


def blocks(values: Tree, block: int) -> Tensor:
    """(blocks, block), each parameter's last one filled up with zeros, in float64."""
    rows = [torch.nn.functional.pad(value.reshape(-1), (0, -value.numel() % block)).view(-1, block) for value in values.values()]
    return torch.cat(rows).double()


def saliency(indices: Tensor, places: Tensor, values: Tensor, inverse: Tensor) -> Tensor:
    """(units, elements), numbers of weights from 1 on and zeros -> w' [(F^-1)_uu]^-1 w / 2 of every unit, summed over its blocks."""
    block = inverse.shape[-1]
    units = torch.arange(len(indices), device=indices.device)[:, None].expand_as(indices)
    there = indices > 0
    unit, index = torch.unique(torch.stack([units[there], indices[there] - 1], 1), dim=0).T  # a weight may lie twice in a unit
    place = places[index]
    pairs, which, count = torch.unique(torch.stack([unit, place // block], 1), dim=0, return_inverse=True, return_counts=True)
    ends = count.cumsum(0)
    nth = torch.arange(len(which), device=which.device) - (ends - count)[which]  # both are in the order of units and places
    scores = torch.zeros(len(indices), dtype=torch.float64, device=indices.device)
    step = max(1, ELEMENTS // int(count.max()) ** 2)
    for low in range(0, len(pairs), step):
        some, last = pairs[low : low + step], min(low + step, len(pairs)) - 1
        mine = slice(int(ends[low] - count[low]), int(ends[last]))
        shape = len(some), int(count[low : last + 1].max())
        rows, columns = which[mine] - low, nth[mine]
        within = torch.zeros(shape, dtype=torch.long, device=indices.device).index_put_((rows, columns), place[mine] % block)
        vector = torch.zeros(shape, dtype=torch.float64, device=indices.device).index_put_((rows, columns), values[index[mine]])
        filled = torch.zeros(shape, dtype=torch.bool, device=indices.device)
        filled[rows, columns] = True
        part = inverse[some[:, 1, None, None], within[:, :, None], within[:, None, :]]
        part = torch.where(filled[:, :, None] & filled[:, None, :], part, torch.eye(shape[1], dtype=part.dtype, device=part.device))
        scores.index_add_(0, some[:, 0], (vector * torch.linalg.solve(part, vector)).sum(1) / 2)
    return scores
