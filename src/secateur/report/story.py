"""Everything a report shows, as plain values: what was kept, why, and what it cost."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..errors import BadInput, Unreadable
from ..plan import Plan
from ..structure.kinds import at_old_size, n_of_m_in
from ..table import Table
from ..tree import Scores
from .depth import Depth, Measured, depth_of
from .told import as_declared

LISTED = 64  # units of a group that are listed one by one
BINS = 24  # of a group's histogram


@dataclass(frozen=True)
class Layer:
    """A group: how much of it is kept, its share of all the sensitivity, and how many units local sensitivity saved.

    protected: units that are kept, but would go by global sensitivity alone with as many removed; yielded: those that go in their place.
    """

    name: str
    size: int
    kept: int
    approximate: str = ""
    global_share: float | None = None
    local_share: float | None = None
    protected: int = 0
    yielded: int = 0


@dataclass(frozen=True)
class Unit:
    """Why one unit is kept or not. A rank counts from the unit that matters least, among those it was compared with."""

    index: str
    score: float
    rank: int
    kept: bool
    global_rank: int | None = None
    local_rank: int | None = None
    needs: str = ""
    protected: bool = False
    yielded: bool = False


@dataclass(frozen=True)
class Reasons:
    """A group's units against the cut. histogram: (from, to, removed, kept) in powers of ten; of: units that were compared."""

    group: str
    cut: float | None
    of: int
    zeros: int
    histogram: tuple[tuple[float, float, int, int], ...]
    units: tuple[Unit, ...]
    listed: str = ""


@dataclass(frozen=True)
class Story:
    """title, made (how, in words), machine (where, a line); table, with the row that the story is about; curve: series -> points with an
    "amount" and metrics; history: a dict per epoch of fine-tuning; frozen: what could not be touched, and why; depth: the sensitivity page;
    layer_curves: group -> points of what it alone does, the first at amount 0; curves_on: what both kinds of curves were measured on."""

    title: str
    table: Table
    subject: str = ""
    made: dict[str, str] = field(default_factory=dict)
    machine: str = ""
    structure: str = ""
    layers: tuple[Layer, ...] = ()
    reasons: tuple[Reasons, ...] = ()
    curve: dict[str, tuple[dict[str, float], ...]] = field(default_factory=dict)
    history: tuple[dict[str, float], ...] = ()
    frozen: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    depth: Depth | None = None
    layer_curves: dict[str, tuple[dict[str, float], ...]] = field(default_factory=dict)
    curves_on: str = ""

    def to_json(self) -> str:
        told = {key: value for key, value in asdict(self).items() if key != "table"}
        return json.dumps({**told, "table": json.loads(self.table.to_json())}, indent=1)

    @staticmethod
    def from_json(text: str) -> Story:
        """Raises Unreadable for a text that `to_json` did not write."""
        try:
            story = as_declared(Story, json.loads(text), "the story", {Table: lambda told, _: Table.from_json(json.dumps(told))})
            assert isinstance(story, Story)
            return story
        except (ValueError, TypeError, ArithmeticError, RecursionError, AssertionError) as error:
            raise Unreadable(f"This is not a report's story that Secateur wrote: {error}. Prune again to have a new one.") from error


APART = ("layer", "each")  # scopes in which a group's units compete with each other only


