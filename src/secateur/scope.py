"""How the groups of a model are made comparable before their units are ranked together.

A scope is a function of the scores of the units that are still there (a flat vector a group), the structure, and what is kept of it; it
returns one number for every unit, and the lowest leave first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor

from .cost import COSTS, PRICED, Cost, cost, named, prices
from .errors import BadInput
from .structure import Structure
from .tree import Keep, Scores, apply

Scope = Callable[[Scores, Structure, Keep], Scores]
CHEAP = 1e-6  # of the largest price: units that save less than that count as saving so much


def everywhere(scores: Scores, structure: Structure, keep: Keep) -> Scores:
    """Scores are comparable as they are: the whole model is ranked at once, and sensitive layers lose less."""
    return scores


def layer(scores: Scores, structure: Structure, keep: Keep) -> Scores:
    """The same fraction of every group: a unit's score is its place in its own group.

    score_u = (rank of u in its group + 1/2) / (units in the group)
    """
    return apply(place, scores)


def ranks(scores: Scores, structure: Structure, keep: Keep) -> Scores:
    """The order is that of the ranks within the group, the level that of the group's mean: a few outliers no longer protect a layer.

    score_u = mean(s) + (2 (rank of u in its group + 1/2) / n - 1) mean(|s|)        of n units; the group's sum stays the same

    Of scores that are nowhere negative that is from 0 to twice the mean; where some are, they lower the level and widen the spread.
    """

    def ranked(values: Tensor) -> Tensor:
        return values.mean(dtype=torch.float64) + (2 * place(values) - 1) * values.abs().mean(dtype=torch.float64)

    return apply(ranked, scores)


def lamp(scores: Scores, structure: Structure, keep: Keep) -> Scores:
    """Layer-adaptive magnitude (Lee et al., 2021, "Layer-adaptive sparsity for the magnitude-based pruning", eq. 4), of any score.

    score_u = s_u^2 / (sum of s_v^2 over the v of its group that are not before u in their order)
    """
    return {name: adaptive(values, name) for name, values in scores.items()}


def isomorphic(scores: Scores, structure: Structure, keep: Keep) -> Scores:
    """Units of like structure compete, and each class of them loses the same fraction (Fang et al., 2024, "Isomorphic pruning").

    score_u = (rank of u in its class + 1/2) / (units in the class); groups are of one class that are of one kind and size, with members of
    the same shapes that the same operators couple.
    """
    classes: dict[object, list[str]] = {}
    for name in scores:
        classes.setdefault(signature(structure, name), []).append(name)
    made: Scores = {}
    for names in classes.values():
        parts = [scores[name].flatten() for name in names]
        places = torch.split(place(torch.cat(parts)), [len(part) for part in parts])
        made |= {name: values.view(scores[name].shape) for name, values in zip(names, places)}
    return {name: made[name] for name in scores}


def per(of: str | Cost) -> Scope:
    """Scores per cost: a unit's score divided by what leaves with it, at what is kept now (the derivative of the plan's cost).

    c_u = dC/dk_u,    for a cost that runs the model:    (C(k) - C(k without half of the group)) / (units in that half)
    score_u = s_u / c_u  where s_u >= 0,    s_u c_u / m^2  where s_u < 0        m: the mean c of the units there are

    A negative score says that the loss falls when the unit goes, so of two such units the one that saves more goes first; divided, it would
    go last. Negative scores stay below all others, and at the mean price both forms are the same.
    """

    def score_per_cost(scores: Scores, structure: Structure, keep: Keep) -> Scores:
        saved = {name: value.to(scores[name].device) for name, value in price_of_units(structure, keep, of).items()}
        largest = max((float(value.max()) for value in saved.values() if value.numel()), default=0.0)
        if largest <= 0:
            raise BadInput(f"No unit saves any {named(of)[0]}, so there are no scores per cost. Use another scope.")
        price = {name: value.clamp_min(CHEAP * largest) for name, value in saved.items()}
        number = sum(value.numel() for value in price.values())
        mean = sum(float(value.sum(dtype=torch.float64)) for value in price.values()) / number
        return {
            name: torch.where(values < 0, values * (price[name] / mean**2).to(values.dtype), values / price[name].to(values.dtype))
            for name, values in scores.items()
        }

    score_per_cost.__name__ = f"per-{named(of)[0]}"
    return score_per_cost


SCOPES: dict[str, Scope] = {
    "global": everywhere,
    "layer": layer,
    "ranks": ranks,
    "lamp": lamp,
    "isomorphic": isomorphic,
    "per-mac": per("macs"),
    "per-parameter": per("parameters"),
    "per-byte": per("bytes"),
}


def of_plan(name: str) -> Scope | None:
    """The scope that a plan names: one of SCOPES, or scores per one of COSTS ("per-macs"); None for one of the user's own."""
    of = name.removeprefix("per-")
    return SCOPES.get(name) or (per(of) if of != name and of in COSTS else None)


def place(values: Tensor) -> Tensor:
    order = values.flatten().argsort(stable=True)
    places = (torch.arange(len(order), dtype=torch.float64) + 0.5) / len(order)
    return torch.empty_like(places).scatter_(0, order, places).view(values.shape)


def adaptive(values: Tensor, name: str) -> Tensor:
    if (values < 0).any():
        raise BadInput(f"Some scores of the group {name} are negative, and LAMP compares squares. Use another scope or criterion.")
    ordered, order = values.flatten().double().sort(stable=True)
    squares = (ordered / ordered[-1:].clamp_min(torch.finfo(torch.float64).tiny)).square()
    after = squares.flip(0).cumsum(0).flip(0)
    return torch.empty_like(squares).scatter_(0, order, squares / after.clamp_min(torch.finfo(torch.float64).tiny)).view(values.shape)


def signature(structure: Structure, name: str) -> object:
    """Equal for groups that are alike but for their place in the model."""
    group = structure.groups[name]
    members = Counter((structure.shapes.get(member), dim) for member, dim in group.members)
    operators = Counter(how.partition(" at ")[0] for how in group.through)
    return group.kind, group.shape, frozenset(members.items()), frozenset(operators.items())


def price_of_units(structure: Structure, keep: Keep, of: str | Cost) -> Scores:
    """What leaves with each unit that is still there; of a group's units all alike where the cost has to run the model."""
    if isinstance(of, str) and of in PRICED:
        each = prices(structure, of)
        masks = structure.expand(keep)
        whole = structure.reduce({name: masks[name].double() * each[name] for name in structure.numel})
        return {name: value[keep[name]] for name, value in whole.items()}
    now = cost(structure, keep, of)
    made = {}
    for name, mask in keep.items():
        there = mask.flatten().nonzero()[:, 0]
        half = max(1, len(there) // 2)
        less = mask.flatten().clone()
        less[there[half if len(there) > 1 else 0 :]] = False
        gone = max(1, len(there) - half)
        saved = (now - cost(structure, {**keep, name: less.view(mask.shape)}, of)) / gone if len(there) else 0.0
        made[name] = torch.full((len(there),), saved, dtype=torch.float64)
    return made
