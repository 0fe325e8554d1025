"""The order in which Optimal Brain Surgeon removes: each time the unit that costs least, when all that is left makes up for it.

    increase_u = w_u' [(A^-1)_uu]^-1 w_u,    w <- w - A^-1_:u [(A^-1)_uu]^-1 w_u,    A^-1 <- A^-1 - A^-1_:u [(A^-1)_uu]^-1 A^-1_u:

(Hassibi & Stork, 1992, eq. 5; of blocks Kurtic et al., 2022, "oBERT", eq. 8 and 9.) What has been removed stands alone afterwards: its
weights are zero, its part of the inverse is the identity.
"""

from __future__ import annotations

import torch
from torch import Tensor

SHRINK = 0.75  # inverses are made smaller when so much of them is left


def in_order(w: Tensor, inverse: Tensor, size: int = 1, stay: tuple[int, int] | None = None) -> Tensor:
    """Increases, in the order of removal never falling, as each problem loses one unit after the other: (problems, units).

    w: (problems, inputs, outputs), inverse: (problems, inputs, inputs). A unit is `size` consecutive inputs. stay: (n, m), of every m
    consecutive units n stay until all others have gone.
    """
    problems, units = len(w), w.shape[1] // size
    w, inverse = w.clone(), inverse.clone()
    scores, worst = w.new_zeros(problems, units), w.new_zeros(problems)
    place = torch.arange(units, device=w.device).expand(problems, units)  # where those that are left were
    gone, all_ = torch.zeros_like(scores, dtype=torch.bool), torch.arange(problems, device=w.device)
    rows = torch.arange(size, device=w.device)
    runs = -(-units // stay[1]) if stay else 1
    lost = torch.zeros(problems, runs, dtype=torch.long, device=w.device)
    for removed in range(units):
        if units - removed < SHRINK * gone.shape[1]:
            left = (~gone).nonzero()[:, 1].view(problems, -1)
            place, gone = place.gather(1, left), gone.gather(1, left)
            left = (left[:, :, None] * size + rows).flatten(1)
            w, inverse = w[all_[:, None], left], inverse[all_[:, None, None], left[:, :, None], left[:, None, :]]
        barred = gone
        if stay is not None and removed < runs * (stay[1] - stay[0]):
            barred = gone | (lost.gather(1, place // stay[1]) == stay[1] - stay[0])
        increase = increases(w, inverse, size).masked_fill(barred, torch.inf)
        least, at = increase.min(1)
        worst = torch.maximum(worst, least)
        scores[all_, place[all_, at]] = worst
        gone[all_, at] = True
        if stay is not None:
            lost[all_, place[all_, at] // stay[1]] += 1
        remove(w, inverse, at[:, None] * size + rows)
    return scores


def increases(w: Tensor, inverse: Tensor, size: int) -> Tensor:
    """Of every unit: (problems, units)."""
    if size == 1:
        return w.square().sum(2) / inverse.diagonal(dim1=1, dim2=2)
    parts = torch.unflatten(w, 1, (-1, size))
    blocks = torch.unflatten(torch.unflatten(inverse, 2, (-1, size)), 1, (-1, size)).diagonal(dim1=1, dim2=3).movedim(-1, 1)
    return (parts * torch.linalg.solve(blocks, parts)).sum((2, 3))


def remove(w: Tensor, inverse: Tensor, rows: Tensor) -> None:
    """Take these inputs, (problems, inputs of a unit), out of each problem, in place."""
    problem = torch.arange(len(w), device=w.device)[:, None]
    across = inverse[problem, rows]
    pivot = across.gather(2, rows[:, None].expand(-1, rows.shape[1], -1))
    share = across / pivot if rows.shape[1] == 1 else torch.linalg.solve(pivot, across)  # [(A^-1)_uu]^-1 A^-1_u:
    w.baddbmm_(share.mT, w[problem, rows], alpha=-1)
    inverse.baddbmm_(across.mT, share, alpha=-1)
    w[problem, rows], inverse[problem, rows] = 0, 0
    inverse.mT[problem, rows] = 0
    inverse[problem, rows, rows] = 1
