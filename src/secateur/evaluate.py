"""How good a model is, and several models side by side, each figure measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Protocol, TypeAlias, cast

import torch
from torch import Tensor, nn

from .errors import BadInput, MissingExtra, need
from .footprint import cuda_of, first_line, footprint
from .memory import peak_memories
from .speed import latency
from .table import Table as Table
from .table import table_of
from .task import call, describe, device_of, evaluating, split_batch, to

LABELS = ("labels", "label", "targets", "target", "y")  # where a batch that is a dict keeps its classes


class Running(Protocol):
    """What of torchmetrics.Metric is used; any object with these three is a metric, too."""

    def update(self, outputs: Tensor, targets: Tensor) -> None: ...

    def compute(self) -> object: ...

    def reset(self) -> None: ...


Factory = Callable[[int], "Running | None"]  # number of classes -> a metric, or None where it has no meaning
Metric: TypeAlias = "str | Running | Callable[[object, object], object]"


@dataclass(frozen=True)
class Kind:
    """A metric by name: how it is made for a number of classes, and how what it computes becomes named numbers."""

    make: Factory
    read: Callable[[str, Tensor], dict[str, float]]


def top(k: int) -> Factory:
    """The share of samples whose class is among the k largest outputs."""

    def make(classes: int) -> Running | None:
        return metrics_module().MulticlassAccuracy(num_classes=classes, top_k=k, average="micro") if k == 1 or classes > k else None

    return make


def counts(classes: int) -> Running:
    """Per class: right, wrongly it, rightly not it, missed, samples."""
    return metrics_module().MulticlassStatScores(num_classes=classes, average=None)


def one(name: str, value: Tensor) -> dict[str, float]:
    return {name: float(value)}


def worst(name: str, table: Tensor) -> dict[str, float]:
    """The lowest accuracy of any class that occurs, and which class it is."""
    accuracy = {label: share for label, share in enumerate(accuracies(table)) if share is not None}
    label = min(accuracy, key=lambda label: (accuracy[label], label))
    return {name: accuracy[label], f"{name}_is": float(label)}


def each(name: str, table: Tensor) -> dict[str, float]:
    return {f"class {label}": share for label, share in enumerate(accuracies(table)) if share is not None}


def accuracies(table: Tensor) -> list[float | None]:
    """Per class, the share of its samples that were found; None where it has none."""
    rows: list[list[int]] = table.reshape(-1, 5).tolist()
    return [right / support if support else None for right, _, _, _, support in rows]


METRICS: dict[str, Kind] = {
    "top1": Kind(top(1), one),
    "top5": Kind(top(5), one),
    "worst_class": Kind(counts, worst),
    "classes": Kind(counts, each),
}


def evaluate(
    model: nn.Module,
    data: Iterable[object],
    metrics: Sequence[Metric] | Mapping[str, Metric] = ("top1", "top5", "worst_class"),
) -> dict[str, float]:
    """The model's quality on `data`, by metric, as fractions 0..1.

    data: batches of (inputs, targets), or dicts that hold both. metrics: names in METRICS, a torchmetrics metric (a copy of it is used),
    or a function of (outputs, targets) whose mean over the samples is taken; a mapping gives your own names.
    What has no meaning (top-5 of five classes or fewer) is absent. `worst_class` comes with `worst_class_is`, the class.
    Raises BadInput where there is no data, or outputs and labels do not fit.
    """
    asked = named(metrics)
    running: dict[str, Running] | None = None
    with evaluating(model), torch.no_grad(), torch.random.fork_rng(cuda_of(model)):
        for number, batch in enumerate(data):
            inputs, targets = split_batch(to(batch, device_of(model)))
            outputs, targets = logits_of(run(model, inputs, number)), labels_of(targets)
            if any(isinstance(metric, str) for metric in asked.values()):
                check_labels(outputs, targets, number)
            if running is None:
                running = {name: metric for name, given in asked.items() if (metric := started(given, outputs)) is not None}
            for name, metric in running.items():
                update(name, metric, outputs, targets, number)
    if running is None:
        raise BadInput("The data has no batch, so nothing can be evaluated on it. Give at least one batch of (inputs, targets).")
    results: dict[str, float] = {}
    for name, metric in running.items():
        given = asked[name]
        results |= numbers(name, metric.compute(), METRICS[given].read if isinstance(given, str) else None)
    return results


def named(metrics: Sequence[Metric] | Mapping[str, Metric]) -> dict[str, Metric]:
    """The metrics by name. Raises BadInput for one that is unknown."""
    if isinstance(metrics, str):
        metrics = (metrics,)
    asked = metrics if isinstance(metrics, Mapping) else {name_of(metric): metric for metric in metrics}
    for name, metric in asked.items():
        if isinstance(metric, str) and metric not in METRICS:
            raise BadInput(f"There is no metric {metric!r}. Choose from {', '.join(METRICS)}, or give a torchmetrics metric or a function.")
        if not isinstance(metric, str) and not callable(metric) and not hasattr(metric, "update"):
            raise BadInput(
                f"The metric {name} is {describe(metric)}. Give a name, a torchmetrics metric or a function of (outputs, targets)."
            )
    return dict(asked)


def name_of(metric: Metric) -> str:
    return metric if isinstance(metric, str) else str(getattr(metric, "__name__", type(metric).__name__))


def started(metric: Metric, outputs: object) -> Running | None:
    """The metric with nothing counted yet, where the outputs are."""
    fresh: Running | None
    if isinstance(metric, str):
        assert isinstance(outputs, Tensor)
        fresh = METRICS[metric].make(outputs.shape[1])
    elif hasattr(metric, "update"):
        fresh = cast(Running, metric.clone() if hasattr(metric, "clone") else metric)
        fresh.reset()
    else:
        fresh = Mean(metric)
    if isinstance(fresh, nn.Module) and isinstance(outputs, Tensor):
        fresh = fresh.to(outputs.device)
    return fresh


class Mean:
    """The mean over the samples of a function of (outputs, targets)."""

    def __init__(self, function: Callable[[object, object], object]) -> None:
        self.function = function
        self.reset()

    def reset(self) -> None:
        self.sum = 0.0
        self.samples = 0

    def update(self, outputs: object, targets: object) -> None:
        value = torch.as_tensor(self.function(outputs, targets), dtype=torch.float64)
        samples = len(targets) if isinstance(targets, Tensor) and targets.dim() else 1
        self.sum += float(value.mean()) * samples
        self.samples += samples

    def compute(self) -> float:
        return self.sum / self.samples


def numbers(name: str, value: object, read: Callable[[str, Tensor], dict[str, float]] | None) -> dict[str, float]:
    """What a metric computed, as named numbers."""
    if isinstance(value, dict):
        return {str(key): float(item) for key, item in value.items()}
    value = torch.as_tensor(value)
    if read is not None:
        return read(name, value)
    return one(name, value) if value.numel() == 1 else {f"{name} {index}": float(item) for index, item in enumerate(value.flatten())}


def update(name: str, metric: Running, outputs: object, targets: object, number: int) -> None:
    try:
        metric.update(outputs, targets)  # type: ignore[arg-type]  # the user's own metric may take what it likes
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
        raise BadInput(
            f"In batch {number} the metric {name} could not be computed from outputs {describe(outputs)} and targets {describe(targets)}: "
            f"{first_line(error)}. Make the labels and the metric fit the model's outputs."
        ) from error


def run(model: nn.Module, inputs: object, number: int) -> object:
    try:
        return call(model, inputs)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise BadInput(
            f"In batch {number} the model does not run on inputs {describe(inputs)}: {first_line(error)}. Give data that fits the model."
        ) from error


def logits_of(outputs: object) -> object:
    """The scores of the classes: the tensor itself, `.logits` of a model that returns several things, or the first of a tuple."""
    if isinstance(outputs, dict):
        return outputs.get("logits", outputs)
    if isinstance(outputs, (tuple, list)) and outputs:
        return outputs[0]
    return getattr(outputs, "logits", outputs)


def labels_of(targets: object) -> object:
    """The classes: the tensor itself, or a batch's entry of one of the usual names."""
    return next((targets[key] for key in LABELS if key in targets), targets) if isinstance(targets, dict) else targets