def story_of(
    plan: Plan,
    sensitivity: Measured | None = None,
    scores: Scores | None = None,
    table: Table | None = None,
    *,
    curve: Mapping[str, Sequence[Mapping[str, float]]] | None = None,
    history: Sequence[Mapping[str, object]] = (),
    local: float | str | None = None,
    title: str = "What was pruned, and what it cost",
    subject: str = "",
    machine: str = "",
    notes: Sequence[str] = (),
    by_rounds: bool = False,
    layer_curves: Mapping[str, Sequence[Mapping[str, float]]] | None = None,
    scoped: Callable[[Scores], Scores] | None = None,
    curves_on: str = "",
) -> Story:
    """The story of a plan. scores: the merged ones that it was selected by; local: the weight that local sensitivity had in them.

    layer_curves: group -> points with an "amount" and metrics, the first being the whole model's, at amount 0.
    curves_on: the data of both kinds of curves, in words ("validation split").

    by_rounds: the scores are those of the first of several rounds. The later ones decided by others, so that there is no one cut in these,
    and what local sensitivity protected cannot be told from them.
    scoped: what the plan's scope makes of scores; without it units are compared as they scored.
    Nor is there one where the structure says itself how much of every run of units stays.
    Units are compared within their group where the plan's scope is "layer" or "each", and all together elsewhere.
    """
    scope = plan.made.get("scope", "global")
    compared = scoped if scoped and scope not in ("global", *APART) else lambda values: values
    scores = {} if scores is None else {name: plain(value) for name, value in compared(scores).items()}
    keep = {name: value.cpu().flatten() for name, value in plan.keep.items()}
    groups = [name for name in keep if name in scores]
    pools = [[name] for name in groups] if scope in APART else [groups]
    sides = tuple(one_side(values, compared) for values in ([sensitivity.global_, sensitivity.local] if sensitivity else []))
    told: dict[str, tuple[Reasons, Layer]] = {}
    for pool in pools:
        told |= tell(pool, plan, keep, scores, sides or (None, None), sensitivity, by_rounds or n_of_m_in(plan.structure) is not None)
    shares = [share_of(values, keep) for values in ([sensitivity.global_, sensitivity.local] if sensitivity else [{}, {}])]
    layers = []
    for name, mask in keep.items():
        _, layer = told.get(name, (None, Layer(name, 0, 0)))
        layers.append(
            Layer(
                name,
                mask.numel(),
                int(mask.sum()),
                plan.approximate.get(name, ""),
                shares[0].get(name),
                shares[1].get(name),
                layer.protected,
                layer.yielded,
            )
        )
    unsaid = {"cut"} if by_rounds else set()
    made = {str(key): words(value) for key, value in plan.made.items() if value is not None and key not in unsaid} | (
        {} if local is None else {"local": words(local)}
    )
    table = Table({}, {}) if table is None else table
    return Story(
        title,
        table,
        subject or (list(table.rows)[-1] if table.rows else ""),
        made,
        machine,
        plan.structure,
        tuple(layers),
        tuple(told[name][0] for name in groups),
        {} if curve is None else {str(name): tuple(finite(point) for point in points) for name, points in curve.items()},
        tuple(finite(epoch) for epoch in history),
        dict(plan.frozen),
        tuple(notes),
        depth_of(plan.keep, sensitivity) if sensitivity else None,
        {} if layer_curves is None else {str(name): tuple(finite(point) for point in points) for name, points in layer_curves.items()},
        curves_on,
    )


def one_side(values: Scores, compared: Callable[[Scores], Scores]) -> Scores | None:
    """Global or local sensitivity alone, in the plan's scope; None where that does not take it (LAMP refuses what is negative)."""
    try:
        return compared(values)
    except BadInput:
        return None


def tell(
    pool: list[str],
    plan: Plan,
    keep: Scores,
    scores: Scores,
    sides: tuple[Scores | None, ...],
    sensitivity: Measured | None,
    by_rounds: bool,
) -> dict[str, tuple[Reasons, Layer]]:
    """Reasons and protection of groups whose units were compared with each other; sides: by global and by local sensitivity."""
    if not pool:
        return {}
    merged, kept = joined(scores, pool), joined(keep, pool)
    ordered = in_order(merged)
    cut = float(merged[~kept].max()) if not kept.all() and not by_rounds else None
    by_global, by_local = (None if values is None else joined(values, pool) for values in sides)
    protected = yielded = torch.zeros_like(kept)
    if by_global is not None and not by_rounds:
        alone = largest(by_global, int(kept.sum()))  # what global sensitivity alone would keep, with as many removed
        protected, yielded = kept & ~alone, ~kept & alone
    orders = [None if values is None else (values, in_order(values)) for values in (by_global, by_local)]
    told, start = {}, 0
    for name in pool:
        here = slice(start, start + scores[name].numel())
        start = here.stop
        chosen, listed = choose(scores[name], keep[name], not at_old_size(plan.structure))
        units = []
        for index in chosen:
            place = here.start + index
            by_each = [None if order is None else rank(order[0][place], order[1]) for order in orders]
            units.append(
                Unit(
                    position(index, plan.keep[name].shape),
                    float(merged[place]),
                    rank(merged[place], ordered),
                    bool(kept[place]),
                    by_each[0],
                    by_each[1],
                    needed_by(sensitivity, name, index),
                    bool(protected[place]),
                    bool(yielded[place]),
                )
            )
        zeros, histogram = histogram_of(scores[name], keep[name])
        reasons = Reasons(name, cut, len(merged), zeros, histogram, tuple(units), listed)
        told[name] = (reasons, Layer(name, 0, 0, protected=int(protected[here].sum()), yielded=int(yielded[here].sum())))
    return told


