"""Criteria from the first derivative of the loss: one backward pass for each batch."""

from __future__ import annotations

from collections.abc import Iterator

from .. import tree
from ..structure import Structure
from ..task import Task
from ..tree import Scores


def gradient(task: Task, structure: Structure) -> Iterator[Scores]:
    """How steeply the loss depends on the weights. Divided by its sum over all connections (as every context is), it is a share.

    score_u = sum over i in u of |dL/dw_i|
    """
    for gradients in task.gradients():
        yield structure.reduce(tree.absolute(gradients))


def taylor(task: Task, structure: Structure) -> Iterator[Scores]:
    """First-order estimate of the squared change of the loss when the unit is removed (Molchanov et al., 2019, eq. 8).

    score_u = (sum over i in u of g_i w_i)^2
    """
    weights = task.parameters()
    for gradients in task.gradients():
        yield tree.square(structure.reduce(tree.mul(gradients, weights)))


def fisher(task: Task, structure: Structure) -> Iterator[Scores]:
    """The sum of squared gradients: the diagonal of the empirical Fisher information (Kirkpatrick et al., 2017).

    score_u = sum over i in u of g_i^2

    g is the gradient of a batch's mean loss, so the diagonal is the exact one where every sample is its own context. It tells how sensitive
    the loss is to the weights, not how far a removal moves them: for single connections, which `taylor` weighs by w_i^2, it ranks poorly.
    """
    for gradients in task.gradients():
        yield structure.reduce(tree.square(gradients))
