"""Part of every group is removed on trial, and what then does not run as the labels predict is found, with the labels to blame."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from ..errors import BadInput
from ..task import each
from ..tree import Keep
from .cut import cut
from .labels import Dim, Once
from .structure import all_kept
from .trace import Made, Trace
from .watch import COUNTED, FIXED, Fault, backward_fails, runs_in_training, watch

if TYPE_CHECKING:
    from .channels import Channels


def trial(
    structure: Channels, model: nn.Module, on_meta: bool, inputs: object, trace: Trace, numbers: np.ndarray
) -> list[Fault]:
    """Remove part of every group from a copy and run it, forward and backward: the operators that do not make what their labels say.

    Groups of as many units that could only lose as many (the two heads of two layers) are told apart by further plans.
    """
    once = Once(trace.labels)
    seen = [dim for step in trace.steps for dims in (*step.made, step.read) for dim in dims]
    each(lambda leaf: seen.extend(leaf.dims) if isinstance(leaf, Made) else None, [span.out for span in trace.spans])
    units = {id(dim): numbers[once(dim)] for dim in seen}

    def faults_of(keep: Keep, backward: bool) -> list[Fault]:
        gates = structure._gates(keep).numpy()
        small = cut(model, structure.kept(keep), structure.sizes(keep), on_meta)

        def size(dim: Dim) -> int:
            return int(gates[units[id(dim)]].all(0).sum())

        faults = watch(small, inputs, trace.steps, size, backward, trace.spans)
        if not backward or all(fault.what in (FIXED, COUNTED) for fault in faults):
            return faults
        faults = watch(small, inputs, trace.steps, size, False, trace.spans)  # is it the gradient that fails?
        if not faults and (error := backward_fails(small, inputs)) and not backward_fails(cut(model, {}, {}, on_meta), inputs):
            return [Fault(len(trace.steps) - 1, f"the smaller model fails backward ({error}) from")]
        return faults

    first = uneven(structure, 0)
    return faults_of(first, True) or next((faults for keep in told_apart(first) if (faults := faults_of(keep, False))), [])


def untrainable(structure: Channels, model: nn.Module, on_meta: bool, inputs: object, trace: Trace) -> dict[str, str]:
    """Groups that code of training needs whole (an auxiliary head, say); looked for where a parameter has no part in the trace."""
    if not trace.idle or not structure.groups:
        return {}
    keep, whole = uneven(structure, 0), all_kept(structure)

    def trains(keep: Keep) -> bool:
        return runs_in_training(cut(model, structure.kept(keep), structure.sizes(keep), on_meta), inputs)

    def guilty(names: list[str]) -> list[str]:
        """Those without which it trains, found by halves: they are few."""
        if trains({**whole, **{name: keep[name] for name in names}}):
            return []
        if len(names) == 1:
            return names
        half = len(names) // 2
        return guilty(names[:half]) + guilty(names[half:]) or names

    return {} if trains(keep) or not trains(whole) else dict.fromkeys(guilty(list(keep)), "in training the smaller model fails")


def uneven(structure: Channels, seed: int) -> Keep:
    """A random part of every group, and of groups of one size parts of different sizes: sizes that agree by chance prove nothing."""
    generator = torch.Generator().manual_seed(seed)
    seen: Counter[int] = Counter()
    keep = {}
    for name, group in structure.groups.items():
        first = int(torch.randint(group.size - 1, (), generator=generator)) if not seen[group.size] else 0
        seen[group.size] += 1 + first
        gone = 1 + seen[group.size] % max(1, group.size - max(2, group.least))  # one left would be a size that PyTorch broadcasts
        kept = max(group.multiple, (group.size - gone) // group.multiple * group.multiple)
        keep[name] = torch.randperm(group.size, generator=generator) < kept
    return keep


def told_apart(keep: Keep) -> Iterator[Keep]:
    """Plans in which some groups stay whole, so that of any two that agree in size, before and after, one is once whole and one is not."""
    alike: dict[tuple[int, int], list[str]] = defaultdict(list)
    for name, gates in keep.items():
        alike[len(gates), int(gates.sum())].append(name)
    number = {name: at for names in alike.values() for at, name in enumerate(names)}
    for bit in range(max(number.values(), default=0).bit_length()):
        yield {name: gates if number[name] >> bit & 1 else torch.ones_like(gates) for name, gates in keep.items()}


def culprits(trace: Trace, fault: Fault) -> tuple[list[Dim], str]:
    """What to freeze, and why: the dimensions at fault; where no label is left there, what it reads, or what earlier ones read."""
    labels, steps = trace.labels, trace.steps
    last = min(fault.step, len(steps) - 1)

    def alive(dims: Iterable[Dim]) -> list[Dim]:
        return [dim for dim in map(labels.resolve, dims) if (labels.frozen[dim[dim > 0]] == 0).any()]

    wrong = [labels.resolve((steps[last].read if fault.what == COUNTED else steps[last].made[0])[d]) for d in fault.dims]
    read = np.concatenate([np.zeros(0, np.int64), *(labels.resolve(dim).ravel() for dim in steps[last].read)])
    added = [np.where(np.isin(dim, read), 0, dim) for dim in wrong if fault.what != COUNTED]  # by a padding, say
    for dims in (added, wrong):
        if found := alive(dims):
            return found, f"{fault.what} {steps[last].name}"
    for step in steps[last::-1]:
        if found := alive((*step.read, *(trace.attributes[a] for a in step.attributes if a in trace.attributes))):
            return found, f"{fault.what} {step.name}"
    return rest(trace, fault)


def rest(trace: Trace, fault: Fault) -> tuple[list[Dim], str]:
    """All that is not frozen yet: it is not to be seen what the fault comes from."""
    labels = trace.labels
    roots = np.unique(labels.resolve(np.arange(1, labels.size)[None]))
    left = roots[(roots > 0) & (labels.frozen[roots] == 0)][None]
    if not left.size:
        raise BadInput("Two runs of the model on the same example take different ways. Make its evaluation mode deterministic.")
    return [left], f"{fault.what} {trace.steps[min(fault.step, len(trace.steps) - 1)].name}"
