"""What `secateur prune` was asked for: checked before anything is computed, and turned from names into a model and data."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import nn

from .api import REPAIRS, RUN, SCOPES_OF_A_RUN, named_structure, scope_with_run, structure_of, with_run
from .budget import Amount, Of, absolute, fraction, parts_of
from .cli_curves import curves_in
from .cli_measure import contexts_of
from .cost import COSTS
from .distill import check_modules
from .drop import points
from .errors import BadInput
from .files import check_writable
from .floors import Limit, floors
from .frontends.batches import Batches, Splits
from .frontends.data import data_of
from .journey import First, Metrics, at_least, criterion_of, example_in, loss_of, metrics_for, model_of, one_of, seed_in_range, within_one
from .schedule import SCHEDULES
from .scope import SCOPES, Scope
from .select import finite
from .sensitivity import Sensitivity
from .sensitivity_file import read_sensitivity
from .structure import Structure, as_graph
from .structure.channels import ALL_KINDS
from .structure.kinds import n_of_m_in, refuse_amount
from .task import Loss

ALL_SCOPES = (*SCOPES, *SCOPES_OF_A_RUN)


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
    local: float | str
    scope: str
    multiple: int
    units: str | None
    exact: bool
    as_graph: bool
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
    budget: str | None = None
    drop: float | None = None
    least: str = "1"
    most: str = "1.0"
    keep: str = ""
    sensitivity: Path | None = None
    enough: float | None = None
    given: tuple[str, ...] = ()  # the options that were written, not left as they are
    curves: Path | None = None
    warmup: float = 0.0
    features: str = ""

    @property
    def gradual(self) -> bool:
        return self.schedule != "one-shot"

    @property
    def kinds(self) -> list[str] | None:
        return kinds_of(self.units, self.structure)

    @property
    def goals(self) -> tuple[Amount | None, str | None]:
        """The shares that go, and the most that may be left: in --budget a number up to 1 without a unit is a share ("macs=0.5, 7 MB")."""
        shares, rest = {}, []
        for part in parts_of(self.budget or ""):
            name, sign, value = part.partition("=")
            if sign and (number := share_of(value)) is not None:
                shares[one_of(name.strip(), (*COSTS, *RUN), "cost")] = number
            else:
                rest.append(part)
        budget = (";".join(rest) or None) if shares else self.budget
        absolute(budget)
        return shares or self.amount, budget

    @property
    def limits(self) -> tuple[Limit, Limit, tuple[str, ...]]:
        """least, most and keep."""
        names = tuple(name.strip() for name in self.keep.split(",") if name.strip())
        return limit_of(self.least, "least"), limit_of(self.most, "most"), names

    @property
    def taught(self) -> tuple[str, ...]:
        """The modules whose outputs the dense model teaches."""
        return tuple(name.strip() for name in self.features.split(",") if name.strip())

    @property
    def rounds(self) -> Path:
        """Where a gradual run keeps its finished rounds."""
        place = self.out.expanduser().resolve()
        return place.with_name(f"{place.name}.rounds")


@dataclass(frozen=True)
class Given:
    """What the names stand for. dense: the model in its own class; model: that, or the graph of it that is pruned instead."""

    dense: nn.Module
    model: nn.Module
    splits: Splits
    loss: Loss
    example: object
    structure: Structure
    metrics: Metrics
    amount: Amount | None = None
    of: Of = "units"
    budget: str | None = None
    scope: str | Scope = "global"

    def measuring(self, asked: Asked) -> Iterable[object]:
        return First(self.splits.train, asked.samples)

    def training(self, asked: Asked) -> Iterable[object]:
        train = self.splits.train
        return train.shuffled(asked.seed) if isinstance(train, Batches) else train


def check(asked: Asked) -> None:
    """What can be refused before anything is computed."""
    named_structure(asked.structure)
    contexts_of(asked.contexts)
    one_of(asked.of, (*COSTS, *RUN), "cost")
    one_of(asked.scope, ALL_SCOPES, "scope")
    one_of(asked.schedule, SCHEDULES, "schedule")
    one_of(asked.repair, [name or "none" for name in REPAIRS], "repair")
    kinds_of(asked.units, asked.structure)
    check_ways(asked)
    if asked.threshold is not None:
        finite(asked.threshold)
    if asked.amount is not None:
        fraction(asked.amount)
    assert asked.goals
    points(asked.drop)
    assert asked.limits
    if asked.gradual and asked.amount is None:
        raise BadInput("A gradual schedule rises to an amount, not to a threshold, budget or drop. Give --amount, or --schedule one-shot.")
    if asked.gradual and (asked.of in RUN or asked.scope in SCOPES_OF_A_RUN):
        raise BadInput(f"A gradual schedule counts {', '.join(COSTS)}. Give one of them with --of and --scope, or --schedule one-shot.")
    if asked.gradual and asked.structure == "layers":
        raise BadInput("A gradual schedule removes channels or connections. Leave --schedule out, or give --structure channels or weights.")
    for option, given in (("sensitivity", asked.sensitivity), ("enough", asked.enough)):
        if asked.gradual and given is not None:
            raise BadInput(f"A gradual schedule measures anew in every round. Leave --{option} out, or give --schedule one-shot.")
    for option in ("lr", "warmup", "distill", "features"):
        if option in asked.given and not asked.tune:
            raise BadInput(f"--{option} is of the fine-tuning, of which there is none. Add --tune 5, or leave it out.")
    if "steps" in asked.given and not asked.gradual:
        raise BadInput("--steps counts the rounds of a gradual schedule. Add --schedule linear, or leave it out.")
    if asked.curves is not None:
        check_curves(asked)
    if asked.sensitivity is not None:
        check_measured(asked, read_sensitivity(asked.sensitivity))
    for name, value in (("multiple", asked.multiple), ("steps", asked.steps), ("samples", asked.samples), ("batch", asked.batch)):
        at_least(name, value, 1)
    for name, value in (("tune", asked.tune), ("curve", asked.curve)):
        at_least(name, value, 0)
    seed_in_range(asked.seed)
    for name, share in (("distill", asked.distill), ("warmup", asked.warmup), ("enough", asked.enough)):
        if share is not None:
            within_one(name, share)
    if not 0 < asked.lr < float("inf"):
        raise BadInput(f"--lr must be a positive number, but it is {asked.lr}. Try --lr 1e-3.")
    criterion_of(asked.criterion)
    check_writable(asked.out, asked.force)
    if asked.gradual:
        check_rounds(asked)


WAYS = {
    "amount": "the fraction to remove, 0..1",
    "budget": "the most that may be left",
    "threshold": "remove all units below this score",
    "drop": "points of accuracy that may be lost",
}


def check_ways(asked: Asked) -> None:
    """Raises BadInput unless exactly one option says how much goes; or none, where the structure does."""
    if n_of_m_in(asked.structure) is not None:
        options = {f"--{name}": getattr(asked, name) is not None for name in (*WAYS, "curves")}
        options |= {"--multiple": asked.multiple != 1, "--least": asked.least != "1", "--most": asked.most != "1.0"}
        options |= {"--curve": bool(asked.curve) and "curve" in asked.given}
        refuse_amount(asked.structure, **options, **{"--schedule": asked.gradual})
        return
    given = [f"--{name}" for name in WAYS if getattr(asked, name) is not None]
    if not given:
        raise BadInput(f"Say how much goes: give {', '.join(f'--{name} ({what})' for name, what in WAYS.items())}.")
    if len(given) > 1:
        which = " or ".join(given) if len(given) == 2 else "all but one"
        if given == ["--amount", "--budget"]:
            which += f'; or ask for both in one budget: --budget "{asked.of}={asked.amount}, {asked.budget}"'
        raise BadInput(f"{' and '.join(given)} each say how much goes. Leave out {which}.")


def local_in(text: str) -> float | str:
    """The weight of local sensitivity that the option gives. Raises BadInput."""
    if text == "rms":
        return text
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise BadInput(f"--local must be a number in 0..1 or rms, but it is {text}.")
    return share


def check_measured(asked: Asked, sensitivity: Sensitivity) -> None:
    """Raises BadInput where the options that were written ask for another measurement than the one in the file, or for what it has no use.

    --samples has one beside it: the repair and the report's curve are made with them.
    """
    idle = asked.repair == "none" and not asked.curve and not asked.tune
    for option, asked_for, found in (
        ("criterion", asked.criterion, sensitivity.criterion),
        ("contexts", asked.contexts, sensitivity.contexts),
        ("enough", asked.enough, None),
        *([("samples", asked.samples, None)] if idle else []),
    ):
        if option in asked.given and str(asked_for).rpartition(":")[2] != found:
            raise BadInput(
                f"--{option} {asked_for} asks for a measurement, but {asked.sensitivity} is one (by {sensitivity.criterion}, "
                f"{sensitivity.contexts}, {sensitivity.samples} samples). Leave out one of the two."
            )


def check_curves(asked: Asked) -> None:
    """Raises BadInput where the options ask for what the solver does not do, Unreadable for a file that is none of ours."""
    assert asked.curves is not None
    for option, given in (("threshold", asked.threshold is not None), ("scope", "scope" in asked.given), ("schedule", asked.gradual)):
        if given:
            raise BadInput(f"--curves shares one --amount, --budget or --drop among the layers. Leave --{option} out, or --curves.")
    curves_in(asked.curves)


def limit_of(text: str, option: str) -> Limit:
    """ "0.1", "4", or "layer1.*=0.5,fc=2": a share with a point, a number of units without. Raises BadInput."""

    def one(value: str) -> float | int:
        try:
            return int(value) if value.strip().isdigit() else float(value)
        except ValueError as error:
            raise BadInput(f"--{option} is a number of units (4), a share (0.1) or name=either, but it is {text!r}.") from error

    if "=" not in text:
        return one(text)
    pairs = [part.partition("=") for part in text.split(",")]
    return {name.strip(): one(value) for name, _, value in pairs}


def share_of(text: str) -> float | None:
    """ "0.5"; None for what is no plain number up to 1."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if 0 <= number <= 1 else None


