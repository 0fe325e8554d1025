"""Optimal Brain Surgeon layer by layer: what a unit's removal does to the outputs of the weights that read it, when they make up for it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..contexts import sliceable
from ..errors import BadInput
from ..flows.reading import Made, Reading, Readings, matrix_of, rows_of, weight_of
from ..flows.watch import Call
from ..structure import Group, Structure
from ..structure.kinds import at_old_size
from ..task import Task, derived, plain
from ..tree import Scores, Tree
from .removal import damped, in_order, increases, remove
from .sweep import swept_runs
from .unlabelled import Projection, along_signs

MEMORY = 2**25  # bytes of inverses that are updated at a time
EACH = 2**13  # rows of a batch that A is told from, drawn: neighbours say the same
EXACT = 2**34  # outputs x inputs^3 up to which n:m goes in the exact order: some twenty seconds of one core
COARSE = 128  # connections go one by one up to twice so many inputs, else in about so many steps


def exact_obs(task: Task, structure: Structure, damping: float = 1e-2, projection: Projection = along_signs) -> Iterator[Scores]:
    """How far the outputs move when the unit goes after all that matter less, and the weights that read it make up for both.

    score_u = 1/2 sum over outputs o of c_o w_uo' [(A^-1)_uu]^-1 w_uo,    c_o = E[g_o^2]    (of a connection: c_o w^2 / (A^-1)_ii / 2)

    A: sum over positions of u u' per sample, of what the weight reads; g: the gradient, by what it makes, of the model's outputs along
    random signs, so no label is looked at (`projection`: `along_labels` is that of `output_kl`). After each removal, W and A^-1 change
    by what makes up for it, exactly (Frantar & Alistarh, 2022, "Optimal brain compression", eq. 3 and 4; of units: Kurtic et al., 2023,
    "ZipLM", eq. 3 and 4). So scores are increases in the order of removal, never falling: connections go output by output, blocks with
    the outputs that they span, of n:m those within their runs first (in wide layers one sweep over the inputs says what each costs at its
    turn: `sweep`); channels and heads group by group, over all weights that read them.
    `repair="least-squares"` makes the change of the weights that the score counts on.
    A weight of a recurrent layer shows no input: what such weights read of a unit is not in its score.
    damping: added to A, in its mean eigenvalues. Yields once, for all samples, each of which costs a forward and a backward pass; the order
    costs inputs^3 for every output of a weight for connections. Raises BadInput where nothing that is seen reads a unit.
    """
    alone = at_old_size(structure.kind)
    read = set(structure.groups) if alone else {name for group in structure.groups.values() for name, _ in group.members}
    layers = seen(task, read, damping, projection)
    yield of_connections(layers, structure) if alone else of_units(layers, structure)


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
        self.batch = 0
        self.rows: Counter[Call] = Counter()
        self.gram: dict[Call, Tensor] = {}
        self.squares: dict[Call, Tensor] = {}

    def reads(self, made: Made) -> None:
        if not made.out.requires_grad:
            return
        reading, axis, call = made.reading, made.axis, made.reading.call  # the hook holds no tensor of the graph
        with torch.no_grad():
            some = made.drawn(EACH, self.batch)
            u = plain(made.read(some)).double()
            add(self.gram, call, u.mT @ u * (1 if some is None else made.positions / len(some)))
        self.rows[call] += made.out.numel() // made.out.shape[axis]

        def see(gradient: Tensor) -> None:
            add(self.squares, call, rows_of(plain(gradient), reading, axis).double().square().sum(1, keepdim=True))

        made.out.register_hook(see)  # type: ignore[no-untyped-call]


def add(sums: dict[Call, Tensor], call: Call, value: Tensor) -> None:
    sums[call] = sums[call] + value if call in sums else value


def seen(task: Task, names: set[str], damping: float, projection: Projection) -> list[Layer]:
    """The layers that read, from one pass over the data."""
    felt, total, weights = Felt(dict.fromkeys(names)), 0, task.parameters()
    for number, batch in enumerate(task.batches()):
        total += sliceable(batch)
        felt.calls.clear()
        felt.batch = number
        drawn = replace(task, loss=lambda outputs, _, number=number: projection(outputs, task.chance(number)))  # type: ignore[misc]
        value, leaves = drawn.loss_on(*batch, number, around=felt.on)
        with derived(number):
            torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
        del value
    found = []
    for call, squares in felt.squares.items():
        reading, a = felt.found[call], felt.gram[call] / total
        weight = weights[reading.weight]
        w = matrix_of(weight.double(), reading) * (squares / felt.rows[call] / 2).sqrt()
        found.append(Layer(reading, w, torch.cholesky_inverse(torch.linalg.cholesky(damped(a, damping))), weight))
    return found


def of_connections(layers: list[Layer], structure: Structure) -> Scores:
    scores: Tree = {}
    for layer in layers:
        group = structure.groups.get(layer.reading.weight)
        if group is not None:
            found = of_weight(layer, group)
            scores[group.name] = scores[group.name] + found if group.name in scores else found
    if missing := structure.groups.keys() - scores.keys():
        raise BadInput(f"exact_obs does not see what {min(missing)} reads (it is no product, or not used). Choose obs, fisher or taylor.")
    return {name: scores[name] for name in structure.groups}


def of_weight(layer: Layer, group: Group) -> Tensor:
    """Each output loses its connections for itself; blocks of several outputs lose them together."""
    if group.run is not None and layer.w.numel() * layer.w.shape[1] ** 2 > EXACT:
        return weight_of(swept_runs(layer.w, layer.inverse, group.run.n, group.run.m), layer.like, layer.reading)
    block, reads = group.block or (1,) * layer.like.dim(), layer.reading.reads
    wide, high = block[reads], math.prod(block) // block[reads]  # inputs, outputs of a block
    if high > 1 and layer.w.shape[2] % high and len(layer.w) > 1:
        raise BadInput(f"A block of {group.name} spans groups of its convolution. Choose blocks of fewer outputs, or obs.")
    places = math.prod(layer.like.shape[2:])
    w, inverse = (padded(value, 1, places, wide) for value in (layer.w, padded(layer.inverse, 2, places, wide)))
    alone = inverse.diagonal(dim1=1, dim2=2)
    alone += (alone == 0).to(alone.dtype)  # what fills up the last block stands alone
    w = torch.unflatten(padded(w, 2, 1, high), 2, (-1, high)).movedim(2, 1)  # (groups, bundles of outputs, inputs, outputs)
    some = max(1, MEMORY // (8 * w.shape[2] ** 2))
    stay = (group.run.n, group.run.m) if group.run else None
    together = max(1, w.shape[2] // wide // COARSE)
    which = torch.arange(len(w), device=w.device).repeat_interleave(w.shape[1])
    parts = zip(torch.split(w.flatten(0, 1), some), torch.split(which, some))
    found = torch.cat([in_order(part, inverse[index], wide, stay, together) for part, index in parts])
    return weight_of(torch.unflatten(found, 0, w.shape[:2]).mT, torch.empty(group.shape), layer.reading)


def padded(values: Tensor, dim: int, places: int, step: int) -> Tensor:
    """With zeros behind what each place of a kernel has along the dimension, up to a multiple of `step`."""
    parts = torch.unflatten(values, dim, (places, -1))
    lacking = -parts.shape[dim + 1] % step
    more = parts.new_zeros(*parts.shape[: dim + 1], lacking, *parts.shape[dim + 2 :])
    return torch.cat([parts, more], dim + 1).flatten(dim, dim + 1)


def of_units(layers: list[Layer], structure: Structure) -> Scores:
    """Greedily, group by group."""
    scores: Scores = {}
    lines = [units_of(layer, structure) for layer in layers]
    for name, group in structure.groups.items():
        mine = [(layer, rows[name]) for layer, rows in zip(layers, lines) if name in rows]
        if not mine:
            raise BadInput(f"exact_obs sees no weight that reads the units of {name}. Choose obs, fisher or taylor.")
        score, left, worst = torch.zeros(group.size, dtype=torch.float64), torch.ones(group.size, dtype=torch.bool), 0.0
        found = [first(layer, rows) for layer, rows in mine]
        for _ in range(group.size):
            increase = torch.stack([of_first(*one, count=group.size) for one in found]).sum(0).cpu()
            at = int(torch.where(left, increase, torch.inf).argmin())
            worst = max(worst, float(increase[at]))
            score[at], left[at] = worst, False
            for w, inverse, size in found:
                remove(w, inverse, torch.arange(at * size, (at + 1) * size, device=w.device).expand(len(w), -1))
        scores[name] = score.view(group.shape)
    return scores


def units_of(layer: Layer, structure: Structure) -> dict[str, Tensor]:
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


def first(layer: Layer, rows: Tensor) -> tuple[Tensor, Tensor, int]:
    """The layer's weights and inverse with what the units read in front, unit by unit; and how much a unit reads."""
    others = torch.ones(layer.w.shape[1], dtype=torch.bool)
    others[rows] = False
    order = torch.cat([rows.flatten(), others.nonzero().flatten()])
    return layer.w[:, order], layer.inverse[:, order[:, None], order], rows.shape[1]


def of_first(w: Tensor, inverse: Tensor, size: int, count: int) -> Tensor:
    front = slice(0, size * count)
    return increases(w[:, front], inverse[:, front, front], size).sum(0)
