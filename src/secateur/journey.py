"""What the command line and the demo share: from names to a model and data, the curve of accuracy, and the folder of a result."""

from __future__ import annotations

import itertools
import os
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cost import Cost
from .criteria import CRITERIA, Criterion
from .epochs import samples_of
from .errors import BadInput, BudgetUnreachable
from .evaluate import Metric, evaluate, labels_of, logits_of
from .frontends.models import build_of, example_of, function_of
from .frontends.weights import load_weights
from .measure import measure
from .progress import Tell
from .scope import Scope
from .select import select
from .sensitivity import merge
from .structure import Structure
from .surgery import shrink
from .task import Loss, Task, each, split_batch
from .tree import Scores

VALIDATION = "validation split"  # what curves are measured on: the test split is for the table only
CURVE = "The curve in the report is on validation data, straight after the cut, with nothing repaired."
AMOUNTS = (0.0, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9)  # of the curve


def classification(outputs: object, targets: object) -> Tensor:
    """Cross entropy of class scores, also where the model or the batch wraps them."""
    logits, labels = logits_of(outputs), labels_of(targets)
    if not isinstance(logits, Tensor) or not isinstance(labels, Tensor):
        raise TypeError("cross entropy needs a tensor of class scores and one of classes; another loss is given with --loss")
    return F.cross_entropy(logits, labels)


def loss_of(spec: str | None) -> Loss:
    """The loss that file.py:function names; cross entropy without a name."""
    return classification if spec is None else cast(Loss, function_of(spec, "loss")[0])


def criterion_of(spec: str) -> str | Criterion:
    """A criterion by its name, or by file.py:function. Raises BadInput where there is none."""
    if spec in CRITERIA:
        return spec
    if ":" in spec:
        return cast(Criterion, function_of(spec, "criterion")[0])
    raise BadInput(f"There is no criterion {spec!r}. Choose {', '.join(CRITERIA)}, or give file.py:function.")


def one_of(value: str, choices: Iterable[str], what: str) -> str:
    """Raises BadInput, before anything is computed, for a name that is not among the choices."""
    if value not in (names := list(choices)):
        raise BadInput(f"There is no {what} {value!r}. Choose {', '.join(names)}.")
    return value


def at_least(name: str, value: int, least: int) -> int:
    """Raises BadInput for an option below what it must be."""
    if value < least:
        raise BadInput(f"--{name} must be at least {least}, but it is {value}.")
    return value


def within_one(name: str, value: float) -> float:
    """Raises BadInput for an option that is no share."""
    if not 0 <= value <= 1:
        raise BadInput(f"--{name} must lie in 0..1, but it is {value:g}.")
    return value


def seed_in_range(seed: int) -> int:
    """Raises BadInput for a seed that some source of chance (scikit-learn's, say) does not take."""
    if not 0 <= seed < 2**32:
        raise BadInput(f"The seed must be a whole number in 0..{2**32 - 1}, but it is {seed}. Try --seed 0.")
    return seed


def model_of(spec: str, weights: Path | None, seed: int = 0) -> nn.Module:
    """The model, with the weights in the file (without one: as it is built), in evaluation mode."""
    build = build_of(spec)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build()
    if weights is not None:
        load_weights(model, weights)
    return model.eval()


def example_in(data: Iterable[object], text: str | None = None) -> object:
    """The example that the text describes; without one, the first two samples of the data."""
    if text is not None:
        return example_of(text)
    for batch in data:
        inputs, _ = split_batch(batch)
        return each(partial(two_of, samples_of(inputs)), inputs)
    raise BadInput("The data has no batch, so there is nothing to run the model on. Give at least one batch of (inputs, targets).")


def two_of(size: int, leaf: object) -> object:
    return leaf[:2] if isinstance(leaf, Tensor) and leaf.dim() and len(leaf) == size else leaf


@dataclass(frozen=True)
class First:
    """The first batches of the data: as many as hold `samples` samples."""

    data: Iterable[object]
    samples: int

    def __iter__(self) -> Iterator[object]:
        seen = 0
        for batch in self.data:
            yield batch
            seen += samples_of(split_batch(batch)[0])
            if seen >= self.samples:
                return

    def __len__(self) -> int:
        whole = len(cast(Sized, self.data))  # a TypeError where the data has no length: it is not known here, either
        size = next((samples_of(split_batch(batch)[0]) for batch in itertools.islice(self.data, 1)), 1)
        return min(whole, -(-self.samples // max(size, 1)))


Metrics = Sequence[Metric] | Mapping[str, Metric]


def metrics_for(model: nn.Module, data: Iterable[object], loss: Loss) -> Metrics:
    """Accuracy, and for a loss of the user's own on outputs that are not class scores that loss."""
    usual: tuple[Metric, ...] = ("top1", "top5", "worst_class")
    if loss is classification:
        return usual
    try:
        evaluate(model, First(data, 1), usual)
    except BadInput:
        return {"loss": loss}
    return usual


def curve_of(
    model: nn.Module,
    data: Iterable[object],
    chosen: Mapping[str, Scores],
    train: Iterable[object],
    loss: Loss,
    structure: Structure,
    of: str | Cost,
    scope: str | Scope,
    metrics: Metrics = ("top1", "worst_class"),
    seed: int = 0,
    amounts: Sequence[float] = AMOUNTS,
    tell: Tell | None = None,
) -> dict[str, list[dict[str, float]]]:
    """Quality against the amount removed, straight after the cut: by the chosen scores, by magnitude and at random."""
    task = Task(model, train, loss, seed)
    ranked = {**chosen, **{name: merge(measure(task, structure, name)) for name in ("magnitude", "random") if name not in chosen}}
    points: dict[str, list[dict[str, float]]] = {name: [] for name in ranked}
    for number, (name, amount) in enumerate(itertools.product(ranked, amounts)):
        if tell:
            tell(number, len(ranked) * len(amounts))
        try:
            plan = select(ranked[name], structure, amount, of, scope)
        except BudgetUnreachable:
            continue  # this far no plan reaches
        points[name].append({"amount": amount, **evaluate(shrink(model, plan), data, metrics)})
    return points


def machine() -> str:
    """Where a report's figures were measured."""
    cores = f"{os.cpu_count()} cores ({platform.machine()}), {platform.system()}"
    return f"torch {torch.__version__} with {torch.get_num_threads()} threads on {cores}"


def refuse_foreign(folder: Path, known: Callable[[Path], bool]) -> Path:
    """The folder's full path, made if it is not there. Raises BadInput where it holds what is not ours, or cannot be written."""
    place = folder.expanduser().resolve()
    try:
        if place.is_dir() and any(place.iterdir()) and not known(place):
            raise BadInput(f"{folder} exists and was not written by secateur. Name another folder.")
        place.mkdir(parents=True, exist_ok=True)
        probe = place / f".secateur-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise BadInput(f"{folder} cannot be written: {error.strerror or error}. Name a folder in a place that can.") from error
    return place
