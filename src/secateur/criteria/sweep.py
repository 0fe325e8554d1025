"""The weights of wide layers, input after input: those that follow make up for what leaves, and no output needs an inverse of its own.

    A^-1 = U'U  (U upper triangular),    w_ko <- w_ko - w_jo U_jk / U_jj  for all k > j, where w_jo leaves

U is the same for all outputs, whichever of their inputs leave, so this takes inputs^2 for every output where the exact order (`removal`)
takes inputs^3 (Frantar & Alistarh, 2023, "SparseGPT", algorithm 1). Of so many inputs at a time those connections leave that cost least,

    increase_jo = w_jo^2 / (A^-1)_jj

at their turn. There we differ: SparseGPT takes U_jj^2, what is left of (A^-1)_jj at the turn of j, since there only later inputs make up
for it; here all that stays is fitted afterwards (`repair.least_squares`). And there the same share of every so many inputs leaves; here as
many as do when all are ranked at once. Of n:m those leave of every run that cost least by U_jj^2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..smallest import smallest

AT_ONCE = 32  # inputs whose connections are ranked together


def swept(w: Tensor, inverse: Tensor, number: int) -> Tensor:
    """Which connections stay when so many leave. w: (groups, inputs, outputs), inverse: (groups, inputs, inputs)."""
    w, upper, single = w.clone(), torch.linalg.cholesky(inverse, upper=True), inverse.diagonal(dim1=1, dim2=2)[..., None]
    at_once = smallest((w.square() / single).flatten(), number).view(w.shape)
    keep = torch.ones_like(w, dtype=torch.bool)
    for start in range(0, w.shape[1], AT_ONCE):
        stop = min(start + AT_ONCE, w.shape[1])
        cost = w[:, start:stop].square() / single[:, start:stop]
        keep[:, start:stop] = ~smallest(cost.flatten(), int(at_once[:, start:stop].sum())).view(cost.shape)
        w[:, stop:] -= upper[:, start:stop, stop:].mT @ settled(w, upper, keep, start, stop, stop)
    return keep


def swept_runs(w: Tensor, inverse: Tensor, n: int, m: int) -> Tensor:
    """What each connection costs at its turn, when of every m consecutive inputs all but the n leave that cost most: w_jo^2 / U_jj^2.

    Runs of the largest inputs go first: more make up for them.
    """
    costs = torch.zeros_like(w)
    for group, (mine, one) in enumerate(zip(w, inverse)):  # each has an order of its own
        size = torch.cholesky_inverse(torch.linalg.cholesky(one)).diagonal().view(-1, m).sum(1)
        order = (size.argsort(descending=True, stable=True)[:, None] * m + torch.arange(m, device=w.device)).flatten()
        mine, upper = mine[None, order], torch.linalg.cholesky(one[order][:, order], upper=True)[None]
        kept, pivots = torch.ones_like(mine, dtype=torch.bool), upper[0].diagonal().square()
        step = max(1, AT_ONCE // m) * m
        for start in range(0, len(order), step):
            stop, lost = min(start + step, len(order)), []
            for first in range(start, stop, m):
                run = slice(first, first + m)
                cost = mine[:, run].square() / pivots[run, None]
                costs[group, order[run]] = cost[0]
                kept[:, run] = kept[:, run].scatter(1, cost.argsort(stable=True, dim=1)[:, : m - n], False)
                lost.append(settled(mine, upper, kept, first, first + m, stop))
            mine[:, stop:] -= upper[:, start:stop, stop:].mT @ torch.cat(lost, 1)
    return costs


def settled(w: Tensor, upper: Tensor, keep: Tensor, start: int, stop: int, end: int) -> Tensor:
    """w_j / U_jj of what leaves of the inputs from `start` to `stop`, else 0. Those behind, up to `end`, make up for it, in place."""
    lost = torch.zeros_like(w[:, start:stop])
    for j in range(start, stop):
        lost[:, j - start] = torch.where(keep[:, j], 0, w[:, j] / upper[:, j, j, None])
        w[:, j:end] -= upper[:, j, j:end, None] * lost[:, j - start, None]
    return lost
