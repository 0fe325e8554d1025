"""Criteria that look at the weights alone (and at chance, which every other one has to beat)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .. import tree
from ..errors import BadInput
from ..structure import Structure
from ..task import Task, plain
from ..tree import Scores


def l1(task: Task, structure: Structure) -> Iterator[Scores]:
    """The sum of absolute weights (Li et al., 2017, "Pruning Filters for Efficient ConvNets").

    score_u = sum over i in u of |w_i|
    """
    yield structure.reduce(tree.absolute(task.parameters()))


def l2(task: Task, structure: Structure) -> Iterator[Scores]:
    """The Euclidean norm of the weights; for single connections the magnitude |w| (Han et al., 2015).

    score_u = sqrt(sum over i in u of w_i^2)
    """
    yield tree.apply(torch.sqrt, structure.reduce(tree.square(tree.apply(plain, task.parameters()))))


def lp(task: Task, structure: Structure, p: float = 0.5) -> Iterator[Scores]:
    """The sum of weights to the power p, for any norm that is not named.

    score_u = sum over i in u of |w_i|^p

    Below 1 it comes near to counting what is not zero, far above 1 to the largest alone: `functools.partial(lp, p=4)`.
    """
    if not p > 0:
        raise BadInput(f"The power of a norm must be above zero, but p is {p!r}. Try p=0.5 or p=4.")
    yield structure.reduce(tree.apply(lambda value: plain(value).abs() ** p, task.parameters()))


def lamp(task: Task, structure: Structure) -> Iterator[Scores]:
    """The share of a weight in what is left of its layer when all smaller ones are gone (Lee et al., 2021, "LAMP", eq. 3).

    score_u = n_u / sum over v of its group with n_v >= n_u of n_v,    n_u = sum over i in u of w_i^2

    For connections the group is a weight tensor and n = w^2, as in the paper. For other units, the group is the layer and n is the squared
    norm of all that leaves with the unit, so the meaning stays: the relative distortion of the group that removing u brings.
    """
    yield tree.apply(left_share, structure.reduce(tree.square(tree.apply(plain, task.parameters()))))


def left_share(squares: Tensor) -> Tensor:
    """Every number divided by the sum of those that are as large. Equal ones come out equal; zero stays zero."""
    ordered = squares.double().reshape(-1).sort().values
    tails = ordered.flip(0).cumsum(0).flip(0)
    own = tails[torch.searchsorted(ordered, squares.double())]
    return (squares.double() / own.clamp_min(torch.finfo(torch.float64).tiny)).to(squares.dtype)


def random(task: Task, structure: Structure) -> Iterator[Scores]:
    """One uniform number in [0, 1) for every unit, from the task's seed: what any criterion must beat."""
    chance = torch.Generator().manual_seed(task.seed)
    yield {name: torch.rand(group.shape, generator=chance) for name, group in structure.groups.items()}
