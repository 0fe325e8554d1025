"""The order in which Optimal Brain Surgeon removes: each time the unit that costs least, when all that is left makes up for it.

    increase_u = w_u' [(A^-1)_uu]^-1 w_u,    w <- w - A^-1_:u [(A^-1)_uu]^-1 w_u,    A^-1 <- A^-1 - A^-1_:u [(A^-1)_uu]^-1 A^-1_u:

(Hassibi & Stork, 1992, eq. 5; of blocks Kurtic et al., 2022, "oBERT", eq. 8 and 9.) What has been removed stands alone afterwards: its
weights are zero, its part of the inverse is the identity.
"""

from __future__ import annotations

import torch
from torch import Tensor

SHRINK = 0.75  # inverses are made smaller when so much of them is left


def damped(a: Tensor, share: float) -> Tensor:
    """A with so many of its mean eigenvalues added along the diagonal (one, where it is zero). a: (..., inputs, inputs)."""
    size = a.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    return a + share * torch.where(size > 0, size, 1) * torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)


def in_order(w: Tensor, inverse: Tensor, size: int = 1, stay: tuple[int, int] | None = None, together: int = 1) -> Tensor:
    """Increases, in the order of removal never falling, as each problem loses one unit after the other: (problems, units).

    w: (problems, inputs, outputs), inverse: (problems, inputs, inputs). A unit is `size` consecutive inputs. stay: (n, m), of every m
    consecutive units n stay until all others have gone. together: so many go at a time, those that cost least one by one; what is left
    makes up for all of them, and they cost what they did before. That takes far less time where there are many units.
    """
    problems, units = len(w), w.shape[1] // size
    w, inverse = w.clone(), inverse.clone()
    scores, worst = w.new_zeros(problems, units), w.new_zeros(problems, 1)
    place = torch.arange(units, device=w.device).expand(problems, units)  # where those that are left were
    gone, problem = torch.zeros_like(scores, dtype=torch.bool), torch.arange(problems, device=w.device)[:, None]
    rows = torch.arange(size, device=w.device)
    removed = 0
    while removed < units:
        if units - removed < SHRINK * gone.shape[1]:
            left = (~gone).nonzero()[:, 1].view(problems, -1)
            place, gone = place.gather(1, left), gone.gather(1, left)
            left = (left[:, :, None] * size + rows).flatten(1)
            w, inverse = w[problem, left], inverse[problem[..., None], left[:, :, None], left[:, None, :]]
        increase = increases(w, inverse, size).masked_fill(gone, torch.inf)
        if stay is not None and removed < units // stay[1] * (stay[1] - stay[0]):
            increase = of_runs(increase, place, units, stay)
        some = min(together, int(increase.isfinite().sum(1).min()))
        least, at = increase.topk(some, largest=False)
        worst = torch.cat([worst, least], 1).cummax(1).values[:, 1:]
        scores[problem, place.gather(1, at)] = worst
        worst = worst[:, -1:]
        gone[problem, at] = True
        removed += some
        remove(w, inverse, (at[:, :, None] * size + rows).flatten(1))
    return scores


def of_runs(increase: Tensor, place: Tensor, units: int, stay: tuple[int, int]) -> Tensor:
    """Infinity for all but the cheapest unit of each run that may still lose one."""
    run, runs = place // stay[1], units // stay[1]
    there = increase.isfinite().long()
    number = torch.zeros(len(run), runs, dtype=torch.long, device=run.device).scatter_add(1, run, there)
    lowest = increase.new_full((len(run), runs), torch.inf).scatter_reduce(1, run, increase, "amin")
    may = (number.gather(1, run) > stay[0]) & (increase == lowest.gather(1, run))
    return increase.masked_fill(~may, torch.inf)


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
