"""Criteria from the second derivative of the loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .. import tree
from ..errors import BadInput
from ..structure import Structure
from ..task import Task, derived, plain
from ..tree import Scores, Tree

COLUMNS = 10_000  # weights up to which the exact diagonal is computed


def hessian(task: Task, structure: Structure, probes: int = 1) -> Iterator[Scores]:
    """Increase of the loss at a minimum when the unit is removed (LeCun et al., 1990, "Optimal Brain Damage", eq. 5).

    score_u = sum over i in u of w_i^2 H_ii / 2,    diag H = E[z * Hz],  z = +-1   (Hutchinson, 1990; Bekas et al., 2007)

    Each Hz is an exact product by differentiating twice. The error of one probe is that of H's off-diagonal elements (none, where H is
    diagonal); more contexts average it out, and so do more probes: `functools.partial(hessian, probes=8)`.
    """
    squared = tree.square(tree.apply(plain, task.parameters()))
    for number, (loss, leaves) in enumerate(task.losses(twice=True)):
        with derived(number):
            diagonal = hessian_diagonal(loss, leaves, probes, task.chance(number))
        del loss, leaves  # the graph of this batch, before the next one's is built
        yield tree.scale(structure.reduce(tree.mul(squared, diagonal)), 0.5)


def hutchpp(task: Task, structure: Structure, probes: int = 6) -> Iterator[Scores]:
    """`hessian` with a third of its products spent on the directions of large curvature, whose part of the diagonal is then exact.

    Q = orthonormal basis of H S,  S random signs
    diag H = diag(Q Q'H) + E[z * (I - Q Q') H z]

    (Hutch++, Meyer et al., 2021, for the trace; Diag++, Baston & Nakatsukasa, 2022, for the diagonal.) Takes `probes` products with H, a
    third for each of H S, H Q and H z, and memory for 2/3 as many copies of the weights. Exact where the rank of H is at most that third.
    """
    if probes < 3:
        raise BadInput(f"Hutch++ spends its products on three things, so it needs 3 or more, but probes is {probes!r}. Try probes=6.")
    squared = tree.square(tree.apply(plain, task.parameters()))
    for number, (loss, leaves) in enumerate(task.losses(twice=True)):
        with derived(number):
            product, chance = products(loss, leaves), task.chance(number)
            like = plain(tree.flat(leaves))
            sketch = torch.stack([product(sign(like, chance)) for _ in range(probes // 3)], 1)
            basis, _ = torch.linalg.qr(sketch)
            basis = basis * (sketch.norm() > 0)  # where the loss is linear, there is no direction
            diagonal = sum((q * product(q) for q in basis.T), torch.zeros_like(like))
            for _ in range(rest := probes - 2 * (probes // 3)):
                z = sign(like, chance)
                curved = product(z)
                diagonal = diagonal + z * (curved - basis @ (basis.T @ curved)) / rest
        del loss, leaves, product
        yield tree.scale(structure.reduce(tree.mul(squared, tree.unflat(diagonal, squared))), 0.5)


def exact_hessian(task: Task, structure: Structure) -> Iterator[Scores]:
    """`hessian` without chance: column by column, for small networks.

    score_u = sum over i in u of w_i^2 H_ii / 2,    H_ii = (H e_i)_i

    It costs a backward pass for each weight. Raises BadInput for more than 10,000 of them.
    """
    squared = tree.square(tree.apply(plain, task.parameters()))
    if (size := tree.size(squared)) > COLUMNS:
        raise BadInput(
            f"The exact diagonal of the Hessian takes a backward pass for each weight, and these are {size:,}: more than {COLUMNS:,}. "
            "Choose hessian or hutch++, which estimate it."
        )
    for number, (loss, leaves) in enumerate(task.losses(twice=True)):
        with derived(number):
            product = products(loss, leaves)
            diagonal = torch.stack([product(unit)[place] for place, unit in enumerate(columns(plain(tree.flat(leaves))))])
        del loss, leaves, product
        yield tree.scale(structure.reduce(tree.mul(squared, tree.unflat(diagonal, squared))), 0.5)


def products(loss: Tensor, leaves: Tree) -> Callable[[Tensor], Tensor]:
    """v -> Hv on flat vectors, exact, by differentiating twice; in float32 at least."""
    weights = list(leaves.values())
    gradients = torch.autograd.grad(loss, weights, create_graph=True, allow_unused=True, materialize_grads=True)
    curved = {name: gradient for name, gradient in zip(leaves, gradients) if gradient.requires_grad}  # elsewhere the loss is linear

    def product(vector: Tensor) -> Tensor:
        along = tree.unflat(vector, leaves)
        if not curved:
            return torch.zeros_like(vector)
        factors = [along[name].to(gradient) for name, gradient in curved.items()]
        rows = torch.autograd.grad(list(curved.values()), weights, factors, retain_graph=True, allow_unused=True, materialize_grads=True)
        return torch.cat([plain(row).reshape(-1) for row in rows]).to(vector)

    return product


def columns(like: Tensor) -> Iterator[Tensor]:
    """The unit vectors, one after the other."""
    for place in range(len(like)):
        unit = torch.zeros_like(like)
        unit[place] = 1
        yield unit


# H z as the gradient of z' dL/dw, made in forward mode, would take three quarters of the time. But there torch (2.13) is silently wrong: of
# layer_norm, differentiated once forward and once back, it loses a part of the second derivative.
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