def choose(scores: Tensor, keep: Tensor, all_of_them: bool) -> tuple[list[int], str]:
    """Which units of a group are listed, least needed first, and what to say of those that are not.

    All channels (or layers) up to LISTED, then those nearest the cut; of connections the strongest removed and the weakest kept.
    """
    count = len(scores)
    if all_of_them and count <= LISTED:
        return [int(index) for index in scores.argsort(stable=True)], ""
    each = LISTED // 2 if all_of_them else 6
    gone, stay = (~keep).nonzero().flatten(), keep.nonzero().flatten()
    strongest = gone[scores[gone].topk(min(each, len(gone))).indices].flip(0)
    weakest = stay[scores[stay].topk(min(each, len(stay)), largest=False).indices]
    parts = [(len(strongest), "strongest that went"), (len(weakest), "weakest that stayed")]
    said = f"Of {count:,} units, " + " and ".join(f"the {number} {which}" for number, which in parts if number) + "."
    return [int(index) for index in torch.cat([strongest, weakest])], said


def histogram_of(scores: Tensor, keep: Tensor) -> tuple[int, tuple[tuple[float, float, int, int], ...]]:
    """How many scores are not above 0, and of the others (from, to, removed, kept) on a logarithmic axis."""
    above = scores > 0
    zeros = int((~above).sum())
    if zeros == len(scores):
        return zeros, ()
    powers, kept = scores[above].log10(), keep[above]
    low, high = float(powers.min()), float(powers.max())
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    width = (high - low) / BINS
    bins = ((powers - low) / width).long().clamp(0, BINS - 1)
    removed, stayed = (torch.bincount(bins[which], minlength=BINS).tolist() for which in (~kept, kept))
    return zeros, tuple((low + number * width, low + (number + 1) * width, removed[number], stayed[number]) for number in range(BINS))


def joined(values: Mapping[str, Tensor], pool: list[str]) -> Tensor:
    return torch.cat([plain(values[name]) for name in pool])


def plain(value: Tensor) -> Tensor:
    """In one row on the CPU, in a type that numpy has."""
    value = value.detach().cpu().flatten()
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value


Ordered = npt.NDArray[np.floating[npt.NBitBase]]


def in_order(values: Tensor) -> Ordered:
    """From small to large; by numpy, which sorts millions of numbers ten times as fast."""
    return np.sort(values.numpy())


def rank(value: Tensor, ordered: Ordered) -> int:
    return int(np.searchsorted(ordered, value.numpy())) + 1


def largest(values: Tensor, count: int) -> Tensor:
    """Which are the `count` largest; of equals, the later ones."""
    if not count:
        return torch.zeros_like(values, dtype=torch.bool)
    edge = torch.from_numpy(np.partition(values.numpy(), -count))[-count]
    chosen = values > edge
    equal = (values == edge).nonzero().flatten()
    chosen[equal[len(equal) - (count - int(chosen.sum())) :]] = True
    return chosen


def needed_by(sensitivity: Measured | None, group: str, index: int) -> str:
    """The class (or other key) in which the unit scores highest."""
    if sensitivity is None or not sensitivity.keys:
        return ""
    needs = {key: float(scores[group].flatten()[index]) for key, scores in sensitivity.keys.items()}
    most = max(needs, key=lambda key: needs[key])
    return most if needs[most] > 0 else ""


def share_of(values: Mapping[str, Tensor], groups: Mapping[str, Tensor]) -> dict[str, float]:
    """Each group's share of the sum over all groups."""
    sums = {name: float(values[name].abs().sum(dtype=torch.float64)) for name in groups if name in values}
    total = sum(sums.values())
    return {name: value / total for name, value in sums.items()} if total else {}


def position(index: int, shape: torch.Size) -> str:
    """A unit's place: its number, or its place in a weight tensor."""
    if len(shape) < 2:
        return str(index)
    return ", ".join(str(int(place)) for place in torch.unravel_index(torch.tensor(index), shape))


def finite(values: Mapping[str, object]) -> dict[str, float]:
    """The numbers among the values; JSON knows no infinity."""
    return {str(key): float(value) for key, value in values.items() if isinstance(value, (int, float)) and abs(value) < float("inf")}


def words(value: object) -> str:
    """A value of how a plan was made, as it is read."""
    if isinstance(value, dict):
        return ", ".join(f"{key}: {words(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(words, value))
    if isinstance(value, float):
        return f"{value:.6g}"
    return "–" if value is None else str(value)
