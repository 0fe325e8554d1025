"""The weights of wide layers, input after input: those that follow make up for what leaves, and no output needs an inverse of its own.

    eps_jo = w_jo^2 / U_jj^2,    A^-1 = U'U  (U upper triangular),    w_ko <- w_ko - w_jo U_jk / U_jj  for all k > j, where w_jo leaves

U_jj^2 is what is left of (A^-1)_jj once all inputs before j are settled, whether they left or not: that is the same for all outputs, so
one factor serves them all, at inputs^2 for every output instead of inputs^3 (Frantar & Alistarh, 2023, "SparseGPT", algorithm 1).
Of every 128 inputs the same share leaves, over all outputs; of n:m, the best n of each run stay. What stays should be fitted afterwards
(`repair.least_squares`), which is exact where the sweep is not: an input that was settled makes up for no later one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..smallest import smallest

AT_ONCE = 128  # inputs whose connections are ranked together


def swept(w: Tensor, inverse: Tensor, number: int) -> Tensor:
    """Which connections stay when so many leave. w: (groups, inputs, outputs), inverse: (groups, inputs, inputs)."""
    w, keep, inputs = w.clone(), torch.ones_like(w, dtype=torch.bool), w.shape[1]
    upper = torch.linalg.cholesky(inverse, upper=True)
    for start in range(0, inputs, AT_ONCE):
        stop = min(start + AT_ONCE, inputs)
        cost = (w[:, start:stop] / pivots(upper)[:, start:stop]).square()
        leave = number * stop // inputs - number * start // inputs
        keep[:, start:stop] = ~smallest(cost.flatten(), leave).view(cost.shape)
        w[:, stop:] -= upper[:, start:stop, stop:].mT @ settled(w, upper, keep, start, stop, stop)
    return keep


def swept_runs(w: Tensor, inverse: Tensor, n: int, m: int) -> Tensor:
    """Which connections stay when n of every m consecutive inputs do. Runs of the largest inputs go first: more make up for them."""
    keep = torch.ones_like(w, dtype=torch.bool)
    for group, (mine, one) in enumerate(zip(w, inverse)):  # each has an order of its own
        size = torch.cholesky_inverse(torch.linalg.cholesky(one)).diagonal().view(-1, m).sum(1)
        order = (size.argsort(descending=True, stable=True)[:, None] * m + torch.arange(m, device=w.device)).flatten()
        mine, upper = mine[None, order], torch.linalg.cholesky(one[order][:, order], upper=True)[None]
        kept = torch.ones_like(mine, dtype=torch.bool)
        step = max(1, AT_ONCE // m) * m
        for start in range(0, len(order), step):
            stop, lost = min(start + step, len(order)), []
            for first in range(start, stop, m):
                run = slice(first, first + m)
                gone = (mine[:, run] / pivots(upper)[:, run]).square().argsort(stable=True, dim=1)[:, : m - n]
                kept[:, run] = torch.ones_like(kept[:, run]).scatter(1, gone, False)
                lost.append(settled(mine, upper, kept, first, first + m, stop))
            mine[:, stop:] -= upper[:, start:stop, stop:].mT @ torch.cat(lost, 1)
        keep[group, order] = kept[0]
    return keep


def pivots(upper: Tensor) -> Tensor:
    """U_jj, (groups, inputs, 1)."""
    return upper.diagonal(dim1=1, dim2=2)[..., None]


def settled(w: Tensor, upper: Tensor, keep: Tensor, start: int, stop: int, end: int) -> Tensor:
    """w_j / U_jj of what leaves of the inputs from `start` to `stop`, else 0. Those behind, up to `end`, make up for it, in place."""
    lost = torch.zeros_like(w[:, start:stop])
    for j in range(start, stop):
        lost[:, j - start] = torch.where(keep[:, j], 0, w[:, j] / upper[:, j, j, None])
        w[:, j:end] -= upper[:, j, j:end, None] * lost[:, j - start, None]
    return lost