def check_labels(outputs: object, targets: object, number: int) -> None:
    """Raises BadInput unless outputs are (n, classes), targets n whole numbers, each a class."""
    if not isinstance(outputs, Tensor) or outputs.dim() != 2 or outputs.shape[1] < 2:
        raise BadInput(
            f"In batch {number} the outputs are {describe(outputs)}, but classes are told from outputs of shape (samples, classes). "
            f"Give a metric of your own for another kind of output."
        )
    if not isinstance(targets, Tensor) or targets.shape != outputs.shape[:1] or targets.is_floating_point():
        raise BadInput(
            f"In batch {number} the targets are {describe(targets)}, but the outputs {describe(outputs)}. Give one class number per sample."
        )
    if len(targets) and not 0 <= int(targets.min()) <= int(targets.max()) < outputs.shape[1]:
        raise BadInput(
            f"In batch {number} the labels run from {int(targets.min())} to {int(targets.max())}, but the model tells {outputs.shape[1]} "
            f"classes (0 to {outputs.shape[1] - 1}). Number the labels from 0, or give the model more outputs."
        )


def metrics_module() -> ModuleType:
    """torchmetrics.classification, which a torchvision that does not fit torch keeps from being imported."""
    try:
        return need("torchmetrics.classification", "report")
    except (RuntimeError, OSError) as error:
        raise MissingExtra(
            f"torchmetrics cannot be imported here: {first_line(error)}. "
            f"Uninstall the package it fails on, or install the release for this torch."
        ) from error


