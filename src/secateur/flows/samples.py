"""Samples within a batch: where they are in what weights read and make, and, where that is no help, each of them alone.

Everywhere L_s is the sample's share of the batch's loss L, times n, so that L = mean over s of L_s. Of the outputs z, sample s makes the
rows z_s and nothing else, so

    dL_s/dw = n (dz_s/dw)' dL/dz_s

with dL/dz taken of the whole batch: what its loss leaves out (padding, ignored labels) or weighs (classes), it does here, too.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from ..contexts import Layout, layout, leaves, sliceable, take
from ..counted import Edge, edge, nodes
from ..errors import BadInput
from ..task import Task, derived, differentiable, evaluating, plain, split_batch
from ..tree import Tree
from .axes import Axis, apart, close, dependent, sample_axis
from .watch import Call, Probe

Batch = tuple[object, object]


def gradients_of_every_sample(task: Task, batch: Batch, number: int, names: set[str]) -> Iterator[Tree]:
    """dL_s/dw of these parameters, by one run and one backward pass a sample.

    Where the loss comes from something that shows no samples (outputs that are one number, or have another length in another batch), L_s is
    the loss of a batch of one. Raises BadInput where the mean of those is not the batch's loss, and where samples are not independent.
    """
    samples = sliceable(batch)
    if samples == 1:
        yield from alone(task, batch, number, names)
        return
    seen: list[object] = []
    loss, weights = seeing(task, seen).loss_on(*batch, number)
    outputs = tensors(seen[0])
    axes = output_axes(task, batch, number, [*outputs])
    made = {place: value for place, value in outputs.items() if axes[place] is not None}
    if not made or names & reached(loss, weights, {edge(value) for value in made.values()}):
        yield from alone(task, batch, number, names, float(loss.detach()))
        return
    with derived(number):
        pulls = {place: apart(g, axes[place], samples) * samples for place, g in arriving(loss, made).items()}
    values = {place: apart(made[place].detach(), axes[place], samples) for place in pulls}
    del loss, weights, seen, outputs, made  # the graph of this batch
    form = layout(batch)
    for sample in range(samples):
        z, weights = run(task, batch, form, [sample], number)
        mine = {place: apart(value, axes[place], 1)[0] for place, value in tensors(z).items() if place in pulls}
        for place, every in values.items():
            check_alike(mine[place].detach() if place in mine else None, every[sample], number)
        chosen = {name: weights[name] for name in weights if name in names}
        with derived(number):
            gradients = torch.autograd.grad(
                [mine[place] for place in pulls], [*chosen.values()], [pull[sample] for pull in pulls.values()],
                allow_unused=True, materialize_grads=True,
            )  # fmt: skip
        yield {name: plain(gradient) for name, gradient in zip(chosen, gradients)}


def alone(task: Task, batch: Batch, number: int, names: set[str], whole: float | None = None) -> Iterator[Tree]:
    """The gradients of batches of one. whole: the loss of all, which the mean of theirs has to be."""
    form, losses = layout(batch), []
    for sample in range(sliceable(batch)):
        loss, weights = task.loss_on(*split_batch(take(batch, torch.tensor([sample]), form)), number)
        losses.append(loss.detach())
        chosen = {name: weights[name] for name in weights if name in names}
        with derived(number):
            gradients = torch.autograd.grad(loss, [*chosen.values()], allow_unused=True, materialize_grads=True)
        yield {name: plain(gradient) for name, gradient in zip(chosen, gradients)}
    mean = torch.stack(losses).mean()
    if whole is not None and not close(mean, torch.full_like(mean, whole)):
        raise BadInput(
            f"In batch {number} the loss is {whole:.6g}, but the mean of its samples' losses is {float(mean):.6g}, and its outputs do not "
            "show which part is whose. Let the model return what the loss is made of, samples first, or choose a criterion of whole "
            "batches, such as taylor or fisher."
        )


def arriving(loss: Tensor, made: dict[int, Tensor]) -> dict[int, Tensor]:
    """The partial derivatives of the loss by these: where one is computed from another, nothing passes on."""
    found: dict[int, Tensor] = {}

    def stop(place: int, gradient: Tensor) -> Tensor:
        found[place] = gradient
        return torch.zeros_like(gradient)

    for place, value in made.items():
        value.register_hook(functools.partial(stop, place))  # type: ignore[no-untyped-call]
    torch.autograd.grad(loss, [*made.values()], allow_unused=True)
    return found


def seeing(task: Task, seen: list[object]) -> Task:
    """The task, whose loss leaves the outputs that it is given in `seen`."""

    def loss(outputs: object, targets: object) -> Tensor:
        seen.append(outputs)
        return task.loss(outputs, targets)

    return replace(task, loss=loss)


def run(task: Task, batch: Batch, form: Layout, index: list[int], number: int) -> tuple[object, Tree]:
    """What the model makes of some of the samples, with its graph, and the leaves of that."""
    some, _ = split_batch(take(batch, torch.tensor(index), form))
    with torch.enable_grad(), evaluating(task.model), differentiable(task.model, False):
        return task.run_on(some, number)


def tensors(outputs: object) -> dict[int, Tensor]:
    """Those of the outputs that depend on the weights, by their place among all."""
    return {place: value for place, value in enumerate(leaves(outputs)) if isinstance(value, Tensor) and value.grad_fn is not None}


def reached(loss: Tensor, leaves: Tree, without: Collection[Edge] = ()) -> set[str]:
    """The leaves that the graph of the loss ends in, by other ways than through these edges."""
    names = {id(value): name for name, value in leaves.items()}
    found = {names.get(id(getattr(node, "variable", None))) for node in nodes(loss, without)}
    return {name for name in found if name is not None}


def batches_of_samples(task: Task) -> Iterator[tuple[int, Batch, int, dict[Call, Axis | None]]]:
    """Every batch after its number, with how many samples it has, and where they are: found in the first batch of several."""
    axes: dict[Call, Axis | None] | None = None
    for number, batch in enumerate(task.batches()):
        samples = sliceable(batch)
        if not samples:
            raise BadInput(f"Batch {number} has no samples, so there is nothing to look at one by one. Leave such batches out of the data.")
        if samples > 1 and axes is None:
            axes = sample_axes(task, batch, number)
        yield number, batch, samples, axes or {}


def sample_axes(task: Task, batch: Batch, number: int) -> dict[Call, Axis | None]:
    """Where the samples are in all that weights read and make: found by running two samples, and then the same two and one more."""
    form, met = layout(batch), []
    for index in few(batch):
        some, _ = split_batch(take(batch, torch.tensor(index), form))
        probe = Probe()
        with torch.no_grad():
            task.run_on(some, number, probe.on)
        met.append(probe.met)
    two, three = met
    return {call: sample_axis(two[call], value) for call, value in three.items() if call in two}


def output_axes(task: Task, batch: Batch, number: int, places: list[int]) -> dict[int, Axis | None]:
    """The same of these outputs. Raises BadInput where one of them grows with the samples, but the third changes the first two."""
    form = layout(batch)
    two, three = (tensors(run(task, batch, form, index, number)[0]) for index in few(batch))
    pairs = {place: (two[place].detach(), three[place].detach()) for place in places if place in two and place in three}
    if any(dependent(*pair) for pair in pairs.values()):
        raise BadInput(not_independent(number))
    return {place: sample_axis(*pairs[place]) if place in pairs else None for place in places}


def check_alike(alone: Tensor | None, within: Tensor, number: int) -> None:
    """Raises BadInput where what the model makes of a sample alone is not what it makes of it within the batch."""
    if alone is not None and alone.shape != within.shape:
        raise BadInput(
            f"In batch {number} the model makes outputs of shape {tuple(alone.shape)} of a sample alone, and {tuple(within.shape)} of it "
            "within the batch, so there is no gradient of a single sample. Let the outputs have one length (total_length= of "
            "pad_packed_sequence), or choose a criterion of whole batches, such as taylor or fisher."
        )
    if alone is None or not close(alone, within):
        raise BadInput(not_independent(number))


def few(batch: Batch) -> tuple[list[int], list[int]]:
    return [0, 1], [0, 1, 2 % sliceable(batch)]


def not_independent(number: int) -> str:
    return (
        f"In batch {number} samples are not independent: what the model makes of one changes with those beside it (a batch norm without "
        "running statistics, say) or from run to run, so there is no gradient of a single sample. Give its norms running statistics and "
        "let nothing be drawn in evaluation mode, or choose a criterion of whole batches, such as taylor or fisher."
    )
