"""The structure in which channels, neurons, hidden states and whole groups are units: what labels, flowing through one run, connect."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import BadInput
from ..tree import Keep, Scores, Tree
from .cut import cut
from .labels import CHANNEL, INNER, KERNEL, OUTER, Dim, Labels
from .run import macs_per_element, traced
from .sizes import Attribute
from .structure import Group, digest_of, shapes_of
from .trace import Trace
from .watch import Fault, backward_fails, watch

KINDS = {CHANNEL: "channel", OUTER: "group", INNER: "within groups"}
TRIALS = 2  # of every structure, before it is handed out
Index = tuple[Tensor | None, ...]  # per dimension, (factors, indices) numbers of units, 0: none


@dataclass(frozen=True)
class Channels:
    """Units numbered 1, 2, ... in the order of the groups; every dimension of every tensor knows which units its indices lie in."""

    groups: dict[str, Group]
    frozen: dict[str, Group]
    numel: dict[str, int]
    itemsize: dict[str, int]
    uses: dict[str, float]
    shapes: dict[str, tuple[int, ...]]
    digest: str
    index: dict[str, Index] = field(repr=False)
    attributes: dict[Attribute, Tensor] = field(repr=False)
    originals: dict[str, object] = field(repr=False)  # attribute -> its value now
    notes: tuple[str, ...] = ()
    kind: str = "channels"

    def expand(self, keep: Mapping[str, Tensor]) -> Tree:
        gates = self._gates(keep)
        masks = {}
        for name in self.numel:
            mask = torch.ones((), dtype=gates.dtype, device=gates.device)
            for dim, index in enumerate(self.index[name]):
                if index is not None:
                    line = gates[index.to(gates.device)].prod(0) if gates.dtype != torch.bool else gates[index.to(gates.device)].all(0)
                    mask = mask * line.view([-1 if d == dim else 1 for d in range(len(self.shapes[name]))])
            masks[name] = mask.expand(self.shapes[name])
        return masks

    def reduce(self, values: Mapping[str, Tensor]) -> Scores:
        first = next(iter(values.values()))
        sums = torch.zeros(1 + sum(group.size for group in self.groups.values()), dtype=first.dtype, device=first.device)
        for name in self.numel:
            for dim, index in enumerate(self.index[name]):
                if index is not None:
                    line = values[name].sum([d for d in range(values[name].dim()) if d != dim]) if values[name].dim() > 1 else values[name]
                    for units in index:
                        sums = sums.index_add(0, units.to(first.device), line)
        parts = torch.split(sums[1:], [group.size for group in self.groups.values()]) if self.groups else ()
        return dict(zip(self.groups, parts))

    def count(self, keep: Mapping[str, Tensor]) -> dict[str, int]:
        gates = self._gates(keep)
        counts = {}
        for name, number in self.numel.items():
            for dim, index in enumerate(self.index[name]):
                if index is not None:
                    number = number // self.shapes[name][dim] * int(gates[index].all(0).sum())
            counts[name] = number
        return counts

    def kept(self, keep: Mapping[str, Tensor]) -> dict[str, Index]:
        gates = self._gates(keep)
        lines = {
            name: tuple(None if index is None or (mask := gates[index].all(0)).all() else mask.nonzero()[:, 0] for index in indices)
            for name, indices in self.index.items()
        }
        return {name: line for name, line in lines.items() if any(index is not None for index in line)}

    def sizes(self, keep: Mapping[str, Tensor]) -> dict[str, int | tuple[int, ...]]:
        gates = self._gates(keep)
        changed: dict[str, int | tuple[int, ...]] = {}
        for (where, position), index in self.attributes.items():
            size = int(gates[index].all(0).sum())
            if size == index.shape[1]:
                continue
            if position is None:
                changed[where] = size
            else:
                now = changed.get(where, self.originals[where])
                assert isinstance(now, tuple)
                changed[where] = (*now[:position], size, *now[position + 1 :])
        return changed

    def without(self, names: Mapping[str, str]) -> Channels:
        """The same structure with some groups frozen, each for the reason given."""
        frozen = {**self.frozen, **{name: replace(self.groups[name], frozen=why) for name, why in names.items()}}
        groups = {name: group for name, group in self.groups.items() if name not in names}
        number, old, new = torch.zeros(1 + sum(group.size for group in self.groups.values()), dtype=torch.long), 1, 1
        for name, group in self.groups.items():
            if name in groups:
                number[old : old + group.size] = torch.arange(new, new + group.size)
                new += group.size
            old += group.size

        def again(index: Tensor | None) -> Tensor | None:
            return None if index is None or not number[index].any() else number[index]

        index = {name: tuple(again(dim) for dim in dims) for name, dims in self.index.items()}
        attributes = {where: number[units] for where, units in self.attributes.items()}
        return replace(self, groups=groups, frozen=frozen, index=index, attributes=attributes)

    def explain(self) -> str:
        """Groups, sizes, who is coupled with whom through which operator, what is frozen and why."""
        lines = []
        for name, group in self.groups.items():
            lines.append(
                f"{name}: {group.size} units ({group.kind})" + (f", approximate: {group.approximate}" if group.approximate else "")
            )
            lines.append("  cut together: " + ", ".join(f"{member}[{dim}]" for member, dim in group.members))
            lines += [f"  through {how}" for how in group.through]
        for name, group in self.frozen.items():
            lines.append(f"{name}: {group.size} units, frozen: {group.frozen}")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def _gates(self, keep: Mapping[str, Tensor]) -> Tensor:
        parts = [keep[name].reshape(-1) for name in self.groups]
        return torch.cat([torch.ones_like(parts[0][:1]), *parts]) if parts else torch.ones(1, dtype=torch.bool)


def channels(model: nn.Module, example: object, exact: bool = False) -> Channels:
    """The units of `model` that can be removed whole, found by one run on `example`.

    example: a tensor, a tuple of arguments or a dict of keyword arguments.
    exact: keep groups whole whose removal is only approximately the same as zeroing (a norm's statistic or a softmax runs over them).
    The model is not changed, and is run on a copy without values (on the `meta` device) where it can be.
    Before it is handed out, part of every group is removed on trial, and what then does not run as predicted is frozen.
    Raises BadInput where the example does not fit the model.
    """
    trace, dense, inputs = traced(model, example)
    while True:
        structure, numbers = gathered(model, dense, trace, macs_per_element(trace, inputs), exact)
        faults = trial(structure, dense, inputs, trace, numbers)
        if not faults:
            return structure
        for dims, why in [culprits(trace, fault) for fault in faults]:
            for dim in dims:
                trace.labels.freeze(dim, why)


def gathered(model: nn.Module, dense: nn.Module, trace: Trace, uses: dict[str, float], exact: bool) -> tuple[Channels, np.ndarray]:
    """Units with the same memberships in all tensors of the run form a group. The second result numbers the labels' units."""
    labels = trace.labels
    tensors = {
        name: tuple(labels.resolve(dim) for dim in trace[value]) for name, value in [*dense.named_parameters(), *dense.named_buffers()]
    }
    signature = signatures(labels, [*tensors.values(), *(dims for step in trace.steps for dims in step.made)])
    order, names, members = order_of(tensors)
    frozen = labels.frozen.copy()
    if exact:
        approximate = labels.approximate[: labels.size]
        frozen[: labels.size] = np.where((frozen[: labels.size] == 0) & (approximate > 0), approximate, frozen[: labels.size])
    buckets: dict[tuple[int, bool], list[int]] = {}
    for atom in order:
        buckets.setdefault((int(signature[atom]), bool(frozen[atom])), []).append(atom)

    links: dict[int, list[int]] = {}
    for united, step in labels.links:
        for atom in set(labels.resolve(united[None]).ravel().tolist()):
            links.setdefault(atom, []).append(step)

    groups, kept_whole, numbers, taken, next_number = {}, {}, np.zeros(labels.size, np.int64), Counter[str](), 1
    for atoms in buckets.values():
        first = atoms[0]
        if labels.reasons[labels.frozen[first]].startswith(KERNEL):
            continue
        taken[names[first]] += 1
        name = names[first] if taken[names[first]] == 1 else f"{names[first]}#{taken[names[first]]}"
        through = dict.fromkeys(trace.steps[s].name for s in links.get(first, ()))
        group = Group(
            name, (len(atoms),), KINDS[int(labels.kind[first])], members[first], tuple(through),
            labels.reasons[labels.approximate[first]], labels.reasons[frozen[first]] or ("it has one unit" if len(atoms) == 1 else ""),
        )  # fmt: skip
        if group.frozen:
            kept_whole[name] = group
        else:
            groups[name] = group
            numbers[atoms] = np.arange(next_number, next_number + len(atoms))
            next_number += len(atoms)

    def units(dim: Dim) -> Tensor | None:
        rows = numbers[dim]
        rows = rows[rows.any(axis=1)]
        return torch.from_numpy(rows) if len(rows) else None

    parameters = dict(model.named_parameters())
    attributes = {where: index for where, dim in trace.attributes.items() if (index := units(labels.resolve(dim))) is not None}
    structure = Channels(
        groups, kept_whole,
        numel={name: value.numel() for name, value in parameters.items()},
        itemsize={name: value.element_size() for name, value in parameters.items()},
        uses=uses,
        shapes=shapes_of(model), digest=digest_of(model),
        index={name: tuple(units(dim) for dim in dims) for name, dims in tensors.items()},
        attributes=attributes,
        originals={where: attribute_of(model, where) for where, _ in attributes},
        notes=tuple(f"the run reads a value at {place}; another value may take another way" for place in dict.fromkeys(trace.values_read)),
    )  # fmt: skip
    return structure, numbers


def signatures(labels: Labels, tensors: list[tuple[Dim, ...]]) -> np.ndarray:
    """A number per label, equal for labels that lie in the same dimensions of the same tensors (a sum of random ones)."""
    random = np.random.default_rng(0)
    signature = np.zeros(labels.size, np.uint64)
    for dims in tensors:
        for dim in dims:
            number = random.integers(1, 2**63, dtype=np.uint64)
            for row in labels.resolve(dim):
                np.add.at(signature, row, number)
    return signature


def order_of(tensors: Mapping[str, tuple[Dim, ...]]) -> tuple[list[int], dict[int, str], dict[int, tuple[tuple[str, int], ...]]]:
    """Labels in the order in which parameters have them, each with the name of the layer that makes it and its memberships."""
    order: dict[int, None] = {}
    names: dict[int, str] = {}
    members: dict[int, dict[tuple[str, int], None]] = {}
    for first_dims in (True, False):  # a layer's own outputs come first
        for name, dims in tensors.items():
            for at, dim in enumerate(dims):
                if (at == 0) == first_dims:
                    for atom in dim.ravel().tolist():
                        if atom:
                            order.setdefault(atom)
                            names.setdefault(atom, name.removesuffix(".weight") if first_dims else name)
                            members.setdefault(atom, {}).setdefault((name, at))
    return list(order), names, {atom: tuple(where) for atom, where in members.items()}


def trial(structure: Channels, dense: nn.Module, inputs: object, trace: Trace, numbers: np.ndarray) -> list[Fault]:
    """Remove part of every group from the copy and run it: the operators that do not make what their labels say."""
    for seed in range(TRIALS):
        keep = uneven(structure, seed)
        gates = structure._gates(keep).numpy()
        small = cut(dense, structure.kept(keep), structure.sizes(keep))
        size = lambda dim, gates=gates: int(gates[numbers[trace.labels.resolve(dim)]].all(0).sum())
        faults = watch(small, inputs, trace.steps, size)
        if not faults and (error := backward_fails(small, inputs)) and not backward_fails(dense, inputs):
            faults = [Fault(len(trace.steps) - 1, f"the smaller model fails backward ({error}) from")]
        if faults:
            return faults
    return []


def uneven(structure: Channels, seed: int) -> Keep:
    """A random part of every group, and of groups of one size parts of different sizes: sizes that agree by chance prove nothing."""
    generator = torch.Generator().manual_seed(seed)
    seen: Counter[int] = Counter()
    keep = {}
    for name, group in structure.groups.items():
        first = int(torch.randint(group.size - 1, (), generator=generator)) if not seen[group.size] else 0
        seen[group.size] += 1 + first
        gone = 1 + seen[group.size] % (group.size - 1)
        keep[name] = torch.randperm(group.size, generator=generator) >= gone
    return keep


def culprits(trace: Trace, fault: Fault) -> tuple[list[Dim], str]:
    """What to freeze, and why: the dimensions at fault; where they have no label left, what the operator reads, or what those before it read."""
    labels, steps = trace.labels, trace.steps
    last = min(fault.step, len(steps) - 1)
    alive = lambda dims: [dim for dim in map(labels.resolve, dims) if (labels.frozen[dim[dim > 0]] == 0).any()]
    if found := alive(steps[last].made[0][d] for d in fault.dims):
        return found, f"{fault.what} {steps[last].name}"
    for step in steps[last::-1]:
        if found := alive((*step.read, *(trace.attributes[a] for a in step.attributes if a in trace.attributes))):
            return found, f"{fault.what} {step.name}"
    left = np.flatnonzero(labels.frozen[: labels.size] == 0)[None, 1:]
    if not left.size:
        raise BadInput("Two runs of the model on the same example take different ways. Make its evaluation mode deterministic.")
    return [left], fault.what


def attribute_of(model: nn.Module, where: str) -> object:
    path, _, name = where.rpartition(".")
    return getattr(model.get_submodule(path), name)
