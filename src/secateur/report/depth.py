"""Sensitivity in depth, as plain values of bounded size: a map of the network, conflicts, what each key lost, and how sure it all is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from ..conflicts import conflicts
from ..reductions import normalised
from ..sure import Stability
from ..tree import Scores

CELLS, ALL_CELLS = 64, 8192  # of a row of the map, and of the map
VITAL, KEYS = 24, 40  # conflicts and keys that are told
MOST = 1 << 26  # units beyond which there is no map, which sorts them all
SORTED = 1 << 28  # units x keys beyond which conflicts are not looked for, which sort each key's
MANY = "Among so many units conflicts were not looked for: secateur.Sensitivity.conflicts does so."


class Measured(Protocol):
    """What of a Sensitivity is told."""

    @property
    def global_(self) -> Scores: ...
    @property
    def local(self) -> Scores: ...
    @property
    def keys(self) -> dict[str, Scores]: ...
    @property
    def criterion(self) -> str: ...
    @property
    def contexts(self) -> str: ...
    @property
    def count(self) -> int: ...
    @property
    def samples(self) -> int: ...
    @property
    def error(self) -> Scores | None: ...
    @property
    def stability(self) -> Stability | None: ...


@dataclass(frozen=True)
class Row:
    """A group's cells: its units by global sensitivity, the least needed first; of a large group a cell has several, and their mean.

    overall, local: the percentage of all units that are needed less, by global and by local sensitivity. gone: of its units, removed.
    units: their places, where each has a cell of its own.
    """

    name: str
    size: int
    kept: int
    overall: tuple[int, ...]
    local: tuple[int, ...]
    gone: tuple[int, ...]
    units: tuple[int, ...] = ()


@dataclass(frozen=True)
class Vital:
    """A unit that is cheap by global sensitivity and vital to a key ("": to some context). As in `secateur.conflicts.Conflict`."""

    unit: str
    key: str
    kept: bool
    global_rank: float
    local_rank: float
    global_share: float
    local_share: float


@dataclass(frozen=True)
class Lost:
    """A key: the share of its sensitivity that was removed, and how many units it needs more than any other key does."""

    key: str
    share: float
    first: int


@dataclass(frozen=True)
class Sure:
    """What was seen, and how far it can be relied on: agreement and correlation of two halves of the data, at the amount removed.

    near: units within one standard error of the edge, if as many were removed by global sensitivity alone.
    unknown: why there is no error.
    """

    criterion: str
    contexts: str
    count: int
    samples: int
    units: int
    near: int | None = None
    amount: float | None = None
    agreement: float | None = None
    correlation: float | None = None
    unknown: str = ""


@dataclass(frozen=True)
class Depth:
    """rows: the map. vital: the conflicts, the strongest first. lost: keys, those that lost most first, of `keys`; mean: of all data.
    note: what was not looked at.
    """

    rows: tuple[Row, ...] = ()
    vital: tuple[Vital, ...] = ()
    lost: tuple[Lost, ...] = ()
    keys: int = 0
    mean: float | None = None
    sure: Sure | None = None
    note: str = ""


def depth_of(keep: Mapping[str, Tensor], sensitivity: Measured) -> Depth:
    """keep: as the plan has it."""
    names = [name for name in keep if name in sensitivity.global_]
    units = sum(keep[name].numel() for name in names)
    if not names or units > MOST:
        return Depth(sure=sure(None, sensitivity, names, units), note=MANY if units else "")
    kept = flat(keep, names).bool()
    many = units * (1 + len(sensitivity.keys)) > SORTED
    return Depth(
        rows=map_of(keep, sensitivity, names),
        vital=() if many else vital(keep, sensitivity, names, kept),
        lost=lost(sensitivity, names, kept)[:KEYS],
        keys=len(sensitivity.keys),
        mean=share_of(flat(sensitivity.global_, names), ~kept),
        sure=sure(kept, sensitivity, names, units),
        note=MANY if many else "",
    )


def map_of(keep: Mapping[str, Tensor], sensitivity: Measured, names: list[str]) -> tuple[Row, ...]:
    most = max(8, min(CELLS, ALL_CELLS // len(names)))
    percents = [percents_of(values, names) for values in (sensitivity.global_, sensitivity.local)]
    rows = []
    for name in names:
        mask = keep[name].flatten().bool().cpu()
        order = sensitivity.global_[name].flatten().argsort(stable=True)
        overall, local, gone = (means(values[order], most) for values in (percents[0][name], percents[1][name], 100 * ~mask))
        rows.append(Row(name, len(mask), int(mask.sum()), overall, local, gone, tuple(order.tolist()) if len(mask) <= most else ()))
    return tuple(rows)


def means(values: Tensor, most: int) -> tuple[int, ...]:
    """Of cells of equally many values, at most so many cells; a whole number each."""
    cells = min(len(values), most)
    cell = torch.arange(len(values)) * cells // len(values)
    mean = cell.bincount(values.double(), cells) / cell.bincount(minlength=cells)
    return tuple(mean.round().int().tolist())


def percents_of(scores: Scores, names: list[str]) -> Scores:
    """Of every unit, the percentage of all units that score lower."""
    ordered = flat(scores, names).sort().values
    edges = ordered[torch.arange(1, 100) * len(ordered) // 100]
    return {name: torch.bucketize(scores[name].flatten().to(edges.dtype), edges) for name in names}


def vital(keep: Mapping[str, Tensor], sensitivity: Measured, names: list[str], kept: Tensor) -> tuple[Vital, ...]:
    """Conflicts at the share of the units that was removed."""
    amount = 1 - int(kept.sum()) / len(kept)
    keys = {key: only(scores, names) for key, scores in sensitivity.keys.items()}
    found = conflicts(only(sensitivity.global_, names), only(sensitivity.local, names), keys, amount, limit=VITAL)
    told = []
    for one in found:
        mask = keep[one.group]
        index = ",".join(str(int(place)) for place in torch.unravel_index(torch.tensor(one.unit), mask.shape))
        ranks = (one.global_rank, one.local_rank, one.global_share, one.local_share)
        told.append(Vital(f"{one.group}:{index}", one.key or "", bool(mask.flatten()[one.unit]), *ranks))
    return tuple(told)


def only(scores: Scores, names: list[str]) -> Scores:
    return {name: scores[name].flatten() for name in names}


def lost(sensitivity: Measured, names: list[str], kept: Tensor) -> tuple[Lost, ...]:
    if not sensitivity.keys:
        return ()
    highest, which = torch.zeros(len(kept)), torch.full((len(kept),), -1)
    shares = {}
    for number, (key, scores) in enumerate(sensitivity.keys.items()):
        values = flat(scores, names).float()
        shares[key] = share_of(values, ~kept)
        which[values > highest] = number
        highest = torch.maximum(highest, values)
    first = (which + 1).bincount(minlength=len(shares) + 1)[1:].tolist()
    told = [Lost(key, share, count) for (key, share), count in zip(shares.items(), first)]
    return tuple(sorted(told, key=lambda one: -one.share))


def sure(kept: Tensor | None, sensitivity: Measured, names: list[str], units: int) -> Sure:
    """kept: of all units in a row; None where that is too many to look at."""
    agreed = sensitivity.stability
    near = None
    if kept is not None and sensitivity.error and 0 < (gone := int((~kept).sum())) < units:
        values, error = flat(sensitivity.global_, names), flat(sensitivity.error, names)
        ordered = values.sort().values
        edge = (ordered[gone - 1] + ordered[gone]) / 2
        near = int(((values - edge).abs() < error).sum())
    found = Sure(sensitivity.criterion, sensitivity.contexts, sensitivity.count, sensitivity.samples, units, near)
    found = replace(found, unknown="" if sensitivity.error else why_unknown(sensitivity))
    if agreed is None:
        return found
    return replace(found, amount=agreed.amount, agreement=agreed.agreement, correlation=agreed.correlation)


def why_unknown(sensitivity: Measured) -> str:
    if not sensitivity.samples:
        return "the criterion needs no data"
    if sensitivity.keys:
        return "no context came in two pieces, so there are no halves of the data to compare"
    return "there was one context, or the criterion makes one score of all the data"


def share_of(values: Tensor, which: Tensor) -> float:
    """Of the sum of absolute values, the part of those."""
    sizes = normalised({"": values.double().abs()})[""]
    return float(sizes[which].sum())


def flat(values: Mapping[str, Tensor], names: list[str]) -> Tensor:
    parts = [values[name].detach().cpu().flatten() for name in names]
    return torch.cat([part.float() if part.dtype in (torch.float16, torch.bfloat16) else part for part in parts])
