"""How much each layer loses, chosen exactly: the least sum of measured losses whose costs fit the budget.

    minimise  sum over layers l of loss_l(level_l)    subject to    sum over l of cost_l(level_l) <= budget

by dynamic programming over the budget (Frantar and Alistarh, 2022, "SPDY", section 3):

    best_l(b) = min over levels of best_{l-1}(b - cost_l(level)) + loss_l(level)
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import numpy as np

from .budget import Amount, Budget, Of, Target, targets
from .cost import cost
from .errors import BadInput, BudgetUnreachable
from .floors import Limit
from .path import first_met
from .plan import Plan
from .select import limits_told, plain, select_each
from .structure import Structure, all_kept
from .tree import Scores

Levels = Mapping[str, Mapping[float, float]]  # layer -> level (an amount removed, say) -> its loss, or its cost
BUCKETS = 10_000
EXACT = 1_000_000  # whole units of cost up to which a budget is not rounded
SEARCH = 12  # halvings of what the sum of single savings is trusted by


def allocate(losses: Levels, costs: Levels, budget: float, buckets: int = BUCKETS) -> dict[str, float]:
    """The level of every layer such that the costs sum to at most `budget` and the losses to the least that is possible then.

    Exact where all costs are whole numbers (and the budget is up to a million of their greatest common divisor). Others are counted in
    `buckets` parts of what the budget leaves beyond the cheapest levels, rounded up: the budget is met, and the losses are no larger than
    the best for a budget that is smaller by a bucket a layer. Of equal sums the levels that come first in `losses` are taken.
    Raises BudgetUnreachable where even the cheapest levels cost more, and BadInput where losses and costs do not fit together.
    """
    check_levels(losses, costs)
    if isinstance(budget, bool) or not math.isfinite(budget):
        raise BadInput(f"The budget is the most that the costs may sum to, a finite number, but it is {budget!r}.")
    if isinstance(buckets, bool) or not isinstance(buckets, int) or buckets < 1:
        raise BadInput(f"buckets= must be a whole number of at least 1, but it is {buckets!r}. Try buckets={BUCKETS}.")
    cheapest = {layer: min(costs[layer].values()) for layer in losses}
    spare = budget - sum(cheapest.values())
    if spare < 0:
        raise BudgetUnreachable(
            f"A budget of {budget:g} is out of reach: the cheapest levels cost {budget - spare:g} together. "
            "Allow more, or measure more levels."
        )
    extra = {layer: {level: value - cheapest[layer] for level, value in costs[layer].items()} for layer in losses}
    unit, room = unit_of([value for levels in extra.values() for value in levels.values()], spare, buckets)
    best, choices = np.zeros(room + 1), []
    for layer, levels in losses.items():
        reached = np.full(room + 1, np.inf)
        choice = np.zeros(room + 1, np.uint8 if len(levels) < 256 else np.uint16)
        for number, (level, loss) in enumerate(levels.items()):
            taken = math.ceil(extra[layer][level] / unit - 1e-9) if unit else 0
            if taken > room:
                continue
            now = best[: room + 1 - taken] + loss
            better = now < reached[taken:]
            reached[taken:][better] = now[better]
            choice[taken:][better] = number
        best = reached
        choices.append(choice)
    chosen: dict[str, float] = {}
    for layer, choice in reversed([*zip(losses, choices)]):
        level = list(losses[layer])[int(choice[room])]
        chosen[layer] = level
        room -= math.ceil(extra[layer][level] / unit - 1e-9) if unit else 0
    return {layer: chosen[layer] for layer in losses}


def unit_of(values: list[float], spare: float, buckets: int) -> tuple[float, int]:
    """What the costs are counted in, and how much of it there is."""
    if all(float(value).is_integer() for value in values):
        unit = float(math.gcd(*(int(value) for value in values)))
        if unit == 0 or spare / unit <= EXACT:
            return unit, int(spare // unit) if unit else 0
    return spare / buckets, buckets if spare else 0


def check_levels(losses: Levels, costs: Levels) -> None:
    """Raises BadInput, naming the layer, unless both have the same levels of the same layers, all of them finite."""
    if not losses:
        raise BadInput("There is no layer to allocate to. Give the losses of at least one.")
    for layer in [*losses, *costs]:
        if layer not in losses or layer not in costs or set(losses[layer]) != set(costs[layer]) or not losses[layer]:
            raise BadInput(f"The layer {layer} has not the same levels in the losses and in the costs. Measure both at the same ones.")
        if not all(math.isfinite(value) for value in [*losses[layer].values(), *costs[layer].values()]):
            raise BadInput(f"The layer {layer} has a loss or a cost that is not finite. Measure it again, or leave that level out.")


def select_by_curves(
    scores: Scores,
    structure: Structure,
    losses: Levels,
    amount: Amount | None = None,
    of: Of = "macs",
    *,
    budget: Budget | None = None,
    multiple: int = 1,
    least: Limit = 1,
    most: Limit = 1.0,
    keep: Collection[str] = (),
    **made: object,
) -> Plan:
    """A plan in which every group loses its lowest units, as many as `allocate` gives it under one budget.

    losses: group -> amount -> by how much the loss grows when the group alone loses that share of its units: `Curves.losses`. Amount 0 is
        taken to cost nothing where it is missing. Groups without a curve stay whole.
    amount, of, budget: as in `select`, of one cost. What groups save together is less than the sum of what each saves alone, so the solver
        is asked for more, as little more as will do, until the plan, measured as a whole, meets the budget. It may overshoot it by a level.
    Raises BadInput, and BudgetUnreachable where the largest amounts of all curves do not meet the budget.
    """
    whole = all_kept(structure)
    asked = targets(amount, budget, of, structure, whole, limits_told(least, most, keep))
    if len(asked) != 1:
        raise BadInput(f"The solver meets one budget, but {len(asked)} were asked for. Give one amount or one budget.")
    target: Target = asked[0]
    if unknown := [name for name in losses if name not in structure.groups]:
        raise BadInput(f"The curves have a group {unknown[0]}, which is not in the structure. Measure them on this structure.")
    curves = {name: {0.0: 0.0, **levels} for name, levels in losses.items()}

    def plan(amounts: Mapping[str, float], **more: object) -> Plan:
        return select_each(scores, structure, amounts, multiple, least=least, most=most, keep=keep, more=[target], **more)

    def value(amounts: Mapping[str, float]) -> float:
        return cost(structure, plan(amounts).keep, target.cost)

    saved = {name: {level: target.whole - value({name: level}) for level in levels} for name, levels in curves.items()}
    costs = {name: {level: max(levels.values()) - each for level, each in levels.items()} for name, levels in saved.items()}
    every = sum(max(levels.values()) for levels in saved.values())
    cheapest = {name: max(levels, key=lambda level: levels[level]) for name, levels in saved.items()}
    if not target.met(least_cost := value(cheapest)):
        raise BudgetUnreachable(target.out_of_reach(least_cost))
    needed = min(every, max(0.0, target.whole - target.most))
    found: dict[int, dict[str, float]] = {}

    def met(step: int) -> bool:
        found[step] = allocate(curves, costs, every - needed - (every - needed) * step / 2**SEARCH)
        return target.met(value(found[step]))

    step = first_met(2**SEARCH, met)
    asked_for = {"amount": plain(amount)} | ({} if budget is None else {"budget": plain(budget)})
    return plan(found.get(step, cheapest), of=target.name, **asked_for, **made)
