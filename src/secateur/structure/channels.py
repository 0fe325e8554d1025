"""The structure in which channels, neurons, hidden states and whole groups are units: what labels, flowing through one run, connect."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import count

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import BadInput
from ..task import without_collection
from ..tree import Scores, Tree
from .cut import attribute_of
from .labels import CHANNEL, EXPERT, HEAD, HIDDEN, INNER, KERNEL, OUTER, WITHIN_HEAD, Dim, Once
from .run import macs_per_element, traced
from .sizes import Attribute
from .structure import Group, digest_of, shapes_of
from .trace import Trace
from .trial import culprits, rest, trial, untrainable
from .watch import Fault

KINDS = {CHANNEL: "channel", OUTER: "group", INNER: "within groups"}
ROLES = {HEAD: "head", WITHIN_HEAD: "head dimension", HIDDEN: "hidden state", EXPERT: "expert"}
ALL_KINDS = (*KINDS.values(), *ROLES.values())
USUAL = tuple(kind for kind in ALL_KINDS if kind != "head dimension")  # of attention whole heads, where they can go
STUBBORN = 8  # a fault that comes back so often will not be cured dimension by dimension
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
    divided: tuple[tuple[str, int], ...] = ()  # (parameter, dimension) that a mask leaves alone: divided by a norm, zeros would give 0 / 0
    kind: str = "channels"

    def expand(self, keep: Mapping[str, Tensor]) -> Tree:
        gates = self._gates(keep)
        masks = {}
        for name in self.numel:
            mask = torch.ones((), dtype=gates.dtype, device=gates.device)
            for dim, index in enumerate(self.index[name]):
                if index is not None and (name, dim) not in self.divided:
                    line = gates[index.to(gates.device)].prod(0) if gates.dtype != torch.bool else gates[index.to(gates.device)].all(0)
                    mask = mask * line.view([-1 if d == dim else 1 for d in range(len(self.shapes[name]))])
            masks[name] = mask.expand(self.shapes[name])
        return masks

    def reduce(self, values: Mapping[str, Tensor]) -> Scores:
        lines = {}
        for name in self.numel:
            for dim, index in enumerate(self.index[name]):
                if index is not None and (name, dim) not in self.divided:
                    others = [d for d in range(values[name].dim()) if d != dim]
                    lines[name, dim] = values[name].sum(others) if others else values[name]
        return self.gather(lines)

    def gather(self, lines: Mapping[tuple[str, int], Tensor]) -> Scores:
        first = next(iter(lines.values()), torch.zeros(0))
        sizes = [group.size for group in self.groups.values()]
        sums = torch.zeros(*first.shape[:-1], 1 + sum(sizes), dtype=first.dtype, device=first.device)
        for (name, dim), line in lines.items():
            index = self.index[name][dim]
            if index is not None and (name, dim) not in self.divided:
                for units in index:
                    sums = sums.index_add(-1, units.to(first.device), line)
        return dict(zip(self.groups, torch.split(sums[..., 1:], sizes, -1) if sizes else ()))

    def parts(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        pieces: dict[str, list[Tensor]] = {name: [] for name in self.groups}
        for name in self.numel:
            for dim, index in enumerate(self.index[name]):
                if index is not None and (name, dim) not in self.divided:
                    for group, lines in self.lines(index):
                        value = values[name].index_select(dim, lines.to(values[name].device)).movedim(dim, 0)
                        pieces[group].append(value.reshape(self.groups[group].size, -1))
        return {name: torch.cat(each, 1) for name, each in pieces.items()}

    def lines(self, index: Tensor) -> Iterator[tuple[str, Tensor]]:
        """For each group with units along this dimension, the positions of its first unit, of its second, and so on: all have as many."""
        place = torch.arange(index.shape[1]).expand(index.shape)
        start = 1
        for name, group in self.groups.items():
            inside = (index >= start) & (index < start + group.size)
            if inside.any():
                yield name, place[inside][index[inside].argsort(stable=True)]
            start += group.size

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

    def skipped(self, keep: Mapping[str, Tensor]) -> tuple[str, ...]:
        return ()

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
                now: tuple[int, ...] = tuple(changed.get(where, self.originals[where]))  # type: ignore[arg-type]
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
                f"{name}: {group.size} units ({group.kind})"
                + (f", {group.multiple} at a time" if group.multiple > 1 else "")
                + (f", approximate: {group.approximate}" if group.approximate else "")
            )
            lines.append("  cut together: " + ", ".join(f"{member}[{dim}]" for member, dim in group.members))
            lines += [f"  through {how}" for how in group.through]
        for name, group in self.frozen.items():
            lines.append(f"{name}: {group.size} units, frozen: {group.frozen}")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def _gates(self, keep: Mapping[str, Tensor]) -> Tensor:
        parts = [keep[name].reshape(-1) for name in self.groups]
        return torch.cat([torch.ones_like(parts[0][:1]), *parts]) if parts else torch.ones(1, dtype=torch.bool)


def channels(model: nn.Module, example: object, exact: bool = False, units: Collection[str] | None = None) -> Channels:
    """The units of `model` that can be removed whole, found by one run on `example`.

    example: a tensor, a tuple of arguments or a dict of keyword arguments.
    exact: keep groups whole whose removal is only approximately the same as zeroing (a norm's statistic or a softmax runs over them).
    units: the kinds of units that may go, of ALL_KINDS; all but the dimensions within attention heads if None.
    The model is not changed, and is run on a copy without values (on the `meta` device) where it can be.
    Before it is handed out, part of every group is removed on trial, and what then does not run as predicted is frozen.
    Raises BadInput where the example does not fit the model.
    """
    kinds = USUAL if units is None else [units] if isinstance(units, str) else units
    if unknown := set(kinds) - set(ALL_KINDS):
        raise BadInput(f"There is no kind of unit {sorted(unknown)[0]!r}. Choose among {', '.join(ALL_KINDS)}.")
    with without_collection():  # it takes longer than many a trace
        return held_to_trial(model, example, exact, kinds)


def held_to_trial(model: nn.Module, example: object, exact: bool, kinds: Collection[str]) -> Channels:
    trace, on_meta, inputs = traced(model, example)
    stops = Counter[Fault]()
    while True:
        structure, numbers = gathered(model, trace, macs_per_element(trace, inputs), exact, kinds)
        faults = trial(structure, model, on_meta, inputs, trace, numbers)
        if not faults:
            return replace(structure.without(untrainable(structure, model, on_meta, inputs, trace)), digest=digest_of(model))
        stops[faults[-1]] += 1
        for dims, why in [culprits(trace, fault) for fault in faults] if stops[faults[-1]] < STUBBORN else [rest(trace, faults[-1])]:
            for dim in dims:
                trace.labels.freeze(dim, why)


def gathered(
    model: nn.Module, trace: Trace, uses: dict[str, float], exact: bool, kinds: Collection[str] = ALL_KINDS
) -> tuple[Channels, np.ndarray]:
    """Units with the same memberships in all tensors of the run form a group. The second result numbers the labels' units."""
    labels, parameters = trace.labels, dict(model.named_parameters())
    once = Once(labels)
    tensors = {name: tuple(map(once, dims)) for name, dims in trace.tensors.items()}
    places = [(name, at, labels.resolve(dim, all_factors=True)) for name, dims in trace.tensors.items() for at, dim in enumerate(dims)]
    seen = [*(dim for dims in tensors.values() for dim in dims), *(once(dim) for step in trace.steps for dims in step.made for dim in dims)]
    signature = signatures(labels.size, seen)
    frozen = labels.frozen[: labels.size].copy()
    if exact:
        approximate = labels.approximate[: labels.size]
        frozen = np.where((frozen == 0) & (approximate > 0), approximate, frozen)

    order = in_order([dim for _, at, dim in places if at == 0] + [dim for _, at, dim in places if at])  # a layer's own outputs come first
    alike = np.stack([signature[order], frozen[order] > 0, labels.family[order]])
    _, first, which = np.unique(alike, axis=1, return_index=True, return_inverse=True)
    bucket = np.full(labels.size, -1)  # label -> the group that it is in
    bucket[order] = np.argsort(np.argsort(first))[which.ravel()]  # groups in the order of their first labels
    first = np.sort(first)
    members, names = memberships(places, bucket, len(first))
    through = couplings(trace, bucket, len(first))

    named: dict[str, tuple[Group, np.ndarray]] = {}
    by_group = order[np.argsort(bucket[order], kind="stable")]
    parts = np.split(by_group, np.cumsum(np.bincount(bucket[order], minlength=len(first)))[:-1]) if len(order) else []
    for g, atoms in sorted(enumerate(parts), key=lambda part: frozen[part[1][0]] > 0):  # what may leave is named first
        atom = atoms[0]
        if labels.reasons[labels.frozen[atom]].startswith(KERNEL) or (frozen[atom] and labels.kind[atom] and len(atoms) == 1):
            continue
        name = next(n for n in (f"{names[g]}#{i}".removesuffix("#1") for i in count(1)) if n not in named)
        kind = ROLES.get(int(labels.role[atom]), KINDS[int(labels.kind[atom])])
        least = max(1, int(labels.least[atoms].max()))
        multiple = max(1, int(labels.multiple[atoms].max()))
        why = labels.reasons[frozen[atom]] or ("it has one unit" if len(atoms) == 1 else "")
        why = why or (f"all of its {least} units are needed" if least >= len(atoms) else "")
        why = why or (f"they stay by {multiple} only" if multiple >= len(atoms) else "")
        why = why or ("" if any(member in parameters for member, _ in members[g]) else "no parameter lies along it")
        group = Group(name, (len(atoms),), kind, members[g], through[g], labels.reasons[labels.approximate[atom]], why, least, multiple)
        named[name] = group, atoms
    groups, kept_whole, numbers, next_number = {}, {}, np.zeros(labels.size, np.int64), 1
    heads = {member for group, _ in named.values() if group.kind == "head" and not group.frozen for member in group.members}
    for name, (group, atoms) in named.items():
        asked = group.kind in kinds or (kinds is USUAL and heads.isdisjoint(group.members))  # where no head can go, what is within can
        if not group.frozen and not asked:
            group = replace(group, frozen=f"a {group.kind} is no unit that was asked for (units=)")
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

    attributes = {where: index for where, dim in trace.attributes.items() if (index := units(once(dim))) is not None}
    reading = [f"the run reads a value at {place}; another value may take another way" for place in dict.fromkeys(trace.values_read)]
    structure = Channels(
        groups, kept_whole,
        numel={name: value.numel() for name, value in parameters.items()},
        itemsize={name: value.element_size() for name, value in parameters.items()},
        uses=uses,
        shapes=shapes_of(model), digest="",
        index={name: tuple(units(dim) for dim in dims) for name, dims in tensors.items()},
        attributes=attributes,
        originals={where: attribute_of(model, where) for where, _ in attributes},
        notes=(*trace.notes, *reading),
        divided=tuple(sorted(trace.divided)),
    )  # fmt: skip
    return structure, numbers


def signatures(size: int, dims: list[Dim]) -> np.ndarray:
    """A number per label, equal for labels that lie equally often in the same dimensions of the same tensors (a sum of random ones)."""
    random = np.random.default_rng(0).integers(1, 2**63, len(dims), dtype=np.uint64)
    signature = np.zeros(size, np.uint64)
    for dim, number in zip(dims, random):
        for row in dim:
            np.add.at(signature, row, number)
    return signature


def in_order(dims: list[Dim]) -> np.ndarray:
    """All labels, in the order in which the dimensions have them."""
    flat = np.concatenate([dim.ravel() for dim in dims]) if dims else np.zeros(0, np.int64)
    atoms, first = np.unique(flat, return_index=True)
    return atoms[np.argsort(first)][atoms[np.argsort(first)] > 0]


def memberships(places: list[tuple[str, int, Dim]], bucket: np.ndarray, n: int) -> tuple[list[tuple[tuple[str, int], ...]], list[str]]:
    """For each group its (tensor, dimension) pairs, and its name: the layer that makes its units, or the tensor that has them otherwise."""
    members: list[list[tuple[str, int]]] = [[] for _ in range(n)]
    names = [""] * n
    for own in (True, False):
        for name, at, dim in places:
            if (at == 0) == own and dim.size:
                for g in np.unique(bucket[dim]):
                    if g >= 0:
                        members[g].append((name, at))
                        names[g] = names[g] or (name.removesuffix(".weight") if own else name)
    return [tuple(each) for each in members], names


def couplings(trace: Trace, bucket: np.ndarray, n: int) -> list[tuple[str, ...]]:
    """For each group the operators that united its labels."""
    through: list[dict[str, None]] = [{} for _ in range(n)]
    for united, step in trace.labels.links:
        for g in np.unique(bucket[trace.labels.resolve(united[None])]):
            if g >= 0:
                through[g][trace.steps[step].name] = None
    return [tuple(each) for each in through]
