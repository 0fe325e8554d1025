"""Which units go: the lowest-ranked, until the plan, measured as a whole, fits the budget.

All selections of one call lie on one nested path: units (or blocks of them) in the order of their scores, no group ever emptied. `removal`
finds the step at which every unit leaves; what is kept after n steps is `step >= n`; the budget is met by bisection on n. Connections, of
which there may be very many, take the same path without being sorted (`connections.py`).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from .budget import ROUNDING, Amount, Budget, Of, Target, fraction, targets
from .connections import countable, lowest_below, lowest_under
from .cost import Cost, costs, named
from .errors import BadInput, BudgetUnreachable, PlanMismatch
from .floors import Limit, floors
from .path import first_met, kept_after, removal
from .plan import Plan
from .pulled import pulled
from .runs import best_of_runs
from .scope import SCOPES, Scope
from .structure import Structure, all_kept, check_prunable
from .structure.kinds import n_of_m_in, refuse_amount
from .tree import Keep, Scores

EACH = "each"  # what a plan says of its scope where every group lost a share of its own


def select(
    scores: Scores,
    structure: Structure,
    amount: Amount | None = None,
    of: Of = "units",
    scope: str | Scope = "global",
    threshold: float | None = None,
    multiple: int = 1,
    within: Plan | Mapping[str, Tensor] | None = None,
    *,
    budget: Budget | None = None,
    least: Limit = 1,
    most: Limit = 1.0,
    keep: Collection[str] = (),
    **made: object,
) -> Plan:
    """A plan that removes the least important units: as many as `amount` and `budget` ask for, or all below `threshold`.

    amount: the fraction removed, 0..1, of the whole model's `of` ("units" counts the structure's units; "parameters", "macs" and "bytes"
        count everything, prunable or not); or fractions of several costs by their names, all of which are met. It is measured on the plan,
        reached, and overshot by less than one unit (or block).
    of: a cost by name, or a function of the structure and what is kept (`Latency`, `Activations`), or several of those by name.
    budget: the most that may be left: "7 MB", "3 M parameters", "macs=30 M, 5 ms", or a mapping from costs to numbers or such texts.
    scope: how groups are made comparable: a name of SCOPES, or a function of the scores, the structure and what is kept, such as
        `per(Latency(model, example))`, scores per millisecond.
    threshold: remove every unit whose score, as the scope makes it, is lower.
    multiple: a group that loses anything keeps a multiple of this many units; they leave in blocks, ranked by their mean. Groups that lose
        nothing stay as they are.
    within: an earlier plan: what it removed stays removed and counts.
    least, most: how many units (a whole number) or which share of them (0.1) every group keeps, and may lose; or by name or pattern:
        least={"layer1.*": 0.5}. A global ranking can otherwise empty a layer down to its highest-scored unit, which cuts the network
        nearly in two; a tenth is a good start.
    keep: names or patterns of groups that stay whole: ("conv1", "layer3.*").
    made: anything else the plan should remember of how it was made (JSON values).

    A group keeps at least its highest-scored unit (or block). Equal scores leave in the order of the structure.
    Of a structure that says itself how much goes (`n_of_m`) only scores are asked for, and keep=: of every m connections the n best stay.
    Where few groups decide a budget and are nearly gone because of it, the plan says so (`pulled.py`, `Plan.told`).
    A measured cost (milliseconds) need not fall with every unit: then the plan meets it and, with its last unit back, would not.
    Raises BadInput, and BudgetUnreachable naming the largest amount within reach.
    """
    check_prunable(structure)
    check_scores(scores, structure)
    decided = n_of_m_in(structure.kind) is not None
    refuse_amount(structure.kind, **{
        "amount=": amount is not None, "budget=": budget is not None, "threshold=": threshold is not None, "multiple=": multiple != 1,
        **{f"{name}=": True for name in limits_told(least, most, ())},
    })  # fmt: skip
    if not decided and (amount is None and budget is None) == (threshold is None):
        raise BadInput(
            "Give either amount= (the fraction to remove, 0..1) or threshold= (remove all units below this score); "
            "or budget= (the most that may be left)."
        )
    if isinstance(multiple, bool) or not isinstance(multiple, int) or multiple < 1:
        raise BadInput(f"multiple= must be a whole number of at least 1, but it is {multiple!r}. Try multiple=8.")
    whole = all_of(structure)
    before = whole if within is None else earlier(within, structure)
    stay = floors(structure.groups, least, most, keep)
    asked = targets(amount, budget, of, structure, whole, limits_told(least, most, keep))
    ranking = ranked(scores, before, scope, structure)
    cut: float | None = None
    if decided:
        kept = best_of_runs(ranking, before, structure.groups, stay)
    elif countable(structure, asked, multiple):
        kept, cut = (
            lowest_under(ranking, before, structure, stay, asked)
            if threshold is None
            else lowest_below(ranking, before, stay, finite(threshold))
        )
    else:
        leaves, cuts = removal(ranking, before, structure.groups, multiple, stay)
        steps = steps_to(leaves, len(cuts), asked, structure) if threshold is None else int((cuts < finite(threshold)).sum())
        kept, cut = kept_after(leaves, steps), float(cuts[steps - 1]) if steps else None
    settings: dict[str, object] = {
        "amount": plain(amount),
        "of": [*of] if isinstance(of, Mapping) else named(of)[0],
        "scope": scope if isinstance(scope, str) else getattr(scope, "__name__", type(scope).__name__),
        "threshold": threshold,
        "multiple": multiple,
        "cut": cut,
        **({} if budget is None else {"budget": plain(budget)}),
        **limits_told(least, most, keep),
        **({"within": gone} if (gone := sum(int(mask.logical_not().sum()) for mask in before.values())) else {}),
        **({"pulled": far} if (far := pulled(structure, before, kept, asked)) else {}),
        **made,
    }
    return plan_of(structure, kept, settings, {target.name: target.cost for target in asked})


def select_each(
    scores: Scores,
    structure: Structure,
    amounts: Mapping[str, float],
    multiple: int = 1,
    *,
    least: Limit = 1,
    most: Limit = 1.0,
    keep: Collection[str] = (),
    more: Collection[Target] = (),
    **made: object,
) -> Plan:
    """A plan in which every group that is named loses that share of its units, its lowest; the others stay whole.

    Never more than the share: it is rounded down to whole units (or blocks of `multiple`), and to what the group may lose. The rest is as
    in `select`; `more`: costs that the plan tells beside those that are counted.
    """
    check_prunable(structure)
    check_scores(scores, structure)
    refuse_amount(structure.kind, **{"amounts of single groups": True})
    if unknown := [name for name in amounts if name not in structure.groups]:
        raise BadInput(f"There is no group {unknown[0]}. There are {', '.join(list(structure.groups)[:8])}.")
    stay, kept = floors(structure.groups, least, most, keep), all_kept(structure)
    for name, amount in amounts.items():
        group, room = structure.groups[name], fraction(amount) * structure.groups[name].size + ROUNDING
        alone = {name: scores[name].detach().cpu().reshape(-1)}
        leaves, cuts = removal(alone, {name: kept[name]}, {name: group}, multiple, stay)
        gone = leaves[name].reshape(-1).bincount(minlength=len(cuts))[: len(cuts)].cumsum(0)  # behind each step
        kept |= kept_after(leaves, int((gone <= room).count_nonzero()))
    settings: dict[str, object] = {
        "amounts": dict(amounts),
        "of": "units",
        "scope": EACH,
        "multiple": multiple,
        "cut": None,
        **limits_told(least, most, keep),
        **made,
    }
    return plan_of(structure, kept, settings, {target.name: target.cost for target in more})


def plan_of(structure: Structure, keep: Keep, made: dict[str, object], more: Mapping[str, Cost] | None = None) -> Plan:
    """The record of keeping exactly these units of the structure; `more`: costs that it tells beside those that are counted."""
    start, end = (
        costs(structure, units) | {name: cost(structure, units) for name, cost in (more or {}).items()}
        for units in (all_of(structure), keep)
    )
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
        blocks={name: group.block for name, group in structure.groups.items() if group.block},
    )


def all_of(structure: Structure) -> Keep:
    """All units kept, to be read only: a single bool a group."""
    return {name: torch.ones((), dtype=torch.bool).expand(group.shape) for name, group in structure.groups.items()}


def ranked(scores: Scores, keep: Keep, scope: str | Scope, structure: Structure) -> Scores:
    """The scores that units are ranked by: a flat vector a group, of the units that are still there."""
    if isinstance(scope, str) and scope not in SCOPES:
        raise BadInput(f"There is no scope {scope!r}. Choose {', '.join(SCOPES)}, or give a function: secateur.per(a cost), or your own.")
    there = {}
    for name, mask in keep.items():
        values = scores[name].detach().cpu()
        there[name] = values.reshape(-1) if mask.all() else values[mask]
    ranking = (SCOPES[scope] if isinstance(scope, str) else scope)(there, structure, keep)
    for name, values in there.items():
        made = ranking.get(name)
        if made is not values and (made is None or made.shape != values.shape or not all_finite(made)):
            raise BadInput(
                f"The scope did not give one finite number for each of the {len(values)} units of {name}. Return one for every unit."
            )
    return {name: ranking[name] for name in there}


def all_finite(values: Tensor) -> bool:
    """Without a bool for each of them."""
    return not values.numel() or all(math.isfinite(float(end)) for end in values.aminmax())


def steps_to(leaves: Mapping[str, Tensor], last: int, asked: list[Target], structure: Structure) -> int:
    """The number of steps after which every cost is met, and before the last of which not."""
    end = kept_after(leaves, last)
    for target in asked:
        if not target.met(least := target.cost(structure, end)):
            raise BudgetUnreachable(target.out_of_reach(least))

    def met(steps: int) -> bool:
        now = kept_after(leaves, steps)
        return all(target.met(target.cost(structure, now)) for target in asked)

    return first_met(last, met)


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
    if not isinstance(scores, Mapping):
        raise BadInput(f"Scores are a dict of a tensor for each group, but this is a {type(scores).__name__}. Give merge(measured).")
    for name in [*structure.groups, *scores]:
        if name not in scores or name not in structure.groups:
            place = "structure, but not in the scores" if name not in scores else "scores, but not in the structure"
            raise BadInput(f"The group {name} is in the {place}. Use scores that were measured on this structure.")
        if not isinstance(scores[name], Tensor) or not scores[name].is_floating_point():
            kind = scores[name].dtype if isinstance(scores[name], Tensor) else type(scores[name]).__name__
            raise BadInput(f"The scores of the group {name} are {kind}. Give a tensor of floating-point numbers.")
        if tuple(scores[name].shape) != structure.groups[name].shape:
            raise BadInput(
                f"The group {name} has units {structure.groups[name].shape}, but scores {tuple(scores[name].shape)}. "
                "Use scores that were measured on this structure."
            )
        if not all_finite(scores[name]):
            raise BadInput(f"The scores of the group {name} are not all finite, so they cannot be ranked. Measure again.")


def limits_told(least: Limit, most: Limit, keep: Collection[str]) -> dict[str, object]:
    """What a plan remembers of them: those that are not left as they are."""
    return {
        **({} if least == 1 and type(least) is int else {"least": plain(least)}),
        **({} if most == 1 and type(most) is float else {"most": plain(most)}),
        **({"keep": [keep] if isinstance(keep, str) else [*keep]} if keep else {}),
    }


def plain(value: object) -> object:
    """A mapping as JSON knows it."""
    return dict(value) if isinstance(value, Mapping) else value


def finite(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise BadInput(f"threshold= must be a finite number, but it is {value!r}. Units with a lower score are removed.")
    return float(value)
