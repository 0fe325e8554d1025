"""What `secateur prune` was asked for: checked before anything is computed, and turned from names into a model and data."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import nn

from .api import STRUCTURES, structure_of
from .contexts import CONTEXTS
from .cost import COSTS
from .errors import BadInput
from .files import check_writable
from .frontends.batches import Batches, Splits
from .frontends.data import data_of
from .journey import First, Metrics, at_least, criterion_of, example_in, loss_of, metrics_for, model_of, one_of, seed_in_range
from .schedule import SCHEDULES
from .scope import SCOPES
from .select import finite, fraction
from .structure import Structure
from .task import Loss


@dataclass(frozen=True)
class Asked:
    """The options of the command, in its order."""

    model: str
    data: str
    out: Path
    amount: float | None
    of: str
    threshold: float | None
    weights: Path | None
    example: str | None
    loss: str | None
    structure: str
    criterion: str
    contexts: str
    local: float
    scope: str
    multiple: int
    exact: bool
    schedule: str
    steps: int
    repair: str
    tune: int
    lr: float
    distill: float
    curve: int
    samples: int
    batch: int
    seed: int
    force: bool

    @property
    def gradual(self) -> bool:
        return self.schedule != "one-shot"

    @property
    def rounds(self) -> Path:
        """Where a gradual run keeps its finished rounds."""
        place = self.out.expanduser().resolve()
        return place.with_name(f"{place.name}.rounds")


@dataclass(frozen=True)
class Given:
    """What the names stand for."""

    model: nn.Module
    splits: Splits
    loss: Loss
    example: object
    structure: Structure
    metrics: Metrics

    def measuring(self, asked: Asked) -> Iterable[object]:
        return First(self.splits.train, asked.samples)

    def training(self, asked: Asked) -> Iterable[object]:
        train = self.splits.train
        return train.shuffled(asked.seed) if isinstance(train, Batches) else train


def check(asked: Asked) -> None:
    """What can be refused before anything is computed."""
    one_of(asked.structure, STRUCTURES, "structure")
    one_of(asked.contexts, CONTEXTS, "context")
    one_of(asked.of, COSTS, "cost")
    one_of(asked.scope, SCOPES, "scope")
    one_of(asked.schedule, SCHEDULES, "schedule")
    one_of(asked.repair, ("statistics", "none"), "repair")
    if (asked.amount is None) == (asked.threshold is None):
        raise BadInput("Give either --amount (the fraction to remove, 0..1) or --threshold (remove all units below this score).")
    if asked.threshold is not None:
        finite(asked.threshold)
    else:
        fraction(asked.amount)
    if asked.gradual and asked.amount is None:
        raise BadInput("A gradual schedule rises to an amount, not to a threshold. Give --amount, or --schedule one-shot.")
    for name, value in (("multiple", asked.multiple), ("steps", asked.steps), ("samples", asked.samples), ("batch", asked.batch)):
        at_least(name, value, 1)
    for name, value in (("tune", asked.tune), ("curve", asked.curve)):
        at_least(name, value, 0)
    seed_in_range(asked.seed)
    for name, share in (("local", asked.local), ("distill", asked.distill)):
        if not 0 <= share <= 1:
            raise BadInput(f"--{name} must lie in 0..1, but it is {share}.")
    if not 0 < asked.lr < float("inf"):
        raise BadInput(f"--lr must be a positive number, but it is {asked.lr}. Try --lr 1e-3.")
    criterion_of(asked.criterion)
    check_writable(asked.out, asked.force)
    if asked.gradual:
        check_rounds(asked)


def read(asked: Asked) -> Given:
    model, loss = model_of(asked.model, asked.weights, asked.seed), loss_of(asked.loss)
    splits = data_of(asked.data, asked.seed, asked.batch)
    example = example_in(splits.train, asked.example)
    structure = structure_of(model, example, asked.structure, asked.exact)
    return Given(model, splits, loss, example, structure, metrics_for(model, splits.validation, loss))


def settings(asked: Asked) -> dict[str, str]:
    return {name: str(value) for name, value in asdict(asked).items() if name not in ("out", "force", "curve")}


def check_rounds(asked: Asked) -> None:
    """Raises BadInput where the folder of rounds is not of this command's run."""
    if not asked.rounds.exists() or (asked.rounds.is_dir() and not any(asked.rounds.iterdir())):
        return
    try:
        then = json.loads((asked.rounds / "run.json").read_text(encoding="utf-8"))
        assert isinstance(then, dict)
    except (OSError, ValueError, AssertionError) as error:
        raise BadInput(
            f"{asked.rounds} is in the way of the rounds of this run, and is not secateur's. Move it, or name another --out."
        ) from error
    for name, value in settings(asked).items():
        if then.get(name) != value:
            raise BadInput(
                f"{asked.rounds} keeps the rounds of a run that was stopped, with --{name} {then.get(name)} where this one has {value}. "
                f"Give the same options to go on with it, or delete the folder."
            )
