"""What flows through every weight, seen while the model runs, and what it says about units: gate gradients of every single sample.

With a gate k_u = 1 on all connections of unit u and L_s the loss of sample s, the gate's gradient is

    dL_s/dk_u = sum over i in u of w_i dL_s/dw_i                                    (Molchanov et al., 2019, eq. 8, before the square)

Per-sample gradients of all weights are not needed for it. Of y = w x + b (a linear layer, a convolution, the affine part of a norm)

    a row o of w:       sum over i of w_oi dL_s/dw_oi = <y_o - b_o, dL_s/dy_o>
    a column i of w:    sum over o of w_oi dL_s/dw_oi = <x_i, (w^T dL_s/dy)_i>
    b_o:                b_o dL_s/db_o                 = b_o sum dL_s/dy_o

summed over the positions of sample s: products of what forward and backward make anyway. The gradient of the weights is not computed.

A parameter that enters an operator without a rule (rules.py), or whose activations are checkpointed, stays in the autograd graph, is found
there, and gets one run and one backward pass for each sample: slow, and as right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .. import tree
from ..structure import Structure
from ..structure.kinds import at_old_size
from ..task import Task, derived, plain
from ..tree import Scores, Tree
from .lines import Tapped
from .samples import Batch, batches_of_samples, gradients_of_every_sample, reached
from .watch import Call, Line, Lines, Read


def gates(task: Task, structure: Structure) -> Iterator[Scores]:
    """Per batch, the gradient of every unit's gate for every sample, with its sign: (samples, *group.shape).

    L_s is the loss of sample s: its share of the batch's loss, times the number of samples, so that the batch's is the mean (samples.py).
    In evaluation mode the model must treat samples independently.
    Raises BadInput where a batch cannot be cut into samples. Where units are connections or blocks of them, the result is
    a gradient of every one for every sample, made by one backward pass each.
    """
    if at_old_size(structure.kind):
        yield from one_by_one(task, structure)
        return
    for lines in per_sample(task, lines_of(structure)):
        yield structure.gather(lines)


def gate_inputs(task: Task, structure: Structure) -> Iterator[Scores]:
    """As `gates`, of a unit's consumers only: x_u dL_s/dx_u, activation times gradient, summed over all weights that read x_u.

    Norms, biases and products element by element read nothing. A weight that no rule knows is taken to read along its dimension 1.
    """
    for lines in per_sample(task, lines_of(structure), inputs_only=True):
        yield structure.gather(lines)


def inputs(task: Task, statistic: Callable[[Tensor], Tensor]) -> Iterator[Lines]:
    """Per batch and without gradients, a statistic of what every weight reads: one number an index of the dimension that reads.

    statistic: (samples, channels, positions...) -> (channels,), given all that the weight reads in this batch.
    Samples are what lies along the first axis. Of a convolution in groups the channels are those within a group, and the groups are
    samples; of a depthwise one they are those of dimension 0, which then has the line. Norms, biases and products element by element read
    nothing, and weights that no rule knows (of recurrent layers, or computed from parameters) have no line.
    A weight that is called several times reads all of that; at other lengths each time, positions are laid side by side, flattened.
    """
    for number, (x, _) in enumerate(task.batches()):
        seen = Read()
        with torch.no_grad():
            task.run_on(x, number, seen.on)
        yield {line: statistic(joined(parts)) for line, parts in seen.read.items()}


def joined(parts: list[Tensor]) -> Tensor:
    """What several calls read, as one: more samples where the shapes agree, more positions where only the samples do, or else both flat."""
    if len({part.shape[1:] for part in parts}) == 1:
        return torch.cat(parts) if len(parts) > 1 else parts[0]
    flat = [part.flatten(2) if part.dim() > 2 else part[:, :, None] for part in parts]
    if len({len(part) for part in flat}) == 1:
        return torch.cat(flat, 2)
    return torch.cat([part.movedim(1, 2).flatten(0, 1) for part in flat])


# per sample -----------------------------------------------------------------------------------------------------------------------------


def lines_of(structure: Structure) -> frozenset[Line]:
    """The dimensions of parameters that have units in this structure."""
    members = {member for group in structure.groups.values() for member in group.members}
    return frozenset(line for line in members - set(structure.divided) if line[0] in structure.numel)


def per_sample(task: Task, wanted: frozenset[Line], inputs_only: bool = False) -> Iterator[Lines]:
    """Per batch, sum over the other dimensions of w dL_s/dw: (samples, size of the dimension)."""
    copied: set[Call] = set()
    for number, batch, samples, axes in batches_of_samples(task):
        tapped = Tapped(wanted, samples, axes, copied, inputs_only)
        loss, leaves = task.loss_on(*batch, number, around=tapped.on)
        if overwritten := tapped.overwritten():
            copied |= overwritten
            tapped = Tapped(wanted, samples, axes, copied, inputs_only)
            loss, leaves = task.loss_on(*batch, number, around=tapped.on)
        rest = reached(loss, leaves) & {name for name, _ in wanted}
        with derived(number):
            torch.autograd.grad(loss, tapped.start, allow_unused=True)
        del loss, leaves  # the graph of this batch, before the next one's is built
        lines = {line: value * samples for line, value in tapped.lines.items() if line[0] not in rest}
        slow = {(name, dim) for name, dim in wanted if name in rest and (dim == 1 or not inputs_only)}
        yield lines | (slowly(task, batch, number, slow) if slow else {})


def slowly(task: Task, batch: Batch, number: int, wanted: set[Line]) -> Lines:
    """The same by one backward pass a sample, for these lines only."""
    found: dict[Line, list[Tensor]] = {line: [] for line in wanted}
    for products in products_of_every_sample(task, batch, number, {name for name, _ in wanted}):
        for (name, dim), values in found.items():
            values.append(products[name].movedim(dim, 0).flatten(1).sum(1) if products[name].dim() > 1 else products[name].view(-1))
    return {line: torch.stack(values) for line, values in found.items()}


def one_by_one(task: Task, structure: Structure) -> Iterator[Scores]:
    for number, batch in enumerate(task.batches()):
        scores = [structure.reduce(products) for products in products_of_every_sample(task, batch, number, set(structure.numel))]
        yield tree.apply(lambda *values: torch.stack(values), *scores)


def products_of_every_sample(task: Task, batch: Batch, number: int, names: set[str]) -> Iterator[Tree]:
    """w dL_s/dw."""
    weights = tree.apply(plain, task.parameters())
    for gradients in gradients_of_every_sample(task, batch, number, names):
        yield {name: gradient * weights[name] for name, gradient in gradients.items()}
