"""`secateur prune`: from names to a folder with the smaller model, its plan and the proof, which appears whole or not at all."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from torch import nn

from .allocate import select_by_curves
from .api import quality, repaired
from .budget import Amount
from .cli_asked import Asked, Given, check, read, settings
from .cli_curves import losses_for
from .cli_explain import files_of
from .cli_measure import Early, Stopped, contexts_of, of_model
from .cost import Cost
from .drop import dense_quality, largest_within
from .errors import Unreadable
from .evaluate import compare
from .files import load, read_plan, save, write_text_atomic
from .finetune import Tuned, finetune
from .journey import CURVE, VALIDATION, First, criterion_of, curve_of, machine
from .measure import measure
from .plan import Plan
from .progress import Bar, Tell, silent
from .report import Story, render, story_of
from .rounds import round_folder, rounds
from .select import ranked, select
from .sensitivity import Sensitivity, merge
from .sensitivity_file import read_sensitivity
from .structure import all_kept
from .structure.kinds import n_of_m_in
from .surgery import shrink
from .table import Table
from .task import Task
from .tree import Scores

FAR = 10.0  # points that the worst class may fall before it is told
USUAL = 0.5  # the amount at which halves of the data are compared, where none is asked for
OF = {"units": "units", "latency": "time", "activations": "peak of the activations", "macs": "MACs"}  # a cost, in a sentence
KEPT = "No epoch of fine-tuning was better on the validation split than what it began with, which is kept: try more, or another --lr."
FIRST = "Scores are of the first round, on the dense model; later rounds measured anew on the smaller one."


@dataclass(frozen=True)
class Found:
    """Models by the name of their row, the last one being the result, and what it rests on: sensitivity and scores of the dense model."""

    models: dict[str, nn.Module]
    plan: Plan
    sensitivity: Sensitivity
    scores: Scores
    history: list[dict[str, float]]
    notes: tuple[str, ...] = ()
    said: tuple[str, ...] = ()  # below the table


def prune_into(asked: Asked, bar: Bar) -> Story:
    """Do it, and write the folder. Raises SecateurError with nothing written, Stopped on Ctrl-C."""
    try:
        check(asked)
        given = read(asked)
        found = gradually(asked, given, bar) if asked.gradual else at_once(asked, given, bar)
        story = told(asked, given, found, bar)
        write(asked, given, found, story)
    except KeyboardInterrupt as error:
        if asked.gradual and asked.rounds.is_dir():
            raise Stopped(f"the finished rounds are in {asked.rounds}, and the same command goes on from there") from error
        raise Stopped("nothing was written") from error
    return story


# two ways -------------------------------------------------------------------------------------------------------------------------------


def at_once(asked: Asked, given: Given, bar: Bar) -> Found:
    """Measure, select, shrink, repair, fine-tune."""
    sensitivity = measured(asked, given, bar("measuring"))
    scores = merge(sensitivity, asked.local)
    least, most, keep = asked.limits

    made: dict[str, object] = {
        "criterion": sensitivity.criterion, "contexts": sensitivity.contexts, "local": asked.local,
        "samples": sensitivity.samples, "exact": asked.exact, "units": asked.kinds, "as_graph": asked.as_graph,
    }  # fmt: skip
    losses = None if asked.curves is None else losses_for(asked.curves, given.structure, scores, given.metrics, asked.multiple)

    def plan_at(amount: Amount | None) -> Plan:
        if losses is not None:
            return select_by_curves(
                scores, given.structure, losses, amount, given.of, budget=given.budget, multiple=asked.multiple, least=least, most=most,
                keep=keep,
            ).note(**made)  # fmt: skip
        return select(
            scores, given.structure, amount, given.of, given.scope, asked.threshold, asked.multiple, budget=given.budget, least=least,
            most=most, keep=keep,
        ).note(**made)  # fmt: skip

    plan = plan_at(given.amount) if asked.drop is None else within_drop(asked, given, plan_at, bar("finding the amount"))
    now = shrink(given.model, plan)
    models = {"dense": given.dense, "pruned": now}
    if asked.repair != "none":
        models["repaired"] = now = repaired(now, given.model, given.measuring(asked), plan, asked.repair, bar("repairing"))
    history: list[dict[str, float]] = []
    said: tuple[str, ...] = ()
    if asked.tune:
        done = tuned(asked, given, now, plan, None, bar("fine-tuning"))
        if done.last_model is not done.model:
            models["tuned, last epoch"] = done.last_model
        models["tuned"], history = done.model, done.history
        said = (KEPT,) if done.best_epoch == 0 else ()
    return Found(models, plan, sensitivity, scores, history, said=said)


def within_drop(asked: Asked, given: Given, plan_at: Callable[[Amount | None], Plan], tell: Tell) -> Plan:
    """The plan of the largest amount that costs at most --drop points of accuracy on the validation split, repaired but not tuned."""
    assert asked.drop is not None

    def accuracy(plan: Plan) -> float:
        now = shrink(given.model, plan)
        repair = None if asked.repair == "none" else asked.repair
        return quality(repaired(now, given.model, given.measuring(asked), plan, repair), given.splits.validation, "top1")

    dense = dense_quality(lambda: quality(given.model, given.splits.validation, "top1"), "top1")
    largest = largest_within(plan_at, accuracy, dense, asked.drop, progress=tell)
    return largest.made.note(**largest.said(asked.drop, "top1"))


def measured(asked: Asked, given: Given, tell: Tell) -> Sensitivity:
    """Of the dense model, or of the file that has it."""
    if asked.sensitivity is not None:
        return of_model(read_sensitivity(asked.sensitivity), given.structure, asked.sensitivity)
    task, early = Task(given.model, given.measuring(asked), given.loss, asked.seed), Early(tell, tell is silent)
    return measure(
        task, given.structure, criterion_of(asked.criterion), contexts_of(asked.contexts), progress=early.progress, watch=early.watch,
        enough=asked.enough, amount=asked.amount or USUAL,
    )  # fmt: skip


def gradually(asked: Asked, given: Given, bar: Bar) -> Found:
    """Round by round, each fine-tuned; after a kill, from the last finished round and epoch."""
    assert asked.amount is not None
    first, last, history = None, None, claim_rounds(asked)
    least, most, keep = asked.limits
    for step in rounds(
        given.dense, given.example, given.measuring(asked), given.loss, amount=asked.amount, steps=asked.steps, schedule=asked.schedule,
        structure=asked.structure, criterion=criterion_of(asked.criterion), contexts=contexts_of(asked.contexts), local=asked.local,
        of=asked.of, scope=asked.scope, multiple=asked.multiple, least=least, most=most, keep=keep, exact=asked.exact,
        units=asked.kinds, as_graph=asked.as_graph, repair=None if asked.repair == "none" else asked.repair,
        checkpoint=asked.rounds, seed=asked.seed, progress=bar("pruning, round by round"),
    ):  # fmt: skip
        if asked.tune:
            stage = f"fine-tuning, round {step.number} of {step.steps}"
            done = tuned(asked, given, step.model, step.plan, asked.rounds / f"tune-{step.number}", bar(stage))
            step.model.load_state_dict(done.model.state_dict())
            history[str(step.number)] = done.history
            write_text_atomic(asked.rounds / "history.json", json.dumps(history))
        last = step
        if step.number == 1:
            first = step.sensitivity
    if first is None:  # an earlier process had the first round
        first = measured(asked, given, bar("measuring"))
    if last is None:  # and the last one, too, but was stopped before the result was written
        folder = round_folder(asked.rounds, asked.steps)
        model, plan = load(folder, lambda: copy.deepcopy(given.model)), read_plan(folder)
    else:
        model, plan = last.model, last.plan
    every = [epoch for epochs in history.values() for epoch in epochs]
    numbered = [{**epoch, "epoch": float(number)} for number, epoch in enumerate(every, 1)]
    return Found({"dense": given.dense, f"after {asked.steps} rounds": model}, plan, first, merge(first, asked.local), numbered, (FIRST,))


def tuned(asked: Asked, given: Given, model: nn.Module, plan: Plan, checkpoint: Path | None, tell: Tell) -> Tuned:
    teacher = given.model if asked.distill or asked.taught else None

    def once() -> Tuned:
        return finetune(
            model, given.training(asked), given.loss, asked.tune, validation=given.splits.validation, lr=asked.lr,
            warmup=asked.warmup, teacher=teacher, distill=asked.distill, features=asked.taught, plan=plan, checkpoint=checkpoint,
            seed=asked.seed, progress=tell,
        )  # fmt: skip

    try:
        return once()
    except Unreadable:  # a checkpoint of this round as it was measured with other threads or kernels: tune it from the start
        if checkpoint is None or not checkpoint.is_dir():
            raise
        shutil.rmtree(checkpoint)
        return once()


# the rounds of a gradual run --------------------------------------------------------------------------------------------------------------


def claim_rounds(asked: Asked) -> dict[str, list[dict[str, float]]]:
    """Say whose rounds these are; the fine-tuning of those that are finished, by number."""
    asked.rounds.mkdir(parents=True, exist_ok=True)
    write_text_atomic(asked.rounds / "run.json", json.dumps(settings(asked), indent=1))
    file = asked.rounds / "history.json"
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else {}


def forget_rounds(asked: Asked) -> None:
    """Remove the rounds, and nothing else that may lie there."""
    for path in [*asked.rounds.glob("round-*"), *asked.rounds.glob("tune-*")]:
        shutil.rmtree(path, ignore_errors=True)
    for name in ("history.json", "run.json"):
        (asked.rounds / name).unlink(missing_ok=True)
    if asked.rounds.is_dir() and not any(asked.rounds.iterdir()):
        asked.rounds.rmdir()


# the proof --------------------------------------------------------------------------------------------------------------------------------


def told(asked: Asked, given: Given, found: Found, bar: Bar) -> Story:
    """The curve on the validation split, and the table on the test split, which nothing before this has looked at."""
    curve: dict[str, list[dict[str, float]]] = {}
    if asked.curve and n_of_m_in(found.plan.structure) is None:
        label = found.sensitivity.criterion if asked.sensitivity else asked.criterion
        label += f", local {asked.local}" if asked.local else ""
        curve = curve_of(
            given.model, First(given.splits.validation, asked.curve), {label: found.scores}, given.measuring(asked), given.loss,
            given.structure, one_cost(asked, given), given.scope, given.metrics, asked.seed, tell=bar("curve of accuracy"),
        )  # fmt: skip
    bar("comparing on the test split")
    table = compare(found.models, given.splits.test, given.metrics, given.example, dense="dense")
    table = replace(table, notes=(*table.notes, *found.said, *worst_off(table, asked), *remarks(found.plan)))
    notes = [*found.notes, *([CURVE] if curve else [])]
    return story_of(
        found.plan, found.sensitivity, found.scores, table, curve=curve, history=found.history, local=asked.local,
        title=f"{asked.model}, pruned", machine=machine(), notes=notes, by_rounds=asked.gradual, curves_on=VALIDATION if curve else "",
        scoped=lambda values: ranked(values, all_kept(given.structure), given.scope, given.structure),
    )  # fmt: skip


def one_cost(asked: Asked, given: Given) -> str | Cost:
    """The cost that the curve's amounts are of: --of."""
    return given.of.get(asked.of, asked.of) if isinstance(given.of, Mapping) else given.of


