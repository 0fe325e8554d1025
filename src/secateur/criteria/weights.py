"""Criteria that look at the weights alone (and at chance, which every other one has to beat)."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from .. import tree
from ..structure import Structure
from ..task import Task
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
    yield tree.apply(torch.sqrt, structure.reduce(tree.square(task.parameters())))


def random(task: Task, structure: Structure) -> Iterator[Scores]:
    """One uniform number in [0, 1) for every unit, from the task's seed: what any criterion must beat."""
    chance = torch.Generator().manual_seed(task.seed)
    yield {name: torch.rand(group.shape, generator=chance) for name, group in structure.groups.items()}
