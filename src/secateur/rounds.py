"""Gradual pruning: a generator that hands over a smaller model, waits until the user has trained it, and goes on from there."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .api import Progress, readable_again, repaired, structure_of
from .budget import fraction
from .contexts import Keys
from .cost import cost
from .criteria import Criterion
from .errors import BadInput, Unreadable
from .files import load, read_plan, save
from .floors import Limit, floors
from .measure import measure
from .optimizers import rebind
from .plan import Plan, check_fits
from .schedule import SCHEDULES, Schedule
from .scope import Scope
from .select import plain, plan_of, select
from .sensitivity import Sensitivity, merge
from .structure import Channels, Structure, all_kept
from .structure import as_graph as graph
from .structure.cut import twin
from .structure.kinds import at_old_size, refuse_amount
from .structure.structure import digest_of
from .surgery import masks_of, shrink
from .surgery.hold import hold
from .task import Loss, Task
from .tree import Keep


@dataclass(frozen=True)
class Round:
    """One step of gradual pruning.

    number, steps: which round of how many. amount: the fraction of the dense model's cost that is gone now.
    model: smaller (or masked); train it in place before asking for the next round.
    plan: from the dense model to this one. cut: from the model of the round before.
    """

    number: int
    steps: int
    amount: float
    model: nn.Module
    plan: Plan
    cut: Plan
    sensitivity: Sensitivity
    before: nn.Module
    dense: nn.Module

    def rebind(self, optimizer: Optimizer) -> Optimizer:
        """The optimizer that trained the model of the round before, for this round's model: its state is cut to fit.

        After a kill that model is gone: then the optimizer of the dense model will do.
        """
        trained = {id(value) for group in optimizer.param_groups for value in group["params"]}
        if any(id(value) in trained for value in self.before.parameters()):
            return rebind(optimizer, self.before, self.model, self.cut)
        return rebind(optimizer, self.dense, self.model, self.plan)


def rounds(
    model: nn.Module,
    example: object,
    data: Iterable[object],
    loss: Loss,
    *,
    amount: float,
    steps: int = 5,
    schedule: str | Schedule = "cubic",
    structure: str = "channels",
    criterion: str | Criterion = "taylor",
    contexts: str | Keys = "batch",
    local: float | str = 0.0,
    of: str = "units",
    scope: str | Scope = "global",
    multiple: int = 1,
    least: Limit = 1,
    most: Limit = 1.0,
    keep: Collection[str] = (),
    exact: bool = False,
    units: Collection[str] | None = None,
    as_graph: bool = False,
    repair: str | None = "least-squares",
    rewind: nn.Module | None = None,
    checkpoint: str | Path | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Iterator[Round]:
    """Remove `amount` in `steps` rounds; each measures anew on the model as it was trained since the last.

    schedule: "linear", "cubic", "one-shot", or a function from progress 0..1 to the share of the final amount that is gone.
    rewind: the dense model as it was at an earlier epoch of its training. Every round chooses by the model as it was trained, but hands
        over what is left with the values of that epoch, to be trained from there (weight rewinding; Renda et al., 2020, section 2, after
        Frankle et al., 2019); nothing is repaired, whatever `repair` says. Without it the trained values stay: with a learning rate that
        begins anew in each round, as in every call of `finetune`, that is their learning rate rewinding.
    checkpoint: a folder in which every finished round is kept: after a kill the next call goes on behind the last round that was trained
        (that is, after which the next one was asked for). A folder of other settings is refused.
    repair: what is left is fitted after every cut to what the model of the round before makes, as in `prune`: "least-squares", "statistics"
        (batch norms only, in a fraction of the time), "moments", or None, where the training that follows is all that is wanted.
    progress: called in every round with (done, total), of the batches that are measured and then of the weights that are fitted.
    The other arguments are those of `prune`. The model itself stays as it is.
    """
    if structure == "layers":
        raise BadInput("Rounds remove channels, connections or blocks of them. Skip layers in one shot: prune(..., structure='layers').")
    refuse_amount(structure, **{"the rounds": True})
    readable_again(data, repair)
    shares = list(shares_of(schedule, steps))
    final = fraction(amount)
    settings = {
        "amount": amount, "steps": steps, "schedule": name_of(schedule), "structure": structure, "criterion": name_of(criterion),
        "contexts": name_of(contexts), "local": local, "of": of, "scope": name_of(scope), "multiple": multiple, "exact": exact,
        "least": plain(least), "most": plain(most), "keep": sorted([keep] if isinstance(keep, str) else keep),
        "units": None if units is None else sorted(units), "as_graph": as_graph, "seed": seed,
        "rewind": None if rewind is None else digest_of(rewind), "repair": repair if rewind is None else None,
    }  # fmt: skip
    given = model  # its optimizer is the user's, and its parameters have the graph's names
    model = graph(model, example) if as_graph else model
    dense = structure_of(model, example, structure, exact, units)
    early = graph(rewind, example) if rewind is not None and as_graph else rewind
    if early is not None:
        check_fits(dense.shapes, early)
    nothing = {name: torch.zeros(group.shape) for name, group in dense.groups.items()}
    stay = floors(dense.groups, least, most, keep)
    select(nothing, dense, final, of, multiple=multiple, least=stay)  # what is out of reach in the end is so before the first round
    now, done = resumed(model, checkpoint, settings, dense.digest)
    found: Structure = dense if done == 0 else after(now, example, structure, exact, units, dense)
    there = all_kept(dense) if done == 0 or checkpoint is None else kept_units(dense, read_plan(round_folder(checkpoint, done)), now)
    for number in range(done + 1, steps + 1):
        gone = final * shares[number - 1]
        sensitivity = measure(Task(now, data, loss, seed), found, criterion, contexts, progress=progress)
        scores = merge(sensitivity, local)
        made: dict[str, object] = {**settings, "round": number, "samples": sensitivity.samples, "final": amount, "amount": gone}
        if at_old_size(dense.kind):
            whole = cut = select(scores, found, gone, of, scope, multiple=multiple, within=there, least=stay).note(**made)
            there = whole.keep
        else:
            cut = select(scores, found, still(gone, of, dense, there, found), of, scope, multiple=multiple, least=left(stay, found))
            there = composed(dense, there, cut)
            whole = plan_of(dense, there, {**made, "cut": cut.made["cut"], "threshold": None})
        small = repaired(shrink(now, cut), now, data, cut, repair, progress) if early is None else shrink(early, whole)
        before, now = now, small
        reached = 1 - cost(dense, there, of) / cost(dense, all_kept(dense), of)
        yield Round(number, steps, reached, now, whole, cut, sensitivity, given if before is model else before, given)
        if checkpoint is not None:
            save(round_folder(checkpoint, number), now, whole, force=True, extra={"settings.json": json.dumps(settings)})
        found = after(now, example, structure, exact, units, dense)


def shares_of(schedule: str | Schedule, steps: int) -> Iterator[float]:
    """The share of the final amount that is gone after each round; it never falls, and ends at 1."""
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise BadInput(f"steps= must be a whole number of at least 1, but it is {steps!r}. Try steps=5.")
    if isinstance(schedule, str) and schedule not in SCHEDULES:
        raise BadInput(f"There is no schedule {schedule!r}. Choose {', '.join(SCHEDULES)}, or give a function of the progress 0..1.")
    function = SCHEDULES[schedule] if isinstance(schedule, str) else schedule
    last = 0.0
    for number in range(1, steps + 1):
        share = function(number / steps)
        if not last <= share <= 1 or (number == steps and not math.isclose(share, 1)):
            raise BadInput(f"The schedule gives {share} at {number / steps:.2f}. It must rise from 0 to 1 and end at 1.")
        last = share
        yield share


def left(stay: dict[str, int], units: Structure) -> dict[str, int]:
    """What has to stay of the groups that the smaller model has."""
    return {name: number for name, number in stay.items() if name in units.groups}


def name_of(value: str | Callable[..., object]) -> str:
    return value if isinstance(value, str) else getattr(value, "__name__", type(value).__name__)


def still(gone: float, of: str, dense: Structure, keep: Keep, units: Structure) -> float:
    """The fraction of the smaller model's cost to remove, so that `gone` of the dense model's cost is gone."""
    whole, here = cost(dense, all_kept(dense), of), cost(units, all_kept(units), of)
    fixed = cost(dense, keep, of) - here if of == "units" else 0.0  # units that can no longer leave, since their groups have no other
    return min(1.0, max(0.0, 1 - ((1 - gone) * whole - fixed) / here)) if here else 0.0


def composed(dense: Structure, keep: Keep, cut: Plan) -> Keep:
    """The dense model's units that are left: those of which some index of some tensor is left."""
    assert isinstance(dense, Channels)
    before = dense.kept(keep)
    kept = {
        name: tuple(
            index if later is None else (torch.arange(dense.shapes[name][dim]) if index is None else index)[later]
            for dim, (index, later) in enumerate(
                zip(pad(before.get(name), dense.shapes[name]), pad(cut.kept.get(name), dense.shapes[name]))
            )
        )
        for name in dense.index
    }
    return units_in(dense, kept)