def remarks(plan: Plan) -> list[str]:
    """Sentences about what a user might not expect of the plan."""
    said = []
    if not any(gone for gone, _ in plan.removed().values()):
        said.append("Nothing was removed: what was asked for is met as the model is.")
    of = str(plan.made.get("of"))
    drop, amount, dense, reached = (plan.made.get(name) for name in ("drop", "amount", "dense", "reached"))
    if isinstance(drop, float) and isinstance(amount, float) and isinstance(dense, float) and isinstance(reached, float):
        said.append(
            f"--drop {drop:g} removes {100 * amount:.1f} % of the {OF.get(of, of)}; top-1 on the validation split {100 * reached:.2f}, "
            f"dense {100 * dense:.2f}, at least {max(0.0, 100 * dense - drop):.2f} asked for. The table is of the test split."
        )
    return [*said, *nearly_empty(plan), *plan.told("--least 0.1")]


def nearly_empty(plan: Plan) -> list[str]:
    """A sentence about the groups of which hardly anything is left, where there are any."""
    pulled = plan.made.get("pulled")
    told = {name for groups in pulled.values() for name in groups} if isinstance(pulled, Mapping) else set()  # by plan.told
    thin = {name: left for name, left in plan.thin().items() if name not in told}
    if not thin:
        return []
    named = ", ".join(f"{name}: {left} of {size}" for name, (left, size) in list(thin.items())[:3]) + (", ..." if len(thin) > 3 else "")
    way = "If the accuracy falls, try --least 0.1, --scope per-mac or another --criterion."
    return [f"Less than a tenth is left of {len(thin)} {'group' if len(thin) == 1 else 'groups'} (group {named}). {way}"]