def compare(
    models: Mapping[str, nn.Module],
    data: Iterable[object] | None = None,
    metrics: Sequence[Metric] | Mapping[str, Metric] = ("top1", "top5", "worst_class"),
    example: object = None,
    batches: Sequence[int] = (1, 32),
    memory: bool = True,
    dense: str | None = None,
) -> Table:
    """The models side by side, a row each: quality on `data`; size; and, on `example`, MACs, latency and peak memory.

    `dense` names the row that the others are compared with; it is the first without it. What is not measured is absent.
    """
    if not models:
        raise BadInput("There is no model to compare. Give a dict from a name to a model.")
    first = next(iter(models)) if dense is None else dense
    if first not in models:
        raise BadInput(f"There is no model {first!r} to compare with. Name one of {', '.join(models)}.")
    most = max(batches, default=1)
    order = [first, *(name for name in models if name != first)]
    rows: dict[str, dict[str, float]] = {name: {} for name in order}
    notes: list[str] = []
    for name in order:
        if data is not None:
            rows[name] |= evaluate(models[name], data, metrics)
        rows[name] |= footprint(models[name], example)
    if example is not None:
        chosen = {name: models[name] for name in order}
        if memory:
            peaks, reasons = peak_memories(chosen, example, batch=most)
            for name, peak in peaks.items():
                if peak is not None:
                    rows[name]["memory"] = peak
            notes += [f"Peak memory of {name} was not measured: {reason}." for name, reason in reasons.items()]
        for name, times in latency(chosen, example, batches).items():
            for size, (median, p95) in times.items():
                rows[name][f"ms_{size}"] = median
                rows[name][f"ms_{size}_p95"] = p95
    table = table_of(rows, notes)
    if "memory" in table.columns:
        table.columns["memory"] = replace(table.columns["memory"], title=f"memory, batch {most}")
    return table
