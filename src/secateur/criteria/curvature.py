"""Criteria from the second derivative of the loss."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .. import tree
from ..structure import Structure
from ..task import Task, derived, plain
from ..tree import Scores, Tree


def hessian(task: Task, structure: Structure, probes: int = 1) -> Iterator[Scores]:
    """Increase of the loss at a minimum when the unit is removed (LeCun et al., 1990, "Optimal Brain Damage", eq. 5).

    score_u = sum over i in u of w_i^2 H_ii / 2,    diag H = E[z * Hz],  z = +-1   (Hutchinson, 1990; Bekas et al., 2007)

    Each Hz is an exact product by differentiating twice. The error of one probe is that of H's off-diagonal elements (none, where H is
    diagonal); more contexts average it out, and so do more probes: `functools.partial(hessian, probes=8)`.
    """
    squared = tree.square(task.parameters())
    for number, (loss, leaves) in enumerate(task.losses(twice=True)):
        with derived(number):
            diagonal = hessian_diagonal(loss, leaves, probes, task.chance(number))
        del loss, leaves  # the graph of this batch, before the next one's is built
        yield tree.scale(structure.reduce(tree.mul(squared, diagonal)), 0.5)


def hessian_diagonal(loss: Tensor, leaves: Tree, probes: int, chance: torch.Generator) -> Tree:
    """Hutchinson's estimate, the mean of z * Hz over `probes` vectors z of random signs."""
    weights = list(leaves.values())
    gradients = torch.autograd.grad(loss, weights, create_graph=True, allow_unused=True, materialize_grads=True)
    curved = [index for index, gradient in enumerate(gradients) if gradient.requires_grad]  # elsewhere the loss is linear
    total = {name: torch.zeros_like(value, dtype=torch.promote_types(value.dtype, torch.float32)) for name, value in leaves.items()}
    for probe in range(probes if curved else 0):
        signs = [sign(value, chance) for value in weights]
        products = torch.autograd.grad(
            [gradients[index] for index in curved],
            weights,
            [signs[index] for index in curved],
            retain_graph=probe + 1 < probes,
            allow_unused=True,
            materialize_grads=True,
        )
        for value, z, product in zip(total.values(), signs, products):
            value.add_(z * plain(product), alpha=1 / probes)
    return {name: value.detach() for name, value in total.items()}


def sign(like: Tensor, chance: torch.Generator) -> Tensor:
    """A Rademacher vector: +1 or -1 with even odds. Drawn on the CPU, so that every device sees the same ones."""
    return (torch.randint(0, 2, like.shape, generator=chance) * 2 - 1).to(like)