def kinds_of(text: str | None, structure: str) -> list[str] | None:
    """The kinds of units that "head,hidden-state" names, and None without a text. Raises BadInput."""
    if text is None:
        return None
    if structure != "channels":
        raise BadInput(f"The units of {structure} are of one kind. Leave --units out, or give --structure channels.")
    return [one_of(kind.strip().replace("-", " "), ALL_KINDS, "kind of unit") for kind in text.split(",")]


def read(asked: Asked) -> Given:
    dense, loss = model_of(asked.model, asked.weights, asked.seed), loss_of(asked.loss)
    splits = data_of(asked.data, asked.seed, asked.batch)
    example = example_in(splits.train, asked.example)
    model = as_graph(dense, example) if asked.as_graph else dense
    check_modules(asked.taught, model=model)
    structure = structure_of(model, example, asked.structure, asked.exact, asked.kinds)
    floors(structure.groups, *asked.limits)  # names that no group has are told before anything is measured
    share, budget = asked.goals
    amount, of = with_run(model, example, share, asked.of, budget)
    scope = scope_with_run(model, example, asked.scope, of)
    metrics = metrics_for(model, splits.validation, loss)
    return Given(dense, model, splits, loss, example, structure, metrics, amount, of, budget, scope)


def settings(asked: Asked) -> dict[str, str]:
    return {name: str(value) for name, value in asdict(asked).items() if name not in ("out", "force", "curve", "given")}


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
            option = name.replace("_", "-")
            raise BadInput(
                f"{asked.rounds} keeps the rounds of a run that was stopped, with --{option} {then.get(name)} where this one has {value}. "
                f"Give the same options to go on with it, or delete the folder."
            )
