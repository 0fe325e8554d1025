"""Ways to choose units that the table compares beyond the criteria by themselves, written with the library's own parts.

score per cost    a unit's score divided by the MACs that leave with it
inner channels    only units inside a residual block, not those of the residual stream that all blocks of a stage share
rounds            measure, remove a part, re-estimate batch norms, and measure again; no training in between
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor, nn

import secateur as sc
from secateur import tree

Batches = list[tuple[Tensor, Tensor]]
Scores = dict[str, Tensor]


@dataclass(frozen=True)
class Recipe:
    """criterion, contexts, local: as in `secateur.measure` and `merge`. batch: images in each batch that is measured on.

    per_mac, inner, steps: see above. scope: "global" or "layer".
    """

    criterion: str
    contexts: str = "batch"
    local: float = 0.0
    batch: int = 128
    scope: str = "global"
    per_mac: bool = False
    inner: bool = False
    steps: int = 1


def fisher_weighted(task: sc.Task, structure: sc.Structure) -> Iterator[Scores]:
    """The diagonal Fisher term of a second-order expansion (Theis et al., 2018): score_u = sum over i in u of g_i^2 w_i^2."""
    squares = tree.square(task.parameters())
    for gradients in task.gradients():
        yield structure.reduce(tree.mul(tree.square(gradients), squares))


def taylor_sum(task: sc.Task, structure: sc.Structure) -> Iterator[Scores]:
    """Molchanov et al., 2019, before any normalising: score_u = sum over batches of (sum over i in u of g_i w_i)^2."""
    yield total(sc.CRITERIA["taylor"](task, structure))


def fisher_sum(task: sc.Task, structure: sc.Structure) -> Iterator[Scores]:
    """The empirical Fisher diagonal before any normalising: score_u = sum over batches and i in u of g_i^2."""
    yield total(sc.CRITERIA["fisher"](task, structure))


def fisher_weighted_sum(task: sc.Task, structure: sc.Structure) -> Iterator[Scores]:
    """score_u = sum over batches and i in u of g_i^2 w_i^2."""
    yield total(fisher_weighted(task, structure))


def total(stream: Iterator[Scores]) -> Scores:
    first = next(stream)
    for scores in stream:
        first = tree.add(first, scores)
    return first


OWN: dict[str, sc.criteria.Criterion] = {
    function.__name__: function for function in (fisher_weighted, taylor_sum, fisher_sum, fisher_weighted_sum)
}


def channels_of(model: nn.Module, example: Tensor, inner: bool) -> sc.Structure:
    """The channels of the network; `inner` leaves the residual stream whole."""
    found = sc.channels(model, example)
    shared = {name: "it belongs to the residual stream" for name, group in found.groups.items() if len(convolutions(group)) > 1}
    return found.without(shared) if inner else found


def convolutions(group: sc.Group) -> list[str]:
    """The convolutions that make the group's channels."""
    return [name for name, dim in group.members if dim == 0 and "conv" in name]


def plan_by(
    recipe: Recipe, model: nn.Module, structure: sc.Structure, data: Batches, amount: float, measured: Callable[[nn.Module], sc.Sensitivity]
) -> sc.Plan:
    """The plan that removes `amount` of the MACs, in as many rounds as the recipe has; `measured` measures a model."""
    now, plan = model, None
    for number in range(1, recipe.steps + 1):
        scores = sc.merge(measured(now), recipe.local)
        scope = "per-mac" if recipe.per_mac else recipe.scope
        plan = sc.select(scores, structure, amount * number / recipe.steps, "macs", scope, within=plan)
        if number < recipe.steps:
            now = sc.reestimate(sc.mask(model, plan), model, data, plan)
    assert plan is not None
    return plan


def measure(recipe: Recipe, model: nn.Module, structure: sc.Structure, data: Batches, loss: sc.task.Loss, seed: int) -> sc.Sensitivity:
    return sc.measure(sc.Task(model, data, loss, seed), structure, OWN.get(recipe.criterion, recipe.criterion), recipe.contexts)
