"""The pipeline on one page: from a trained model to a smaller one, and the reasons.

model + example --channels | weights--> Structure --.
model + data + loss --> Task ----------measure, per context--> Sensitivity --merge--> Scores
smaller model <--repair-- shrink | mask <-- Plan <--select under a budget--'
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

from torch import nn

from .activations import Activations
from .allocate import Levels, select_by_curves
from .budget import Amount, Budget, Of, absolute
from .contexts import Keys
from .cost import Cost, named
from .criteria import Criterion
from .curves import Curves, losses_by
from .drop import dense_quality, largest_within
from .errors import BadInput
from .evaluate import evaluate
from .floors import Limit
from .latency import Latency
from .measure import measure
from .plan import Plan
from .repair import least_squares, match_moments, reestimate
from .scope import Scope, per
from .select import select
from .sensitivity import Sensitivity, merge
from .structure import Channels, Structure, blocks, layers, n_of_m, weights
from .structure import as_graph as graph
from .structure import channels as traced_channels
from .structure.kinds import SIZED, block_of, n_of_m_in, refuse_amount
from .surgery import proved, shrink, with_values
from .task import Loss, Task
from .tree import Scores, Tree

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
    contexts: str | Keys = "batch",
    local: float | str = 0.0,
    amount: Amount | None = None,
    of: Of = "units",
    budget: Budget | None = None,
    drop: float | None = None,
    validation: Iterable[object] | None = None,
    metric: str = "top1",
    scope: str | Scope = "global",
    threshold: float | None = None,
    curves: Curves | Levels | None = None,
    multiple: int = 1,
    least: Limit = 1,
    most: Limit = 1.0,
    keep: Collection[str] = (),
    exact: bool = False,
    units: Collection[str] | None = None,
    as_graph: bool = False,
    repair: str | None = "least-squares",
    seed: int = 0,
    progress: Progress | None = None,
) -> Pruned:
    """Measure, rank, remove, repair, in one shot. The model itself stays as it is.

    example: a tensor, a tuple of arguments or a dict of keyword arguments that the model runs on.
    data: batches to measure on, (inputs, targets) or dicts; loss: `loss(outputs, targets)`, one number or one per sample.
    structure: "channels" or "layers" (really smaller); "weights", "blocks" (1x4), a shape of blocks such as "4x1" (outputs x inputs), or
        "2:4" (zeros at the old size; it says itself how much goes: leave amount= out); or a Structure made before.
    criterion, contexts: how importance is measured, and on which pieces of the data: "batch", "sample", "class", or a function
        batch -> keys, as in `measure`.
    local: the weight 0..1 of local sensitivity (of the context that needs a unit most) against global, or "rms", as in `merge`.
    amount, of: the fraction to remove of "units", "parameters", "macs", "bytes", "activations" (at their peak, on the example) or "latency"
        (milliseconds on this machine, of the example); or a fraction of each of several: {"macs": 0.5, "latency": 0.2}.
    budget: the most that may be left: "7 MB", "3 M parameters", "macs=30 M, 5 ms". threshold: remove all units scored below.
    drop, validation, metric: or as much of `of` as costs at most so many points of the metric on held-out batches; found by bisection in
        8 evaluations, each after the repair (`drop.py`); the plan remembers every trial.
    scope: a name of SCOPES, "per-latency" (or "per-ms"), "per-activations", or a function, as in `select`.
    curves: share the budget by every layer's measured curve, as `select_by_curves`: by their first metric, or by `Curves.losses(...)`. They
        have to be of these very scores.
    multiple: a group that is cut keeps a multiple of this many units.
    least, most, keep: what every group keeps and may lose, and the groups left alone, as in `select`.
    exact: leave groups alone whose removal is only approximately the same as zeroing.
    units: the kinds of units that may go ("channel", "head", "head dimension", ...); None: all, and of attention whole heads only.
    as_graph: prune the model as an exported graph, in which sizes follow that are written in its code; what comes back is that graph.
    repair: "least-squares" fits what is left of the weights, so that they make what they made in the dense model, on as many of the
        batches as fit in 2 GiB of activations; "statistics" re-estimates batch norms only, by the difference to the dense model, in a
        fraction of the time; "moments" gives each output the mean and variance that it had, where there are no batch norms; None leaves all
        as it is. None of them looks at labels.
    progress: called with (done, total or None where it is not known), of the batches that are measured; then anew of the weights that are
        fitted or, with drop=, of the amounts that are tried.
    Raises the errors of the stages: BadInput, BadLoss, NothingToPrune, BudgetUnreachable.
    """
    if curves is not None and (threshold is not None or scope != "global"):
        raise BadInput("curves= share one amount=, budget= or drop= among the layers. Leave threshold= and scope= out, or curves=.")
    absolute(budget)  # what is no budget, and no repair, is told before anything is measured
    readable_again(data, repair)
    model = graph(model, example) if as_graph else model
    found = structure_of(model, example, structure, exact, units)
    asked = {"amount=": amount, "budget=": budget, "threshold=": threshold, "drop=": drop, "curves=": curves}
    refuse_amount(found.kind, **{name: value is not None for name, value in asked.items()})
    task = Task(model, data, loss, seed)
    sensitivity = measure(task, found, criterion, contexts, progress=progress)
    scores = merge(sensitivity, local)
    amount, of = with_run(model, example, amount, of, budget)
    scope = scope_with_run(model, example, scope, of)
    losses = None if curves is None else losses_by(curves, found, scores, multiple)
    made: dict[str, object] = {
        "criterion": sensitivity.criterion, "contexts": sensitivity.contexts, "local": local, "samples": sensitivity.samples,
        "repair": repair, "exact": exact, "as_graph": as_graph, "seed": seed,
    }  # fmt: skip
    chosen = (
        partial(select, scores, found, scope=scope, threshold=threshold)
        if losses is None
        else partial(select_by_curves, scores, found, losses)
    )

    fitting = progress if drop is None else None  # else the trials are told, each of which fits

    def at(amount: Amount | None) -> Pruned:
        plan = chosen(amount=amount, of=of, budget=budget, multiple=multiple, least=least, most=most, keep=keep).note(**made)
        return Pruned(repaired(shrink(model, plan), model, data, plan, repair, fitting), plan, found, sensitivity, scores)

    if drop is None:
        return at(amount)
    if validation is None or amount is not None or budget is not None or threshold is not None:
        raise BadInput("drop= finds the amount itself, on validation=. Give held-out batches, and no amount=, budget= or threshold=.")
    reached = partial(quality, data=validation, metric=metric)
    dense = dense_quality(lambda: reached(model), metric)
    largest = largest_within(at, lambda pruned: reached(pruned.model), dense, drop, progress=progress)
    return replace(largest.made, plan=largest.made.plan.note(**largest.said(drop, metric)))


RUN: dict[str, Callable[[nn.Module, object], Cost]] = {"activations": Activations, "latency": Latency}  # costs that run the model


def with_run(
    model: nn.Module, example: object, amount: Amount | None, of: Of, budget: Budget | None
) -> tuple[Amount | None, Of]:
    """`amount` and `of` with the costs made that are named there or in the budget and have to run the model."""
    if isinstance(of, str) and of in RUN:
        of = RUN[of](model, example)
    own = dict(of) if isinstance(of, Mapping) else {}
    asked = {*(amount if isinstance(amount, Mapping) else ()), *absolute(budget)}
    more = {name: cost(model, example) for name, cost in RUN.items() if name in asked - own.keys()}
    if not more:
        return amount, of
    name, cost = ("", None) if isinstance(of, Mapping) else named(of)
    if amount is not None and not isinstance(amount, Mapping) and cost is not None:
        amount, own = {name: amount}, {name: cost}
    return amount, own | more


SCOPES_OF_A_RUN = {"per-latency": "latency", "per-ms": "latency", "per-activations": "activations"}  # scores per cost of those


def scope_with_run(model: nn.Module, example: object, scope: str | Scope, of: Of) -> str | Scope:
    """The scope, made of a cost that runs the model where its name says so: the one in `of`, if it is there."""
    name = SCOPES_OF_A_RUN.get(scope) if isinstance(scope, str) else None
    if name is None:
        return scope
    known = of if isinstance(of, Mapping) else {} if isinstance(of, str) else dict([named(of)])
    return per(known[name] if name in known else RUN[name](model, example))


def quality(model: nn.Module, data: Iterable[object], metric: str) -> float:
    return evaluate(model, data, [metric])[metric]


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
    named_structure(structure)
    if units is not None and structure != "channels":
        raise BadInput(f"units= chooses among the units of 'channels', but the structure is {structure!r}. Leave it out.")
    if (shape := block_of(structure)) is not None:
        return blocks(model, shape, example)
    if (counts := n_of_m_in(structure)) is not None:
        return n_of_m(model, *counts, example)
    return STRUCTURES[structure](model, example, exact, units)


def named_structure(name: str) -> str:
    """Raises BadInput for a name that no structure has."""
    if name not in STRUCTURES and block_of(name) is None and n_of_m_in(name) is None:
        raise BadInput(f"There is no structure {name!r}. Choose {', '.join(STRUCTURES)}, or {SIZED}.")
    return name


STRUCTURES: dict[str, Callable[[nn.Module, object, bool, Collection[str] | None], Structure]] = {
    "channels": channels,
    "layers": lambda model, example, exact, units: layers(model, example, exact),
    "weights": lambda model, example, exact, units: weights(model, example),
    "blocks": lambda model, example, exact, units: blocks(model, example=example),
}


def repaired(
    pruned: nn.Module, dense: nn.Module, data: Iterable[object], plan: Plan, repair: str | None, progress: Progress | None = None
) -> nn.Module:
    """`pruned`, the shrunk model, with what is left adjusted."""
    return REPAIRS[named_repair(repair)](pruned, dense, data, plan, progress)


def named_repair(name: str | None) -> str | None:
    """Raises BadInput for a name that no repair has."""
    if name not in REPAIRS:
        raise BadInput(f"There is no repair {name!r}. Choose {', '.join(repr(known) for known in REPAIRS if known)} or None.")
    return name


def readable_again(data: Iterable[object], repair: str | None) -> None:
    """Raises BadInput where there is a repair, but nothing to repair by once the data has been measured on; or no such repair, or data."""
    if not isinstance(data, Iterable) and not hasattr(data, "__getitem__"):
        raise BadInput(f"The data is of type {type(data).__name__}, and gives no batches. Give a list or a loader of (inputs, targets).")
    if named_repair(repair) is not None and isinstance(data, Iterator):
        raise BadInput("The data can be read only once (it is an iterator), but the repair reads it again. Give a list, or repair=None.")


def with_new(fit: Callable[..., Tree]) -> Repair:
    """The smaller model with the values that the fit finds for the dense one."""

    def repair(pruned: nn.Module, dense: nn.Module, data: Iterable[object], plan: Plan, progress: Progress | None) -> nn.Module:
        return shrink(with_values(dense, fit(dense, plan, data, progress=progress)), plan)

    return repair


Repair = Callable[[nn.Module, nn.Module, Iterable[object], Plan, "Progress | None"], nn.Module]
REPAIRS: dict[str | None, Repair] = {
    "least-squares": with_new(least_squares),
    "statistics": lambda pruned, dense, data, plan, _: reestimate(pruned, dense, data, plan),
    "moments": with_new(match_moments),
    None: lambda pruned, *_: pruned,
}
