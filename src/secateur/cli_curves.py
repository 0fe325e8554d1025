"""`secateur curves`: what the model does when one layer alone loses its least needed units, measured layer by layer, with a plot."""

from __future__ import annotations

from pathlib import Path

from .api import structure_of
from .cli_measure import contexts_of, of_model
from .curves import AMOUNTS, Curves, curves, key_of
from .errors import BadInput, Unreadable
from .evaluate import named
from .folders import write_text_atomic
from .frontends.data import data_of
from .journey import VALIDATION, First, Metrics, criterion_of, example_in, loss_of, machine, metrics_for, model_of
from .measure import measure
from .plan import Plan
from .progress import Bar
from .report import Story, render
from .sensitivity import merge
from .sensitivity_file import read_sensitivity
from .structure import Structure
from .structure import as_graph as graph
from .structure.kinds import refuse_amount
from .table import Table
from .task import Task
from .tree import Scores

Stored = dict[str, tuple[dict[str, float], ...]]  # as a report tells them: each group's points, the whole model's first


def curves_into(
    out: Path,
    model: str,
    data: str,
    weights: Path | None,
    example: str | None,
    loss: str | None,
    structure: str,
    criterion: str,
    contexts: str,
    sensitivity: Path | None,
    kinds: list[str] | None,
    exact: bool,
    as_graph: bool,
    multiple: int,
    groups: str | None,
    amounts: str | None,
    samples: int,
    batch: int,
    seed: int,
    bar: Bar,
) -> tuple[Curves, Path]:
    """The curves, and the page beside `out` that shows them. What `out` has is not measured again. Raises BadInput, Unreadable."""
    refuse_amount(structure, **{"curves against the amount": True})
    steps = amounts_of(amounts)
    chosen, cut, lossy = criterion_of(criterion), contexts_of(contexts), loss_of(loss)
    net, splits = model_of(model, weights, seed), data_of(data, seed, batch)
    inputs = example_in(splits.train, example)
    net = graph(net, inputs) if as_graph else net
    found = structure_of(net, inputs, structure, exact, kinds)
    if sensitivity is None:
        measured = measure(Task(net, First(splits.train, samples), lossy, seed), found, chosen, cut, progress=bar("measuring"))
    else:
        measured = of_model(read_sensitivity(sensitivity), found, sensitivity)
    patterns = [part.strip() for part in groups.split(",")] if groups else ["*"]
    held_out = First(splits.validation, samples)
    metrics = metrics_for(net, splits.validation, lossy)
    made = curves(net, found, merge(measured), held_out, metrics, steps, patterns, multiple, out, progress=bar("layer by layer"))
    page = out.with_suffix(".html")
    title = f"{model}, layer by layer"
    notes = (f"Curves are on {data}'s validation split.",)
    story = Story(title, Table({}, {}), machine=machine(), layer_curves=stored(made), notes=notes, curves_on=VALIDATION)
    write_text_atomic(page, render(story))
    return made, page


def amounts_of(text: str | None) -> tuple[float, ...]:
    """ "0.25,0.5" in order; without a text tenths."""
    if text is None:
        return AMOUNTS
    try:
        steps = sorted({float(part) for part in text.split(",")})
    except ValueError:
        steps = []
    if not steps or not all(0 < step <= 1 for step in steps):
        raise BadInput(f"--amounts are fractions in 0..1, but they are {text!r}. Try --amounts 0.25,0.5,0.75.")
    return tuple(steps)


def stored(found: Curves) -> Stored:
    return {
        name: ({"amount": 0.0, **found.dense}, *({"amount": amount, **point} for amount, point in sorted(points.items())))
        for name, points in found.points.items()
    }


def curves_of(file: Path, plan: Plan, folder: Path) -> Stored:
    """As the report of a plan tells them. Raises Unreadable, and BadInput where they are of other units than the plan's."""
    found = curves_in(file)
    strange = next((name for name in found.points if name not in plan.keep), None)
    other = found.structure not in ("", plan.structure)
    if other or strange is not None:
        fact = f"curves of {found.structure}" if other else f"a curve of {strange}"
        raise BadInput(
            f"{file} has {fact}, but the groups of the plan in {folder} are of {plan.structure}: {', '.join([*plan.keep][:4])}"
            f"{', ...' if len(plan.keep) > 4 else ''}. Measure their curves: secateur curves with --structure {plan.structure}, and "
            "--units, --exact and --as-graph as it was pruned."
        )
    return stored(found)


def losses_for(file: Path, structure: Structure, scores: Scores, metrics: Metrics, multiple: int) -> dict[str, dict[float, float]]:
    """What the solver chooses by: of the first metric in the file. Raises Unreadable, and BadInput for curves of other scores."""
    found = curves_in(file)
    if found.key != key_of(structure, scores, [*named(metrics)], multiple):
        raise BadInput(
            f"{file} has curves of another model, of other units or of other scores. Give both commands the same --sensitivity (or "
            "--criterion, --contexts, --samples, --batch and --seed), --loss, --structure, --units, --exact, --as-graph and --multiple, "
            "and leave --local out."
        )
    return found.losses(next(iter(found.dense)))


def curves_in(file: Path) -> Curves:
    """What `secateur curves --out` wrote. Raises Unreadable."""
    try:
        return Curves.from_json(file.read_text(encoding="utf-8"), str(file))
    except (OSError, UnicodeDecodeError) as error:
        raise Unreadable(f"{file} cannot be read: {error}. Make it with secateur curves ... --out {file}, or name another file.") from error
