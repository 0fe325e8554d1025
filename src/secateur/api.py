"""The pipeline on one page: from a trained model to a smaller one, and the reasons.

model + example --channels | weights--> Structure --.
model + data + loss --> Task ----------measure, per context--> Sensitivity --merge--> Scores
smaller model <--repair-- shrink | mask <-- Plan <--select under a budget--'
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace

from torch import nn

from .criteria import Criterion
from .errors import BadInput
from .measure import measure
from .plan import Plan
from .repair import reestimate
from .select import select
from .sensitivity import Sensitivity, merge
from .structure import Channels, Structure, layers, weights
from .structure import as_graph as graph
from .structure import channels as traced_channels
from .surgery import proved, shrink
from .task import Loss, Task
from .tree import Scores

Progress = Callable[[int, "int | None"], None]


@dataclass(frozen=True)
class Pruned:
    """What `prune` found and made: the smaller (or masked) model, the plan, and everything the plan rests on."""

    model: nn.Module
    plan: Plan
    structure: Structure
    sensitivity: Sensitivity
    scores: Scores


def prune(
    model: nn.Module,
    example: object,
    data: Iterable[object],
    loss: Loss,
    *,
    structure: str | Structure = "channels",
    criterion: str | Criterion = "taylor",
    contexts: str = "batch",
    local: float = 0.0,
    amount: float | None = None,
    of: str = "units",
    scope: str = "global",
    threshold: float | None = None,
    multiple: int = 1,
    exact: bool = False,
    units: Collection[str] | None = None,
    as_graph: bool = False,
    repair: str | None = "statistics",
    seed: int = 0,
    progress: Progress | None = None,
) -> Pruned:
    """Measure, rank, remove, repair, in one shot. The model itself stays as it is.

    example: a tensor, a tuple of arguments or a dict of keyword arguments that the model runs on.
    data: batches to measure on, (inputs, targets) or dicts; loss: `loss(outputs, targets)`, one number or one per sample.
    structure: "channels" or "layers" (really smaller), "weights" (zeros at the old size), or a Structure made before.
    criterion, contexts: how importance is measured, and on which pieces of the data ("batch", "sample", "class").
    local: the weight 0..1 of local sensitivity (of the context that needs a unit most) against global.
    amount, of: the fraction to remove of "units", "parameters", "macs" or "bytes"; or threshold: remove all units scored below.
    scope: "global" or "layer"; multiple: a group that is cut keeps a multiple of this many units.
    exact: leave groups alone whose removal is only approximately the same as zeroing.
    units: the kinds of units that may go ("channel", "head", "head dimension", ...); None: all, and of attention whole heads only.
    as_graph: prune the model as an exported graph, in which sizes follow that are written in its code; what comes back is that graph.
    repair: "statistics" re-estimates batch norms on the inputs in `data`, by the difference to the dense model; None leaves them.
    Raises the errors of the stages: BadInput, BadLoss, NothingToPrune, BudgetUnreachable.
    """
    model = graph(model, example) if as_graph else model
    found = structure_of(model, example, structure, exact, units)
    task = Task(model, data, loss, seed)
    sensitivity = measure(task, found, criterion, contexts, progress=progress)
    scores = merge(sensitivity, local)
    plan = select(
        scores, found, amount, of, scope, threshold, multiple, criterion=sensitivity.criterion, contexts=contexts, local=local,
        samples=sensitivity.samples, repair=repair, exact=exact, as_graph=as_graph, seed=seed,
    )  # fmt: skip
    return Pruned(repaired(shrink(model, plan), model, data, plan, repair), plan, found, sensitivity, scores)


def channels(model: nn.Module, example: object, exact: bool = False, units: Collection[str] | None = None) -> Channels:
    """The units of `model` that can be removed whole, found by one run on `example` and checked on real numbers.

    example: a tensor, a tuple of arguments or a dict of keyword arguments that the model runs on.
    exact: keep groups whole whose removal is only approximately the same as zeroing (a norm's statistic or a softmax runs over them).
    units: the kinds of units that may go; None: all but the dimensions within attention heads, of which whole heads go.
    A group is frozen, with the reason, where the code does not let its size follow, where an operator has no rule, and where the smaller
    model would compute something else than the masked one. The model is not changed. Raises BadInput where the example does not fit.
    """
    found = traced_channels(model, example, exact, units)
    if any(value.is_meta for value in model.parameters()):
        return replace(found, notes=(*found.notes, "the model has no values (it is on the meta device): nothing was compared on numbers"))
    return proved(model, found, example)


def structure_of(
    model: nn.Module, example: object, structure: str | Structure, exact: bool = False, units: Collection[str] | None = None
) -> Structure:
    """The structure of that name; a structure is one already."""
    if not isinstance(structure, str):
        return structure
    if structure not in STRUCTURES:
        raise BadInput(f"There is no structure {structure!r}. Choose {', '.join(STRUCTURES)}.")
    if units is not None and structure != "channels":
        raise BadInput(f"units= chooses among the units of 'channels', but the structure is {structure!r}. Leave it out.")
    return STRUCTURES[structure](model, example, exact, units)


STRUCTURES: dict[str, Callable[[nn.Module, object, bool, Collection[str] | None], Structure]] = {
    "channels": channels,
    "layers": lambda model, example, exact, units: layers(model, example, exact),
    "weights": lambda model, example, exact, units: weights(model, example),
}


def repaired(pruned: nn.Module, dense: nn.Module, data: Iterable[object], plan: Plan, repair: str | None) -> nn.Module:
    if repair not in (None, "statistics"):
        raise BadInput(f"There is no repair {repair!r}. Choose 'statistics' or None.")
    return pruned if repair is None else reestimate(pruned, dense, data, plan)
