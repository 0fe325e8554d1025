"""What leaves with a unit of a group, kept beside a plan as plain values, so that the plan can be explained without the model."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor

from .cost import COSTS, costs, prices
from .errors import Unreadable
from .floors import Limit, floors
from .plan import Plan
from .report.told import as_declared
from .scope import Scope, everywhere, of_plan
from .select import EACH, earlier, ranked
from .structure import Run, Structure, all_kept
from .structure.kinds import at_old_size, of_connections
from .structure.tiles import summed
from .tree import Keep, Scores

TOLD = 12  # operators that couple a group, at most


@dataclass(frozen=True)
class Coupled:
    """A group's units: what they are, and what each takes along.

    members, through: as in Group. stay: so many of its units had to stay, whatever their scores. block: so many leave at a time.
    saved: cost -> what a unit saves when it alone leaves the dense model: one number where all are alike, else one a unit.
    paths: of units that are modules, their paths. run: of which of its units so many stay, where the structure says so itself.
    """

    kind: str
    stay: int
    members: tuple[tuple[str, int], ...] = ()
    through: tuple[str, ...] = ()
    saved: dict[str, tuple[float, ...]] = field(default_factory=dict)
    paths: tuple[str, ...] = ()
    block: int = 1
    run: Run | None = None


@dataclass(frozen=True)
class Leaving:
    """groups: by name. ranking: the scores as the scope made them, a flat vector a group; the lowest left first. {} where it is unknown.

    Units that an earlier plan had removed have no place in it: theirs are not a number.
    """

    groups: dict[str, Coupled]
    ranking: Scores

    def to_json(self) -> str:
        return json.dumps({name: asdict(group) for name, group in self.groups.items()}, indent=1)

    @staticmethod
    def from_json(text: str, ranking: Scores) -> Leaving:
        """Raises Unreadable for a text that `to_json` did not write."""
        try:
            told = as_declared(dict[str, Coupled], json.loads(text), "the groups", {})
            assert isinstance(told, dict)
            return Leaving(told, ranking)
        except (ValueError, TypeError, RecursionError, AssertionError) as error:
            raise Unreadable(f"This is not what Secateur wrote of a structure: {error}. Prune again to have a new one.") from error


def leaving(
    structure: Structure,
    scores: Scores,
    plan: Plan,
    scope: Scope | None = None,
    within: Plan | Mapping[str, Tensor] | None = None,
) -> Leaving:
    """Of the structure that the plan was made of, and the scores that it was selected by. Raises BadInput where they do not fit.

    scope: the function, where the plan's was one that has no name of ours; without it the ranking is not known.
    within: the earlier plan that this one was selected within; without it the ranking is known of the global scope only.
    """
    made = plan.made
    name, blocks = str(made.get("scope", "global")), made.get("multiple", 1)
    chosen = scope or (everywhere if name == EACH else of_plan(name))
    stay = floors(structure.groups, limit(made.get("least"), 1), limit(made.get("most"), 1.0), names(made.get("keep")))
    paths: Mapping[str, tuple[str, ...]] = getattr(structure, "blocks", {})
    groups = {
        name: Coupled(
            group.kind, stay[name], own(structure, name), group.through[:TOLD], saved(structure, name), paths.get(name, ()),
            math.lcm(group.multiple, blocks if isinstance(blocks, int) else 1), group.run,
        )
        for name, group in structure.groups.items()
    }  # fmt: skip
    if chosen is None or (made.get("within") and within is None and chosen is not everywhere):
        return Leaving(groups, {})
    before = all_kept(structure) if within is None else earlier(within, structure)
    return Leaving(groups, spread(ranked(scores, before, chosen, structure), before))


def spread(ranking: Scores, there: Keep) -> Scores:
    """A flat vector of all units of a group from one of those that are there; the others are not a number."""
    whole = {}
    for name, values in ranking.items():
        if values.numel() == there[name].numel():
            whole[name] = values
        else:
            whole[name] = torch.full((there[name].numel(),), math.nan, dtype=values.dtype)
            whole[name][there[name].flatten()] = values
    return whole


def own(structure: Structure, name: str) -> tuple[tuple[str, int], ...]:
    """What is cut together; a connection, or a block of them, leaves alone."""
    return () if at_old_size(structure.kind) else structure.groups[name].members


def limit(value: object, otherwise: float) -> Limit:
    """What a plan tells of least= or most=; what it does not tell was left at its default."""
    return value if isinstance(value, (int, float, Mapping)) else otherwise


def names(value: object) -> list[str]:
    return [str(name) for name in value] if isinstance(value, list) else []


def saved(structure: Structure, name: str) -> dict[str, tuple[float, ...]]:
    """What one unit saves: C(all) - C(all but it), of every cost that can be counted. A group's channels are alike.

    Its layers are not, nor are blocks where the last of them are smaller.
    """
    counted = [of for of in COSTS if of != "units" and (of != "macs" or structure.uses)]
    if of_connections(structure.kind):
        return {of: (prices(structure, of)[name],) for of in counted}
    if at_old_size(structure.kind):
        sizes = summed(torch.ones(structure.shapes[name], dtype=torch.float64), structure.groups[name].block).flatten()
        number = sizes[:1] if (sizes == sizes[0]).all() else sizes
        return {of: tuple((number * prices(structure, of)[name]).tolist()) for of in counted}
    whole = all_kept(structure)
    before = costs(structure, whole)
    after = []
    for unit in range(structure.groups[name].size if structure.kind == "layers" else 1):
        less = whole[name].clone()
        less.view(-1)[unit] = False
        after.append(costs(structure, {**whole, name: less}))
    return {of: tuple(before[of] - then[of] for then in after) for of in counted}