def worst_off(table: Table, asked: Asked) -> list[str]:
    """A sentence where the result's worst class is much worse than the dense model's, or never right any more."""
    known = [row for row in table.rows.values() if "worst_class" in row]  # all or none: a loss of the user's own has no classes
    if len(known) < 2:
        return []
    then, now = known[0], known[-1]
    before, after = 100 * then["worst_class"], 100 * now["worst_class"]
    if before - after <= FAR and (after > 0 or before == 0):
        return []
    ways = ["less", *(["--tune 5"] if not asked.tune else []), *(["--contexts class --local 0.3"] if asked.contexts != "class" else [])]
    return [
        f"Of its worst class ({now['worst_class_is']:.0f}) the result has {after:.1f} % right, the dense model {before:.1f} % of its own "
        f"worst ({then['worst_class_is']:.0f}): try {', or '.join(ways)}."
    ]


def write(asked: Asked, given: Given, found: Found, story: Story) -> None:
    """One folder, whole or not at all; then the rounds are no longer needed."""
    options = {key: value for key, value in asdict(asked).items() if key not in ("out", "force", "curve", "given", *found.plan.made)}
    plan = found.plan.note(**{key: str(value) if isinstance(value, Path) else value for key, value in options.items()})
    extra: dict[str, bytes | str] = {
        "split.json": json.dumps(given.splits.record, indent=1), "report.json": story.to_json(), "report.html": render(story),
    }  # fmt: skip
    extra |= files_of(given.structure, found.sensitivity, found.scores, found.plan, None if isinstance(given.scope, str) else given.scope)
    save(asked.out, list(found.models.values())[-1], plan, asked.force, extra)
    forget_rounds(asked)
