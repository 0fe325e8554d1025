"""Which units go: the lowest-ranked, until the plan, measured as a whole, fits the budget.

All selections of one call lie on one nested path: units (or blocks of them) in the order of their scores, no group ever emptied. `removal`
finds the step at which every unit leaves; what is kept after n steps is `step >= n`; the budget is met by bisection on n.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from .cost import cost, costs
from .errors import BadInput, BudgetUnreachable, PlanMismatch
from .plan import Plan
from .scope import SCOPES, Scope
from .structure import Group, Structure, all_kept, check_prunable
from .tree import Keep, Scores

ROUNDING = 1e-12  # of the total cost: (1 - 0.9) * 10 is a little less than 1


def select(
    scores: Scores,
    structure: Structure,
    amount: float | None = None,
    of: str = "units",
    scope: str | Scope = "global",
    threshold: float | None = None,
    multiple: int = 1,
    within: Plan | Mapping[str, Tensor] | None = None,
    **made: object,
) -> Plan:
    """A plan that removes the least important units: as many as `amount` asks for, or all below `threshold`.

    amount: the fraction removed, 0..1, of the whole model's `of` ("units" counts the structure's units; "parameters", "macs" and "bytes"
        count everything, prunable or not). It is measured on the plan, reached, and overshot by less than one unit (or block).
    scope: how groups are made comparable: "global", "layer" (the same fraction of each), or a function of the scores.
    threshold: remove every unit whose score, as the scope makes it, is lower.
    multiple: a group that loses anything keeps a multiple of this many units; they leave in blocks, ranked by their mean. Groups that lose
        nothing stay as they are.
    within: an earlier plan: what it removed stays removed and counts.
    made: anything else the plan should remember of how it was made (JSON values).

    A group keeps at least its highest-scored unit (or block). Equal scores leave in the order of the structure.
    Raises BadInput, and BudgetUnreachable naming the largest amount within reach.
    """
    check_prunable(structure)
    check_scores(scores, structure)
    if (amount is None) == (threshold is None):
        raise BadInput("Give either amount= (the fraction to remove, 0..1) or threshold= (remove all units below this score).")
    if isinstance(multiple, bool) or not isinstance(multiple, int) or multiple < 1:
        raise BadInput(f"multiple= must be a whole number of at least 1, but it is {multiple!r}. Try multiple=8.")
    before = all_kept(structure)
    keep = before if within is None else earlier(within, structure)
    leaves, cuts = removal(ranked(scores, keep, scope), keep, structure.groups, multiple)
    last = len(cuts)
    steps = steps_to(leaves, last, fraction(amount), of, structure) if threshold is None else int((cuts < finite(threshold)).sum())
    keep = kept_after(leaves, steps)
    settings: dict[str, object] = {
        "amount": amount,
        "of": of,
        "scope": scope if isinstance(scope, str) else getattr(scope, "__name__", type(scope).__name__),
        "threshold": threshold,
        "multiple": multiple,
        "cut": float(cuts[steps - 1]) if steps else None,
        **made,
    }
    return plan_of(structure, keep, settings)


def plan_of(structure: Structure, keep: Keep, made: dict[str, object]) -> Plan:
    """The record of keeping exactly these units of the structure."""
    start, end = costs(structure, all_kept(structure)), costs(structure, keep)
    return Plan(
        structure=structure.kind,
        keep=keep,
        kept=structure.kept(keep),
        sizes=structure.sizes(keep),
        shapes=dict(structure.shapes),
        digest=structure.digest,
        cost={name: (value, end[name]) for name, value in start.items()},
        made=made,
        approximate={name: group.approximate for name, group in structure.groups.items() if group.approximate},
        frozen={name: group.frozen for name, group in structure.frozen.items()},
        divided=structure.divided,
        skipped=structure.skipped(keep),
    )


def ranked(scores: Scores, keep: Keep, scope: str | Scope) -> Scores:
    """The scores that units are ranked by: a flat vector a group, of the units that are still there."""
    if isinstance(scope, str) and scope not in SCOPES:
        raise BadInput(f"There is no scope {scope!r}. Choose {', '.join(SCOPES)}, or give a function of the scores.")
    there = {name: scores[name].detach().cpu()[mask] for name, mask in keep.items()}
    ranking = (SCOPES[scope] if isinstance(scope, str) else scope)(there)
    for name, values in there.items():
        if name not in ranking or ranking[name].shape != values.shape or not torch.isfinite(ranking[name]).all():
            raise BadInput(
                f"The scope did not give one finite number for each of the {len(values)} units of {name}. Return one for every unit."
            )
    return {name: ranking[name] for name in there}


def removal(ranking: Scores, keep: Keep, groups: Mapping[str, Group], multiple: int) -> tuple[dict[str, Tensor], Tensor]:
    """The order of removal: for every unit the step at which it leaves (-1: it left earlier), and for every step the score it removes.

    Units that have to stay leave at a step beyond the last.
    """
    parts = [blocks(values, math.lcm(multiple, groups[name].multiple), groups[name].least) for name, values in ranking.items()]
    marks = torch.cat([mark for _, mark in parts])
    ordered, order = marks.sort(stable=True)
    small = torch.int32 if len(order) < 2**31 else torch.int64  # the bisection reads all of it again and again
    step = torch.empty(len(order), dtype=small).scatter_(0, order, torch.arange(len(order), dtype=small))
    leaves, start = {}, 0
    for (name, mask), (block, mark) in zip(keep.items(), parts):
        leaves[name] = torch.full(mask.shape, -1, dtype=small)
        leaves[name][mask] = step[start : start + len(mark)][block]
        start += len(mark)
    return leaves, ordered[: int(torch.isfinite(ordered).count_nonzero())]


def blocks(values: Tensor, multiple: int, least: int = 1) -> tuple[Tensor, Tensor]:
    """The block every unit of a group leaves in, and every block's score: its mean, or infinity for those that have to stay.

    Of n units the lowest n % multiple leave first (where there are any), then `multiple` at a time, until the highest `multiple` are left.
    """
    count = len(values)
    if count <= max(multiple, least):
        return torch.zeros(count, dtype=torch.int64), torch.full((1,), math.inf, dtype=values.dtype)
    if multiple == 1:
        marks = values.clone()
        stay = values.argsort(stable=True)[count - least :]
        marks[stay] = math.inf  # an empty layer would cut the network in two
        return torch.arange(count), marks
    order = values.argsort(stable=True)
    block = torch.empty_like(order)
    block[order] = torch.div(torch.arange(count) + -count % multiple, multiple, rounding_mode="floor")
    sizes = block.bincount()
    means = torch.zeros(len(sizes), dtype=torch.float64).index_add_(0, block, values.double()) / sizes
    marks = means.cummax(0).values  # rounding must not turn the order round
    marks[-math.ceil(least / multiple) :] = math.inf
    return block, marks


def kept_after(leaves: Mapping[str, Tensor], steps: int) -> Keep:
    return {name: step >= steps for name, step in leaves.items()}


def steps_to(leaves: Mapping[str, Tensor], last: int, amount: float, of: str, structure: Structure) -> int:
    """The smallest number of steps after which the cost is at most (1 - amount) of the whole."""

    def price(steps: int) -> float:
        return cost(structure, kept_after(leaves, steps), of)

    whole = cost(structure, all_kept(structure), of)
    target = (1 - amount + ROUNDING) * whole
    if (least := price(last)) > target:
        reachable = math.floor((1 - least / whole) * 10_000) / 10_000
        raise BudgetUnreachable(
            f"An amount of {amount:g} is out of reach: at most {reachable:g} of {of} can be removed here, "
            "since every group keeps something. Ask for less."
        )
    low, high = 0, last
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if price(middle) <= target else (middle + 1, high)
    return low


def earlier(within: Plan | Mapping[str, Tensor], structure: Structure) -> Keep:
    """The units an earlier plan kept. Raises PlanMismatch, naming the first difference."""
    keep = within.keep if isinstance(within, Plan) else within
    for name in [*structure.groups, *keep]:
        now = structure.groups[name].shape if name in structure.groups else None
        then = tuple(keep[name].shape) if name in keep else None
        if now != then:
            raise PlanMismatch(
                f"The earlier plan has {then or 'no units'} in the group {name}, but the structure has {now or 'none'}. "
                "Select within a plan of the same structure."
            )
    return {name: keep[name].cpu().bool() for name in structure.groups}


def check_scores(scores: Scores, structure: Structure) -> None:
    """Raises BadInput, naming the first group that does not fit."""
    for name in [*structure.groups, *scores]:
        if name not in scores or name not in structure.groups:
            place = "structure, but not in the scores" if name not in scores else "scores, but not in the structure"
            raise BadInput(f"The group {name} is in the {place}. Use scores that were measured on this structure.")
        if tuple(scores[name].shape) != structure.groups[name].shape:
            raise BadInput(
                f"The group {name} has units {structure.groups[name].shape}, but scores {tuple(scores[name].shape)}. "
                "Use scores that were measured on this structure."
            )
        if not torch.isfinite(scores[name]).all():
            raise BadInput(f"The scores of the group {name} are not all finite, so they cannot be ranked. Measure again.")


def finite(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise BadInput(f"threshold= must be a finite number, but it is {value!r}. Units with a lower score are removed.")
    return float(value)


def fraction(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise BadInput(f"The amount is the fraction to remove, in 0..1, but it is {value!r}. Try amount=0.5.")
    return float(value)