def pad(indices: tuple[Tensor | None, ...] | None, shape: tuple[int, ...]) -> tuple[Tensor | None, ...]:
    return indices if indices is not None else (None,) * len(shape)


def units_in(dense: Channels, kept: dict[str, tuple[Tensor | None, ...]]) -> Keep:
    """A unit is left where some index that lies in it is."""
    left = torch.zeros(1 + sum(group.size for group in dense.groups.values()), dtype=torch.bool)
    for name, dims in dense.index.items():
        for dim, units in enumerate(dims):
            if units is not None:
                index = pad(kept.get(name), dense.shapes[name])[dim]
                left[units if index is None else units[:, index]] = True
    parts = torch.split(left[1:], [group.size for group in dense.groups.values()])
    return dict(zip(dense.groups, parts))


def kept_units(dense: Structure, plan: Plan, now: nn.Module) -> Keep:
    if isinstance(dense, Channels):
        return units_in(dense, plan.kept)
    zeros = masks_of(now)
    left = {name: zeros.get(name, torch.ones(dense.shapes[name], dtype=torch.bool)).float() for name in dense.groups}
    return {name: number > 0 for name, number in dense.reduce(left).items()}


def after(
    now: nn.Module, example: object, structure: str, exact: bool, units: Collection[str] | None, dense: Structure
) -> Structure:
    return dense if at_old_size(dense.kind) else structure_of(now, example, structure, exact, units)


