"""Criteria from the first derivative of the loss: one backward pass for each batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from .. import tree
from ..errors import BadInput
from ..flows import gate_inputs, gates, sums
from ..structure import Structure
from ..structure.cut import twin
from ..task import Task, derived, plain
from ..tree import Scores
from .passes import Counted


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


def snip(task: Task, structure: Structure) -> Iterator[Scores]:
    """How strongly the loss changes at once with the unit's gate (Lee et al., 2019, "SNIP", eq. 5 and 6).

    score_u = |dL/dk_u| = |sum over i in u of g_i w_i|

    Of a single connection it is |g w|, as in the paper. It is the root of `taylor`, so in one context both rank alike; over several, the
    mean of magnitudes gives less to the few where the loss is steep than the mean of squares. In the paper one batch of the untrained
    network decides.
    """
    weights = task.parameters()
    for gradients in task.gradients():
        yield tree.absolute(structure.reduce(tree.mul(gradients, weights)))


def gate(task: Task, structure: Structure) -> Iterator[Scores]:
    """How strongly the loss of a sample changes with the unit's gate (Michel et al., 2019, eq. 2, for the heads of attention).

    score_u = mean over samples of |dL_s/dk_u|

    Unlike in `snip`, samples that want opposite things of a unit do not cancel out. Of a single connection it is |w| times the mean of |g|.
    """
    if structure.kind == "weights":
        weights, data = task.parameters(), Counted(task.data)
        for totals in sums(replace(task, data=data), set(structure.groups), power=1):
            yield {name: total * weights[name].abs() / data.samples for name, total in totals.items()}
        return
    for samples in gates(task, structure):
        yield tree.apply(lambda value: value.abs().mean(0), samples)


def gradient_activation(task: Task, structure: Structure) -> Iterator[Scores]:
    """Activation times gradient (Molchanov et al., 2017, eq. 8).

    score_u = mean over samples of |sum over positions of x_u dL_s/dx_u|,    x_u: what the weights that read u are given

    It is the `gate` of the unit's consumers only. The paper divides by the number of positions, and so compares layers.
    """
    if structure.kind != "channels":
        raise BadInput(
            f"gradient_activation looks at the activation of a unit, which one of the structure {structure.kind} does not have. "
            "Choose gate, taylor or snip, or structure='channels'."
        )
    for samples in gate_inputs(task, structure):
        yield tree.apply(lambda value: value.abs().mean(0), samples)


def grasp(task: Task, structure: Structure) -> Iterator[Scores]:
    """How much of the gradient's squared norm is lost when the unit is removed, to first order (Wang et al., 2020, "GraSP", eq. 8).

    |g(w - w_u)|^2 - |g(w)|^2 = -2 w_u . (Hg)_u + ...,    score_u = sum over i in u of w_i (Hg)_i

    The paper's S = -w Hg is the gain, and it removes the weights of largest S; a larger score of ours, -S, means that removing hurts more,
    as everywhere. It may be negative: removing such a unit makes the gradient steeper. A unit that does nothing has zero, so others may go
    before it. Meant for untrained networks; at a minimum there is no gradient to keep.
    """
    weights = task.parameters()
    for number, (loss, leaves) in enumerate(task.losses(twice=True)):
        with derived(number):
            gradients = torch.autograd.grad(loss, list(leaves.values()), create_graph=True, allow_unused=True, materialize_grads=True)
            curved = [gradient for gradient in gradients if gradient.requires_grad]
            fixed = [gradient.detach() for gradient in curved]
            products = (
                torch.autograd.grad(curved, list(leaves.values()), fixed, allow_unused=True, materialize_grads=True)
                if curved  # else the loss is linear
                else [torch.zeros_like(value) for value in leaves.values()]
            )
        curvatures = {name: plain(product) for name, product in zip(leaves, products)}
        del loss, leaves, gradients, curved, products  # the graph of this batch, before the next one's is built
        yield structure.reduce(tree.mul(curvatures, weights))


def movement(task: Task, structure: Structure, rate: float = 0.01) -> Iterator[Scores]:
    """Whether training drives the unit's weights away from zero, one score for each step (Sanh et al., 2020, "Movement pruning", eq. 3).

    score_u = -sum over i in u of g_i w_i,    w <- w - rate g after every batch, on a copy

    A step of descent by -g that has the sign of w makes it larger. The paper sums over the steps of a training: collect those of yours with
    `Collector(structure, "movement")` and its `step(model)`; here plain descent on the task's batches, once through, takes their place.
    """
    copy = twin(task.model, lambda _, value: value.clone())
    moving = replace(task, model=copy)
    weights = moving.parameters()  # they share their storage with the copy's
    for gradients in moving.gradients():
        yield tree.scale(structure.reduce(tree.mul(gradients, weights)), -1)
        for name, value in weights.items():
            value.sub_(gradients[name].to(value.dtype), alpha=rate)


STEPS: dict[str, Callable[[Scores], Scores]] = {  # what a training step adds, from its sum of g w
    "taylor": tree.square,
    "snip": tree.absolute,
    "movement": lambda terms: tree.scale(terms, -1),
}


IN_ORDER = (movement,)  # criteria whose scores of a batch depend on the batches before: they cannot be shared, or begun in the middle


def fisher(task: Task, structure: Structure) -> Iterator[Scores]:
    """The sum of squared gradients: the diagonal of the empirical Fisher information (Kirkpatrick et al., 2017).

    score_u = sum over i in u of g_i^2

    g is the gradient of a batch's mean loss, so the diagonal is the exact one where every sample is its own context. It tells how sensitive
    the loss is to the weights, not how far a removal moves them: for single connections, which `taylor` weighs by w_i^2, it ranks poorly.
    """
    for gradients in task.gradients():
        yield structure.reduce(tree.square(gradients))
