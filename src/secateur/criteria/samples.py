"""Criteria from the first derivative of every single sample's loss, at the price of little more than one backward pass for each batch.

A batch's gradient is a mean, in which samples that pull in opposite directions cancel: its square is not the mean of their squares.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from .. import tree
from ..flows import gates, sums
from ..structure import Structure
from ..structure.kinds import of_connections
from ..task import Task
from ..tree import Scores, Tree
from .passes import Counted


def fisher_sample(task: Task, structure: Structure) -> Iterator[Scores]:
    """The Fisher information of every unit's gate (Theis et al., 2018, "Faster gaze prediction with dense networks and Fisher pruning").

    score_u = mean over samples s of (dL_s/dk_u)^2,    dL_s/dk_u = sum over i in u of w_i dL_s/dw_i

    The whole block of a unit: products of different connections of it are in the square. Half of it estimates how much the loss
    increases without the unit, where the model's probabilities are right.
    """
    yield from of_gates(task, structure, 2)


def taylor_sample(task: Task, structure: Structure) -> Iterator[Scores]:
    """How strongly the loss of a sample changes with the unit's gate (Molchanov et al., 2017, "Pruning Convolutional Neural Networks for
    Resource Efficient Inference", section 2.2; Michel et al., 2019, "Are sixteen heads really better than one?", eq. 2, for heads).

    score_u = mean over samples s of |dL_s/dk_u|,    dL_s/dk_u = sum over i in u of w_i dL_s/dw_i

    Samples that want opposite things of a unit do not cancel, as in `taylor` and `snip`, and no few of them outweigh the others, as in
    `fisher_sample`.
    """
    yield from of_gates(task, structure, 1)


def fisher_diagonal(task: Task, structure: Structure) -> Iterator[Scores]:
    """The diagonal of the empirical Fisher information, from every sample on its own (Kirkpatrick et al., 2017; Kunstner et al., 2019).

    score_u = sum over i in u of the mean over samples s of (dL_s/dw_i)^2

    `fisher` squares a batch's mean gradient instead. Of recurrent weights, computed ones, and those that enter several calls, it takes one
    backward pass a sample.
    """
    names = {name for group in structure.groups.values() for name, _ in group.members if name in structure.numel}
    for squares in means(task, names, 2):
        yield structure.reduce(squares)


def of_gates(task: Task, structure: Structure, power: int) -> Iterator[Scores]:
    """mean over samples s of |dL_s/dk_u|^power, per batch. A connection's gate is k_i = 1 in k_i w_i: w_i leaves the sum."""
    if of_connections(structure.kind):
        weights = {name: value.abs() ** power for name, value in task.parameters().items()}
        for squares in means(task, set(structure.groups), power):
            yield structure.reduce({name: value * weights[name] for name, value in squares.items()})
        return
    for gradients in gates(task, structure):
        yield tree.apply(lambda value: (value.abs() ** power).mean(0), gradients)


def means(task: Task, names: set[str], power: int) -> Iterator[Tree]:
    """Per batch, the mean over its samples of |dL_s/dw|^power."""
    data = Counted(task.data)
    for totals in sums(replace(task, data=data), names, power):
        yield tree.scale(totals, 1 / data.samples)
