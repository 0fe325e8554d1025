"""Samples within a batch: where they are in what weights read and make, and, where that is no help, each of them alone."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..contexts import layout, sliceable, take
from ..task import Task, derived, plain, split_batch
from ..tree import Tree
from .axes import Axis, sample_axis
from .watch import Call, Probe

Batch = tuple[object, object]


def gradients_of_every_sample(task: Task, batch: Batch, number: int, names: set[str]) -> Iterator[Tree]:
    """dL_s/dw of these parameters, by one run and one backward pass a sample."""
    form = layout(batch)
    for sample in range(sliceable(batch)):
        loss, leaves = task.loss_on(*split_batch(take(batch, torch.tensor([sample]), form)), number)
        chosen = {name: leaves[name] for name in leaves if name in names}
        with derived(number):
            gradients = torch.autograd.grad(loss, list(chosen.values()), allow_unused=True, materialize_grads=True)
        yield {name: plain(gradient) for name, gradient in zip(chosen, gradients)}


def reached(loss: Tensor, leaves: Tree) -> set[str]:
    """The leaves that the graph of the loss ends in."""
    names = {id(value): name for name, value in leaves.items()}
    found, seen, ahead = set(), set(), [loss.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        found.add(names.get(id(getattr(node, "variable", None))))
        ahead += [following for following, _ in node.next_functions]
    return {name for name in found if name is not None}



def sample_axes(task: Task, batch: Batch, number: int) -> dict[Call, Axis | None]:
    """Where the samples are in all that weights read and make: found by running two samples, and then the same two and one more."""
    form, met = layout(batch), []
    for index in ([0, 1], [0, 1, 2 % sliceable(batch)]):
        some, _ = split_batch(take(batch, torch.tensor(index), form))
        probe = Probe()
        with torch.no_grad():
            task.run_on(some, number, probe.on)
        met.append(probe.met)
    two, three = met
    return {call: sample_axis(two[call], value) for call, value in three.items() if call in two}
