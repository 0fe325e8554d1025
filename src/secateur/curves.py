"""The classic sensitivity curve, layer by layer: what the model does when one group alone loses its lowest units, at several amounts.

    curve_g(a) = metric(the model without the lowest a of group g)     (Li et al., 2017, "Pruning filters for efficient ConvNets", 3.2)

The measured losses are what `allocate` chooses by. A file keeps every point as soon as it is measured; the same call goes on from there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from torch import nn

from .allocate import Levels
from .errors import BadInput, Unreadable
from .evaluate import METRICS, Metric, evaluate, named
from .floors import matches
from .folders import write_text_atomic
from .select import check_scores, select_each
from .structure import Structure
from .structure.kinds import refuse_amount
from .surgery import shrink
from .tree import Scores

VERSION = 1
WAY_OUT = "Delete it and measure again, or name another file."
AMOUNTS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
Point = dict[str, float]  # metric -> value


@dataclass(frozen=True)
class Curves:
    """dense: the metrics of the whole model. points: group -> amount that it alone loses -> the metrics then.

    key: whose they are. metrics: the names that were asked for; some have no value, others several. structure: its kind, as a plan has
    it; "" where the file is of a version that did not keep it.
    """

    dense: Point
    points: dict[str, dict[float, Point]]
    key: str = field(default="", repr=False)
    metrics: tuple[str, ...] = field(default=(), repr=False)
    structure: str = field(default="", repr=False)

    def losses(self, metric: str, falls: bool | None = None) -> dict[str, dict[float, float]]:
        """Group -> amount -> by how much the metric is worse than the whole model's; 0 at amount 0.

        falls: whether worse is less of it, as it is for the metrics that have a name (top1, ...); of another metric it is taken for a loss.
        """
        if metric not in self.dense:
            raise BadInput(f"There is no {metric!r} in these curves. Choose {', '.join(self.dense)}.")
        sign = -1.0 if (metric in METRICS if falls is None else falls) else 1.0
        return {
            group: {0.0: 0.0, **{amount: sign * (point[metric] - self.dense[metric]) for amount, point in sorted(points.items())}}
            for group, points in self.points.items()
        }

    def to_json(self) -> str:
        points = {group: [[amount, point] for amount, point in sorted(points.items())] for group, points in self.points.items()}
        told = {"version": VERSION, "key": self.key, "metrics": self.metrics, "structure": self.structure}
        return json.dumps({**told, "dense": self.dense, "points": points}, indent=1)

    @staticmethod
    def from_json(text: str, name: str = "This text") -> Curves:
        """Raises Unreadable, saying the text's name, for one that is none of ours."""
        try:
            raw = json.loads(text)
            if raw["version"] != VERSION:
                raise Unreadable(f"{name} has curves of version {raw['version']}, but this is version {VERSION}. {WAY_OUT}")
            points = {str(group): {float(amount): numbers(point) for amount, point in points} for group, points in raw["points"].items()}
            metrics = tuple(map(str, raw.get("metrics", raw["dense"])))
            return Curves(numbers(raw["dense"]), points, str(raw["key"]), metrics, str(raw.get("structure", "")))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, Unreadable):
                raise
            raise Unreadable(f"{name} has no curves of secateur, or not all ({type(error).__name__}: {error}). {WAY_OUT}") from error


def curves(
    model: nn.Module,
    structure: Structure,
    scores: Scores,
    data: Iterable[object],
    metrics: Sequence[Metric] | Mapping[str, Metric] = ("top1",),
    amounts: Sequence[float] = AMOUNTS,
    groups: Collection[str] = ("*",),
    multiple: int = 1,
    file: str | Path | None = None,
    progress: Callable[[int, int | None], None] | None = None,
) -> Curves:
    """Every group's curve on held-out batches: groups x amounts smaller models, each evaluated, and the whole one.

    data, metrics: as in `evaluate`; {"loss": function} for a loss. groups: names or patterns of those that are measured.
    file: a JSON file that keeps every point; what it has of the same model, scores and metrics is not measured again. It cannot know
        whether the data is the same: name another file for other data.
    progress: called with (points measured, points in all).
    Raises BadInput where the file is of other curves.
    """
    check_scores(scores, structure)
    refuse_amount(structure.kind, **{"curves against the amount": True})
    chosen = [name for name in structure.groups if any(matches(name, pattern) for pattern in groups)]
    if not chosen:
        raise BadInput(f"No group is called {', '.join(groups)}. There are {', '.join(list(structure.groups)[:8])}.")
    asked = named(metrics)
    key = key_of(structure, scores, [*asked], multiple)
    found = replace(kept_in(file, key), metrics=(*asked,), structure=structure.kind)
    todo = [(name, float(amount)) for name in chosen for amount in amounts if float(amount) not in found.points.get(name, {})]
    total = len(chosen) * len(amounts)
    if not found.dense:
        found = replace(found, dense=evaluate(model, data, asked))
    for number, (name, amount) in enumerate(todo):
        if progress:
            progress(total - len(todo) + number, total)
        point = evaluate(shrink(model, select_each(scores, structure, {name: amount}, multiple)), data, asked)
        found = replace(found, points={**found.points, name: {**found.points.get(name, {}), amount: point}})
        if file is not None:
            write_text_atomic(file, found.to_json())
    if progress:
        progress(total, total)
    wanted = {float(amount) for amount in amounts}
    return replace(found, points={name: {a: point for a, point in sorted(found.points[name].items()) if a in wanted} for name in chosen})


def losses_by(curves: Curves | Levels, structure: Structure, scores: Scores, multiple: int = 1) -> Levels:
    """What `select_by_curves` takes: of the curves' first metric, or losses as they are. Raises BadInput for curves of other scores."""
    if not isinstance(curves, Curves):
        return curves
    if curves.key != key_of(structure, scores, curves.metrics, multiple):
        raise BadInput(
            "The curves are of another model, of other units or of other scores. Measure them of what prune(...) finds, "
            "curves(model, pruned.structure, pruned.scores, ...), and give it the same data, loss, structure=, units=, exact=, as_graph=, "
            "criterion=, contexts=, local=, multiple= and seed= again."
        )
    return curves.losses(next(iter(curves.dense)))


def kept_in(file: str | Path | None, key: str) -> Curves:
    """The curves in the file; none where there is no file yet."""
    if file is None or not Path(file).exists():
        return Curves({}, {}, key)
    try:
        found = Curves.from_json(Path(file).read_text(encoding="utf-8"), str(file))
    except (OSError, UnicodeDecodeError) as error:
        raise Unreadable(f"{file} cannot be read: {error}. Name another file.") from error
    if found.key != key:
        raise BadInput(f"{file} has curves of another model, other scores or other metrics. Name another file, or delete it.")
    return found


def key_of(structure: Structure, scores: Scores, metrics: Sequence[str], multiple: int) -> str:
    """Equal for the same model, structure, scores and names of metrics."""
    digest = hashlib.sha256(json.dumps([structure.kind, structure.digest, sorted(metrics), multiple]).encode())
    for name, values in scores.items():
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(values.detach().cpu().double().numpy()).data)
    return digest.hexdigest()


def numbers(point: Mapping[str, object]) -> Point:
    return {str(name): float(value) for name, value in point.items()}  # type: ignore[arg-type]
