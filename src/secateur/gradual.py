"""Gradual masking in a loop of the user's own: a plan takes hold bit by bit, one line a step.

    gradual = secateur.gradual(model, plan, structure, scores, steps=1000)
    ...
    optimizer.step()
    gradual.step()

The units that the plan removes leave in the order of their scores. After the share t of the steps the schedule's share s(t) of what the
plan removes is gone ("cubic" is Zhu and Gupta, 2017, eq. 1); at t = 1 that is the whole plan, and `secateur.shrink` cuts it out. Scores
stay those that were given; `secateur.rounds` measures anew instead.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from .cost import COSTS, Cost, cost
from .errors import BadInput
from .path import kept_after
from .plan import Plan, check_fits
from .schedule import SCHEDULES, Schedule
from .scope import SCOPES, Scope
from .select import all_of, check_scores, earlier, ranked
from .structure import Structure
from .surgery.hold import hold, zeroed
from .surgery.mask import masks
from .tree import Keep


class Gradual:
    """A model on its way to a plan. What is gone stays gone: masks only grow, and hold the weights' gradients, too (surgery/hold.py)."""

    def __init__(
        self, model: nn.Module, plan: Plan, structure: Structure, leaves: dict[str, Tensor], schedule: Schedule, steps: int | None,
        of: str | Cost,
    ) -> None:  # fmt: skip
        self.model, self.plan, self.structure, self.schedule, self.steps, self.of = model, plan, structure, schedule, steps, of
        self.leaves, self.last = leaves, sum(int((~mask).sum()) for mask in plan.keep.values())
        self.taken = self.gone = 0
        self.whole = cost(structure, all_of(structure), of)
        self.goal = self.whole - cost(structure, plan.keep, of)
        self.at(0.0)

    def step(self) -> None:
        """After the optimizer's step: one more of `steps`. Beyond the last the whole plan is kept up."""
        if self.steps is None:
            raise BadInput("gradual.step() counts steps, but their number is not known. Give secateur.gradual(..., steps=).")
        self.taken += 1
        self.at(min(1.0, self.taken / self.steps))

    def reached(self, step: int, steps: float) -> None:
        """After so many of a trainer's steps: of our own number, or where that was not given of all that the trainer makes."""
        whole = self.steps or steps
        if math.isinf(whole):
            raise BadInput("The trainer does not know how many steps it makes. Give secateur.gradual(..., steps=), or it an end.")
        self.at(min(1.0, step / whole))

    def at(self, progress: float) -> None:
        """Mask what is gone after this share of the way, in place, and zero what an optimizer moved of it."""
        count = self.count(progress)
        if count > self.gone:
            self.gone = count
            keep = self.keep
            now = replace(self.plan, keep=keep, kept=self.structure.kept(keep), skipped=self.structure.skipped(keep))
            there = dict(self.model.named_parameters(remove_duplicate=False))
            hold(self.model, {name: mask for name, mask in masks(now).items() if name in there})
        zeroed(self.model)

    @property
    def keep(self) -> Keep:
        """The units that are still there."""
        return kept_after(self.leaves, self.gone)

    def count(self, progress: float) -> int:
        """How many units are gone: the fewest by which the schedule's share of the cost is gone that the plan removes."""
        share = self.schedule(progress)
        if not 0 <= share <= 1 or (progress == 1 and share < 1 - 1e-9):
            raise BadInput(f"The schedule gives {share} at {progress:.2f}. It must rise from 0 to 1 and end at 1.")
        if progress == 1:
            return self.last
        least = share * self.goal * (1 - 1e-12)  # rounding of 0.1 * 10 is no reason for one more

        def enough(count: int) -> bool:
            return self.whole - cost(self.structure, kept_after(self.leaves, count), self.of) >= least

        return self.gone + bisect.bisect_left(range(self.gone, self.last), True, key=enough)


def gradual(
    model: nn.Module,
    plan: Plan,
    structure: Structure,
    scores: Mapping[str, Tensor],
    steps: int | None = None,
    schedule: str | Schedule = "cubic",
    of: str | Cost | None = None,
    scope: str | Scope | None = None,
) -> Gradual:
    """Mask `model`, in place, towards `plan` while it trains. Call `.step()` after every step of the optimizer.

    structure, scores: those that the plan was made of (`secateur.prune` gives them along); they say who leaves first.
    steps: after how many steps the plan holds. The callbacks for `transformers` and Lightning know it of their trainers.
    schedule: "linear", "cubic", "one-shot", or a function of the progress 0..1 that rises to 1.
    of: the cost that the schedule is of; by default the plan's own, where it has a name, or units.
    scope: how groups are ranked against each other; by default the plan's own, where it has a name, or global.
    At the end: `secateur.shrink(model, plan)`. Raises PlanMismatch and BadInput where the four do not belong together.
    """
    check_fits(plan.shapes, model)
    check_scores(dict(scores), structure)
    if isinstance(schedule, str) and schedule not in SCHEDULES:
        raise BadInput(f"There is no schedule {schedule!r}. Choose {', '.join(SCHEDULES)}, or give a function of the progress 0..1.")
    if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or steps < 1):
        raise BadInput(f"steps= must be a whole number of at least 1, but it is {steps!r}.")
    keep = earlier(plan, structure)
    said = {name: str(plan.made.get(name)) for name in ("of", "scope")}
    by = scope or (said["scope"] if said["scope"] in SCOPES else "global")
    ranking = ranked(dict(scores), all_of(structure), by, structure)
    return Gradual(
        model, plan, structure, leaving(ranking, keep), SCHEDULES[schedule] if isinstance(schedule, str) else schedule, steps,
        of or (said["of"] if said["of"] in COSTS else "units"),
    )  # fmt: skip


def leaving(ranking: Mapping[str, Tensor], keep: Keep) -> dict[str, Tensor]:
    """The place of every unit that leaves in the order of their scores; of the others a place behind the last."""
    gone = torch.cat([values[~keep[name].reshape(-1)] for name, values in ranking.items()])
    place = torch.empty(len(gone), dtype=torch.int64).scatter_(0, gone.argsort(stable=True), torch.arange(len(gone)))
    leaves = {name: torch.full(mask.shape, len(gone), dtype=torch.int64) for name, mask in keep.items()}
    start = 0
    for name in ranking:
        left = ~keep[name]
        leaves[name][left] = place[start : (start := start + int(left.sum()))]
    return leaves
