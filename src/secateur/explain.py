"""Why a unit went, or stayed: its score against the cut, what it cost, who needed it, and what would have gone instead.

A rank counts from the unit that matters least: the units that score lower, and one.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from .errors import BadInput
from .explanation import Explanation, Need
from .leaving import Coupled, Leaving, leaving
from .order import INSTEAD, Leaves, blocks_known, cut_of, flat, leaves, position, queue
from .plan import Plan
from .report.story import words
from .scope import Scope
from .select import EACH
from .sensitivity import Sensitivity
from .structure import Run, Structure
from .structure.kinds import n_of_m_in, word
from .tree import Scores

NEEDS = 8  # keys that are told
ASKED = ("amount", "budget", "drop", "threshold", "share of its group")
EARLIER = "an earlier plan, which this one was made within, had removed it."


def explain(
    plan: Plan,
    sensitivity: Sensitivity,
    scores: Scores,
    unit: str,
    structure: Structure | Leaving | None = None,
    *,
    scope: Scope | None = None,
    within: Plan | Mapping[str, Tensor] | None = None,
) -> Explanation:
    """Why the plan removed the unit "group:place" or kept it. place: its number, of a connection its index ("conv1.weight:3,5,1,1").

    sensitivity, scores: what the plan was selected by (of a gradual plan: those of the first round).
    structure: it tells what the unit takes along and how the scope ranked it. Without it the first is not told, and the second only of
        the global scope, which ranks scores as they are.
    scope: the scope of the user's own that the plan was selected by; without it how it ranked is not told.
    within: the earlier plan that the plan was selected within.
    The cut is the plan's own, and units that leave in blocks (multiple=) are ranked by their block's mean, as `select` ranked them.
    Raises BadInput, with the nearest names, where there is no such unit, or where the values are of another model.
    """
    check(plan, scores, sensitivity.global_, sensitivity.local)
    facts = leaving(structure, scores, plan, scope, within) if structure is not None and not isinstance(structure, Leaving) else structure
    group, place = found(plan, unit, facts)
    coupled = facts.groups.get(group) if facts else None
    ranking = facts.ranking if facts and facts.ranking else scores
    left = {name: leaves(flat(ranking[name]), plan, facts.groups.get(name) if facts else None) for name in plan.keep}
    marks = {name: each.marks for name, each in left.items()}
    known = (ranking is not scores or plan.made.get("scope", "global") in ("global", EACH)) and blocks_known(plan, left)
    keep = {name: mask.flatten().cpu() for name, mask in plan.keep.items()}
    rounds, each = plan.made.get("round"), plan.made.get("scope") == EACH
    cut = None if rounds or not known else cut_of(plan, {group: marks[group]} if each else marks)
    value = float(marks[group][place])
    earlier = math.isnan(value)
    if earlier:
        value = float(flat(scores[group])[place])
    kept = bool(keep[group][place])
    mean = float(flat(sensitivity.global_[group])[place])
    error = float(flat(sensitivity.error[group])[place]) if sensitivity.error else None
    by_global, by_local = (below(values, keep, group, place) + 1 for values in (sensitivity.global_, sensitivity.local))
    ordered = [] if rounds or not known or n_of_m_in(plan.structure) else queue(plan, {group: left[group]} if each else left, cut)
    said = [*notes(plan, group, sensitivity, coupled), *doubts(plan, value, mean, error, cut), *global_alone(plan, by_global, kept)]
    name = f"{group}:{position(place, plan.keep[group])}"
    return Explanation(
        unit=name + (f" ({coupled.paths[place]})" if coupled and coupled.paths else ""),
        kind=coupled.kind if coupled else word(plan.structure),
        kept=kept,
        why=EARLIER if earlier else because(plan, group, place, cut, kept, left[group], coupled, known),
        how=how(plan, group),
        score=float(flat(scores[group])[place]),
        ranked_by=value,
        rank=below(marks, keep, group, place) + 1,
        of=sum(mask.numel() for mask in keep.values()),
        group_rank=int((marks[group] < value).count_nonzero()) + 1,
        group_size=keep[group].numel(),
        cut=cut,
        global_rank=by_global,
        local_rank=by_local,
        global_share=mean,
        local_share=float(flat(sensitivity.local[group])[place]) / (total(sensitivity.local) or 1.0),
        error=error,
        saved={of: values[place if len(values) > 1 else 0] for of, values in coupled.saved.items()} if coupled else {},
        whole=dict(plan.cost),
        contexts=sensitivity.contexts,
        needs=needs(sensitivity, keep, group, place),
        instead=tuple(other for other in ordered if name not in (other.unit, *other.block))[:INSTEAD],
        members=own(coupled, place) if coupled else (),
        through=coupled.through if coupled else (),
        notes=tuple(said),
    )


# which unit ---------------------------------------------------------------------------------------------------------------------------


def found(plan: Plan, unit: str, facts: Leaving | None) -> tuple[str, int]:
    """The group and the place of its name. Raises BadInput with the nearest names."""
    for name, group in (facts.groups if facts else {}).items():
        if unit in group.paths:
            return name, group.paths.index(unit)
    name, sign, text = unit.rpartition(":")
    if not sign:
        name, text = unit, ""
    if name in plan.frozen:
        raise BadInput(f"No unit of {name} could leave: {plan.frozen[name].rstrip('.')}. Ask about a unit of {nearest(name, plan.keep)}.")
    if name not in plan.keep:
        paths = [path for group in facts.groups.values() for path in group.paths] if facts else []
        units = f"{word(plan.structure)}s"
        near = nearest(name, [*plan.keep, *paths])
        raise BadInput(f"There is no group {name!r} in this plan. The nearest: {near}. Its units are {units}.")
    mask = plan.keep[name]
    last = ",".join(str(size - 1) for size in mask.shape)
    place = place_of(text, mask)
    if place is None:
        raise BadInput(
            f"There is no unit {text!r} in {name}, which has {mask.numel():,} units. Give {name}:0 to {name}:{last}."
            if text
            else f"{name} has {mask.numel():,} units. Say which: {name}:0 to {name}:{last}."
        )
    return name, place


def place_of(text: str, mask: Tensor) -> int | None:
    """ "5", or an index in each dimension: "3,5,1,1"; None where there is none."""
    parts = [part.strip() for part in text.strip("[]() ").split(",")]
    if not all(part.isascii() and part.isdecimal() and len(part) < 12 for part in parts):
        return None
    index = [int(part) for part in parts]
    if len(index) == 1:
        return index[0] if index[0] < mask.numel() else None
    if len(index) != mask.dim() or any(number >= size for number, size in zip(index, mask.shape)):
        return None
    return sum(number * math.prod(mask.shape[dim + 1 :]) for dim, number in enumerate(index))


def nearest(name: str, names: Iterable[str]) -> str:
    known = list(names)
    close = difflib.get_close_matches(name, known, 3, 0.4) or [other for other in known if name and name in other][:3]
    return ", ".join(close or known[:3]) or "another plan, since nothing could leave here"


def check(plan: Plan, *values: Scores) -> None:
    """Raises BadInput where they have other units."""
    for scores in values:
        for name, mask in plan.keep.items():
            if name not in scores or scores[name].numel() != mask.numel():
                raise BadInput(f"The scores are not of this plan: they do not have the {mask.numel():,} units of {name}. Give its own.")


# why ----------------------------------------------------------------------------------------------------------------------------------


def why(plan: Plan, group: str, value: float, cut: float | None, kept: bool, left: Leaves) -> str:
    """A sentence."""
    size, stays = plan.keep[group].numel(), int(plan.keep[group].sum())
    if plan.made.get("round"):
        return f"{stays:,} of the {size:,} units of its group stay, after rounds that each measured anew."
    if cut is None:
        return "nothing of its group was removed." if plan.made.get("scope") == EACH else "nothing was removed."
    against = f"{value / cut:.2f} times the cut ({cut:.3g})" if cut > 0 else f"{value:.3g}, the cut is {cut:.3g}"
    against = f"the mean of its block of up to {left.block} is {against}" if left.block > 1 else f"its score is {against}"
    if not kept:
        return EARLIER if value > cut and plan.made.get("within") else f"{against}."
    if value > cut:
        return f"{against}."
    if stays - left.block < left.stay:
        return f"{against}, but its group keeps {stays:,} of {size:,} units, and no fewer may stay."
    return f"{against}, but of equal scores the later stay."


def because(
    plan: Plan, group: str, place: int, cut: float | None, kept: bool, left: Leaves, coupled: Coupled | None, known: bool
) -> str:
    """A sentence, by what decided: its run, the cut, or what is not known."""
    if (counts := n_of_m_in(plan.structure)) is not None:
        n, m = counts
        if bool(plan.keep[group].all()):
            return "its whole weight was left as it is."
        if coupled is None or coupled.run is None:
            return f"of every {m} connections that follow each other along the inputs the {n} best stay."
        ahead = ahead_of(left.marks.view(plan.keep[group].shape), place, coupled.run)
        return f"{ahead} of its run of {m} connections along dimension {coupled.run.dim} score higher, and the {n} best stay."
    return why(plan, group, float(left.marks[place]), cut, kept, left) if known else unknown(plan, group)


def ahead_of(values: Tensor, place: int, run: Run) -> int:
    """How many of its run stay before it does: those that score higher, and of equals the later."""
    index = [int(part) for part in torch.unravel_index(torch.tensor(place), values.shape)]
    start, line = index[run.dim] // run.m * run.m, values.movedim(run.dim, -1)
    own = line[tuple(part for dim, part in enumerate(index) if dim != run.dim)][start : start + run.m].nan_to_num(nan=-math.inf)
    mine = index[run.dim] - start
    return int((own > own[mine]).sum() + (own[mine + 1 :] == own[mine]).sum())


def unknown(plan: Plan, group: str) -> str:
    """Where another scope than the global one decided, and what it made of the scores is not there."""
    left = f"{int(plan.keep[group].sum()):,} of the {plan.keep[group].numel():,} units of its group stay"
    return f"{left}, as the scope {plan.made.get('scope')} ranked them, which was not kept beside this plan."


def how(plan: Plan, group: str) -> str:
    """The settings that the ranking and the cut come from."""
    made, shares = plan.made, plan.made.get("amounts")
    if isinstance(shares, dict):
        made = {**made, "amount": None if made.get("budget") else made.get("amount"), "share of its group": shares.get(group, 0.0)}
    asked = [f"{name} {words(made[name])}" for name in ASKED if made.get(name) is not None] or [plan.structure]
    of = f" of {made['of']}" if isinstance(made.get("amount"), float) and isinstance(made.get("of"), str) else ""
    local = f", local {made['local']}" if made.get("local") else ""
    return f"scope {made.get('scope', 'global')}, {'; '.join(asked)}{of}{local}"


def notes(plan: Plan, group: str, sensitivity: Sensitivity, coupled: Coupled | None) -> Iterable[str]:
    if plan.made.get("round"):
        yield "scores are of the first round, on the dense model; later rounds measured anew on the smaller one, so there is no one cut"
    if group in plan.approximate:
        yield f"removing it is not quite the same as zeroing it: {plan.approximate[group]}"
    if coupled is None:
        yield "what leaves with it was not kept beside this plan"
    if not sensitivity.keys:
        yield f"measured by {sensitivity.contexts}: who needs it is known where contexts have keys (--contexts class)"


def doubts(plan: Plan, value: float, mean: float, error: float | None, cut: float | None) -> Iterable[str]:
    """Where the ranking is by global sensitivity as it is, whose error is known."""
    if error and cut is not None and value == mean and plan.made.get("scope", "global") == "global" and abs(value - cut) < 2 * error:
        yield f"its score is {abs(value - cut) / error:.1f} standard errors from the cut: other data could have decided otherwise"


def global_alone(plan: Plan, rank: int, kept: bool) -> Iterable[str]:
    """Where units were ranked as they scored, whether local sensitivity changed what became of this one."""
    made = plan.made
    alone = made.get("multiple", 1) == 1 and not made.get("within") and made.get("scope", "global") == "global"
    if made.get("round") or not alone or not made.get("local") or n_of_m_in(plan.structure):
        return
    goes = rank <= sum(gone for gone, _ in plan.removed().values())
    if goes == kept:
        yield (
            "by global sensitivity alone it would have gone: local sensitivity protects it"
            if kept
            else ("by global sensitivity alone it would have stayed: it went in the place of one that local sensitivity protects")
        )


def needs(sensitivity: Sensitivity, keep: Scores, group: str, place: int) -> tuple[Need, ...]:
    """Keys by the unit's share of their sensitivity."""
    units = sum(mask.numel() for mask in keep.values())
    shares = {key: float(flat(scores[group])[place]) for key, scores in sensitivity.keys.items()}
    chosen = sorted(shares, key=lambda key: -shares[key])[:NEEDS]
    return tuple(Need(key, shares[key], below(sensitivity.keys[key], keep, group, place) / units) for key in chosen)


def own(coupled: Coupled, place: int) -> tuple[tuple[str, int], ...]:
    """Of a unit that is a module, its own tensors."""
    if not coupled.paths:
        return coupled.members
    return tuple(member for member in coupled.members if member[0].startswith(f"{coupled.paths[place]}."))


def below(values: Scores, keep: Scores, group: str, place: int) -> int:
    """How many units score lower."""
    value = flat(values[group])[place]
    return sum(int((flat(values[name]) < value).count_nonzero()) for name in keep)


def total(values: Scores) -> float:
    return sum(float(value.abs().sum(dtype=torch.float64)) for value in values.values())