def round_folder(checkpoint: str | Path, number: int) -> Path:
    return Path(checkpoint) / f"round-{number}"


def settings_in(folder: Path) -> dict[str, object]:
    """The settings of a round that was kept. Raises Unreadable."""
    try:
        then = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Unreadable(f"{folder / 'settings.json'} cannot be read ({error}). Start the rounds anew in another folder.") from error
    if not isinstance(then, dict):
        raise Unreadable(f"{folder / 'settings.json'} holds no settings. Start the rounds anew in another folder.")
    return then


def resumed(model: nn.Module, checkpoint: str | Path | None, settings: dict[str, object], digest: str) -> tuple[nn.Module, int]:
    """The model of the last finished round and its number; the dense model and 0 where there is none."""
    if checkpoint is None:
        return model, 0
    done = 0
    while (round_folder(checkpoint, done + 1) / "plan.json").exists():
        done += 1
    if done == 0:
        return model, 0
    folder = round_folder(checkpoint, done)
    then = settings_in(folder)
    plan = read_plan(folder)
    for name, value in {**settings, "digest": digest}.items():
        was = plan.digest if name == "digest" else then.get(name)
        if was != value:
            raise BadInput(
                f"{folder} is of a run with {name} {was!r}, but this one has {value!r}. Give the same settings or another folder."
            )
    now = load(folder, lambda: twin(model, lambda _, tensor: tensor.clone()))
    if at_old_size(plan.structure):
        hold(now, masks_of(now))
    return now, done
