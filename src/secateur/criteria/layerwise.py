"""Optimal Brain Surgeon layer by layer: what a unit's removal does to the outputs of the weights that read it, when they make up for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..contexts import sliceable
from ..errors import BadInput
from ..flows.reading import Reading, Readings, matrix_of, weight_of
from ..flows.rules import Use
from ..flows.watch import Call
from ..structure import Structure
from ..task import Task, derived, plain
from ..tree import Scores, Tree

MEMORY = 2**27  # bytes of inverses that are updated at a time
SHRINK = 0.75  # inverses are made smaller when so much of them is left


def exact_obs(task: Task, structure: Structure, damping: float = 1e-2) -> Iterator[Scores]:
    """Increase of the loss when the unit goes after all that matter less, and what is left of the weights that read it makes up for both.

    score_u = 1/2 sum over outputs o of c_o w_uo' [(A^-1)_uu]^-1 w_uo,    c_o = E[g_o^2]    (of a connection: c_o w^2 / (A^-1)_ii / 2)

    A: sum over positions of u u' per sample, of what the weight reads, g: the gradient of the loss by what it makes. After each removal,
    W <- W - A^-1_:u [(A^-1)_uu]^-1 W_u and A^-1 likewise, exactly (Frantar & Alistarh, 2022, "Optimal brain compression", eq. 3 and 4;
    of units: Kurtic et al., 2023, "ZipLM", eq. 3 and 4). So scores are increases in the order of removal, never falling: connections go
    output by output, units group by group, each over all weights that read it, however many. The gradient is the loss's, so that outputs
    that the loss does not feel may change. `repair="least-squares"` makes the change of the weights that the score counts on.
    A weight of a recurrent layer shows no input: what such weights read of a unit is not in its score.
    damping: added to A, in its mean eigenvalues. Yields once, for all samples, each of which costs a forward and a backward pass; the order
    costs inputs^3 / 3 for every output and weight for connections. Raises BadInput where nothing that is seen reads a unit.
    """
    single = structure.kind == "weights"
    read = {name for name in structure.groups} if single else {name for group in structure.groups.values() for name, _ in group.members}
    layers = seen(task, read, damping)
    yield of_connections(layers, structure) if single else of_units(layers, structure)


@dataclass
class Layer:
    """A weight (groups, inputs, outputs), times sqrt(c / 2); of what it reads A^-1; what it is like as a parameter."""

    reading: Reading
    w: Tensor
    inverse: Tensor
    like: Tensor


class Felt(Readings):
    """Sums over positions: of what each call reads, u u'; of the gradient of what it makes, the squares, once that comes back."""

    def __init__(self, wanted: dict[str, set[int] | None]) -> None:
        super().__init__(wanted)
        self.samples = 0
        self.rows: Counter[Call] = Counter()
        self.gram: dict[Call, Tensor] = {}
        self.squares: dict[Call, Tensor] = {}

    def meets(self, use: Use, call: Call, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        before = len(self.pending)
        y = super().meets(use, call, func, args, kwargs)
        if len(self.pending) > before and y.requires_grad:
            made = self.pending.pop()
            with torch.no_grad():
                u = plain(made.read)
                add(self.gram, call, (u.mT @ u).double())
            self.rows[call] += u.shape[1]
            y.register_hook(lambda g: add(self.squares, call, made.rows(plain(g) * self.samples).double().square().sum(1, keepdim=True)))
        return y


def add(sums: dict[Call, Tensor], call: Call, value: Tensor) -> None:
    sums[call] = sums[call] + value if call in sums else value


def seen(task: Task, names: set[str], damping: float) -> list[Layer]:
    """The layers that read, from one pass over the data."""
    felt, total = Felt(dict.fromkeys(names)), 0
    for number, batch in enumerate(task.batches()):
        felt.samples = sliceable(batch)
        total += felt.samples
        felt.calls.clear()
        loss, leaves = task.loss_on(*batch, number, around=felt.on)
        with derived(number):
            torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        del loss
    weights, found = task.parameters(), []
    for call, squares in felt.squares.items():
        reading, a = felt.found[call], felt.gram[call] / total
        size = a.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
        damped = a + damping * torch.where(size > 0, size, 1) * torch.eye(a.shape[1], dtype=a.dtype, device=a.device)
        weight = weights[reading.weight]
        w = matrix_of(weight.double(), reading) * (squares / felt.rows[call] / 2).sqrt()
        found.append(Layer(reading, w, torch.cholesky_inverse(torch.linalg.cholesky(damped)), weight))
    return found


def of_connections(layers: list[Layer], structure: Structure) -> Scores:
    scores: Tree = {}
    for layer in layers:
        name = layer.reading.weight
        groups, inputs, outputs = layer.w.shape
        some = max(1, MEMORY // (8 * inputs * inputs))
        lines = layer.w.mT.reshape(-1, inputs)
        group = torch.arange(groups, device=lines.device).repeat_interleave(outputs)
        order = [in_order(part, layer.inverse[which]) for part, which in zip(torch.split(lines, some), torch.split(group, some))]
        found = weight_of(torch.cat(order).view(groups, outputs, inputs).mT, layer.like, layer.reading)
        scores[name] = scores[name] + found if name in scores else found
    if missing := structure.groups.keys() - scores.keys():
        raise BadInput(f"exact_obs does not see what {min(missing)} reads (it is no product, or not used). Choose obs, fisher or taylor.")
    return {name: scores[name] for name in structure.groups}


def in_order(w: Tensor, inverse: Tensor) -> Tensor:
    """Increases w_i^2 / (A^-1)_ii, as each row of w loses one element after the other. w: (rows, n), inverse: (rows, n, n)."""
    w, inverse = w.clone(), inverse.clone()
    scores, worst = torch.zeros_like(w), w.new_zeros(len(w))
    place = torch.arange(w.shape[1], device=w.device).expand(w.shape)  # where what is left was
    row = torch.arange(len(w), device=w.device)
    gone = torch.zeros(w.shape, dtype=torch.bool, device=w.device)
    for _ in range(scores.shape[1]):
        if w.shape[1] - gone[0].sum() < SHRINK * w.shape[1]:
            left = (~gone).nonzero()[:, 1].view(len(w), -1)
            w, place, gone = (value.gather(1, left) for value in (w, place, gone))
            inverse = inverse[row[:, None, None], left[:, :, None], left[:, None, :]]
        diagonal = inverse.diagonal(dim1=1, dim2=2)
        increase = torch.where(gone, torch.inf, w.square() / diagonal)
        least, at = increase.min(1)
        worst = torch.maximum(worst, least)
        scores[row, place[row, at]] = worst
        gone[row, at] = True
        column = inverse[row, :, at]
        pivot = column[row, at]
        w -= column * (w[row, at] / pivot)[:, None]
        w[row, at] = 0
        inverse.baddbmm_(column[:, :, None], (column / pivot[:, None])[:, None], alpha=-1)
    return scores


def of_units(layers: list[Layer], structure: Structure) -> Scores:
    """Greedily, group by group."""
    scores: Scores = {}
    lines = [rows_of(layer, structure) for layer in layers]
    for name, group in structure.groups.items():
        mine = [(layer, rows[name]) for layer, rows in zip(layers, lines) if name in rows]
        if not mine:
            raise BadInput(f"exact_obs sees no weight that reads the units of {name}. Choose obs, fisher or taylor.")
        found = [(layer.w.clone(), layer.inverse.clone(), rows) for layer, rows in mine]
        score, left, worst = torch.zeros(group.size, dtype=torch.float64), torch.ones(group.size, dtype=torch.bool), 0.0
        for _ in range(group.size):
            increase = sum((increases(*one) for one in found), torch.zeros(()))
            at = int(torch.where(left.to(increase.device), increase, torch.inf).argmin())
            worst = max(worst, float(increase[at]))
            score[at], left[at] = worst, False
            for one in found:
                remove(*one, unit=at)
        scores[name] = score.view(group.shape)
    return scores


def rows_of(layer: Layer, structure: Structure) -> dict[str, Tensor]:
    """Group -> (units, rows of the weight's matrix that read the unit), for the groups that it reads."""
    line = layer.reading.weight, layer.reading.reads
    groups = [name for name, group in structure.groups.items() if line in group.members]
    if not groups:
        return {}
    size = layer.like.shape[line[1]]
    index = torch.arange(size).view([-1 if dim == line[1] else 1 for dim in range(layer.like.dim())]).expand(layer.like.shape)
    reads = matrix_of(index, layer.reading)[0, :, 0]
    within = structure.gather({line: torch.eye(size)})
    return {name: within[name].view(size, -1)[reads].T.nonzero()[:, 1].view(structure.groups[name].size, -1) for name in groups}


def increases(w: Tensor, inverse: Tensor, rows: Tensor) -> Tensor:
    """w_u' [(A^-1)_uu]^-1 w_u of every unit, over all outputs."""
    each = w[:, rows]
    return (each * torch.linalg.solve(inverse[:, rows[:, :, None], rows[:, None, :]], each)).sum((0, 2, 3))


def remove(w: Tensor, inverse: Tensor, rows: Tensor, unit: int) -> None:
    """Make up for this unit, in place. It stands alone afterwards: its part of the inverse is the identity, its weights are zero."""
    mine = rows[unit]
    across = torch.linalg.solve(inverse[:, mine[:, None], mine], inverse[:, mine])  # [(A^-1)_uu]^-1 A^-1_u:
    w -= across.mT @ w[:, mine]
    inverse -= inverse[:, mine].mT @ across
    w[:, mine], inverse[:, mine], inverse[:, :, mine] = 0, 0, 0
    inverse[:, mine, mine] = 1
