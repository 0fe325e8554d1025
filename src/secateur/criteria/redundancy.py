"""Criteria that compare the weights of a unit with those of the others of its group: what another one does as well can go."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .. import tree
from ..errors import BadInput
from ..structure import Structure
from ..task import Task
from ..tree import Scores

TOGETHER = 1024  # units that are compared with all others at a time: blocks of connections are many


def fpgm(task: Task, structure: Structure) -> Iterator[Scores]:
    """How far a unit lies from all others: small near the geometric median, which the others can replace (He et al., 2019, "FPGM", eq. 6).

    score_u = mean over the others v of |w_u - w_v|,    w_u: all connections that leave with the unit, those of all units in one order

    (The paper takes the sum, which ranks a group alike.) It compares the units of a group; what groups of different weights have in common
    is little, so `scope="layer"` is the paper's. For connections it is the distance of numbers: large for large and for rare ones alike.
    """
    yield shaped(structure, tree.apply(distances, structure.parts(task.parameters())))


def cosine(task: Task, structure: Structure) -> Iterator[Scores]:
    """What is left of a unit's weights beside their part along the most similar larger unit of its group.

    score_u = |w_u| sqrt(1 - c^2),    c = max over v with |w_v| > |w_u| of cos(w_u, w_v), at least 0

    Of two parallel units the smaller one can go, the larger one stays. Opposite weights are no redundancy. A single connection has no
    direction. (Ayinde & Zurada, 2018, "Building efficient ConvNets using redundant feature pruning", put a threshold on this cosine.)
    """
    if any(group.kind == "connection" for group in structure.groups.values()):
        raise BadInput("A single connection has no direction, so no cosine. Choose fpgm or magnitude, or structure='channels'.")
    yield shaped(structure, tree.apply(apart, structure.parts(task.parameters())))


def distances(vectors: Tensor) -> Tensor:
    """(units, elements) -> the mean of each vector's Euclidean distances to the others."""
    vectors, others = vectors.double(), max(1, len(vectors) - 1)
    if vectors.shape[1] > 1:
        return torch.cat([torch.cdist(some, vectors).sum(1) for some in torch.split(vectors, TOGETHER)]) / others
    # numbers: the i-th smallest x of n is above i others, whose sum is known, and below n - 1 - i
    ordered, order = vectors[:, 0].sort()
    number, below = torch.arange(len(ordered), device=ordered.device), ordered.cumsum(0)
    sums = ordered * (2 * number + 2 - len(ordered)) + below[-1] - 2 * below
    return torch.empty_like(sums).index_copy_(0, order, sums.clamp_min(0) / others)


def apart(vectors: Tensor) -> Tensor:
    """(units, elements) -> the length of each that is not along the most similar larger one."""
    vectors = vectors.double()
    norms = vectors.norm(dim=1)
    units = vectors / norms.clamp_min(torch.finfo(torch.float64).tiny)[:, None]
    place = norms.argsort(stable=True).argsort()  # of two of one length, the later one stays
    parts = zip(torch.split(units, TOGETHER), torch.split(place, TOGETHER))
    cosines = [(some @ units.T).masked_fill(at[:, None] >= place[None, :], 0).clamp(0, 1).amax(1) for some, at in parts]
    return norms * (1 - torch.cat(cosines).square()).clamp_min(0).sqrt()


def shaped(structure: Structure, scores: Scores) -> Scores:
    return {name: value.reshape(structure.groups[name].shape) for name, value in scores.items()}
