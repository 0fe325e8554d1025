"""Which connections of one weight leave, by the sums of products that its fit goes by.

    A = C_uu + lambda I,    W* = s W + A^-1 C_ur,    then what costs least around the optimum W*: Optimal Brain Surgeon is exact there

u: what the weight reads in the pruned model; r: what is missing of the dense model's output (`least_squares`); s: the factor behind it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..budget import ROUNDING
from ..criteria.layerwise import Layer, of_weight
from ..criteria.removal import damped
from ..criteria.sweep import swept, swept_runs
from ..flows.reading import Reading, matrix_of, weight_of
from ..smallest import smallest
from ..structure.n_of_m import best_of
from ..structure.structure import Group, Run
from ..structure.tiles import blocks_along, spread
from .side_by_side import Met

DAMPING = 1e-2  # lambda, in mean eigenvalues of C_uu
EXACT = 2**33  # outputs x inputs^3 up to which the order of removal is exact: about ten seconds of one core


class Asked(NamedTuple):
    """What leaves of every weight. run: of single connections n of every m stay. block: (outputs, inputs) that leave together."""

    run: tuple[int, int] | None = None
    block: tuple[int, int] | None = None

    def group(self, reading: Reading, shape: torch.Size) -> Group:
        """The units of this weight."""
        name, one = reading.weight, ((reading.weight, 0),)
        if self.block is None:
            return Group(name, tuple(shape), "connection", one, run=Run(*self.run, reading.reads) if self.run else None)
        along = dict(zip((1 - reading.reads, reading.reads), self.block))  # of a kernel it is read along dimension 1, too
        block = tuple(min(size, along.get(dim, 1)) for dim, size in enumerate(shape))
        return Group(name, blocks_along(shape, block), "block", one, block=block)


def mask_for(met: Met, weight: Tensor, group: Group, amount: float, shifts: bool) -> Tensor:
    """True where a connection stays.

    amount: the share of units that leaves, at least one of which stays; of n:m it is not looked at.
    shifts: whether there is a bias, so that means do not count.
    """
    sums = met.train + met.held
    uu, ur, _, _ = sums.deviations(shifts)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped(uu, DAMPING)))
    w = matrix_of(weight.detach().double(), met.reading) * met.factor + inverse @ ur
    count = min(math.ceil((amount - ROUNDING) * group.size), group.size - 1)
    if group.run is not None:
        return best_of(weight_of(swept_runs(w, inverse, group.run.n, group.run.m), weight, met.reading), group.run)
    if not group.block and w.numel() * w.shape[1] ** 2 > EXACT:
        return weight_of(swept(w, inverse, count), weight, met.reading)
    scores = of_weight(Layer(met.reading, w, inverse, weight), group)
    return spread(~smallest(scores.flatten(), count).view(group.shape), group.block, weight.shape)
