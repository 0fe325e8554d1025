"""Where the marks of the sensitivity page stand: cells of the map, and what each layer alone does to the quality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from ..table import COLUMNS

LEVELS = 8  # shades of the map
HIGH, STRIP = 10.0, 2.5  # of a row, and of the strip at its foot that shows what went
NAMED = 6  # layers that have a line of their own


@dataclass(frozen=True)
class Shade:
    """Cells of one shade, 0 (least needed) to LEVELS - 1, as one path; `about` in words."""

    level: int
    path: str
    about: str


def shades(percents: Sequence[int]) -> tuple[Shade, ...]:
    """A shade for every level that some cell has; neighbours of a level are one rectangle."""
    runs: dict[int, list[str]] = {}
    start = 0
    for level, cells in groupby(map(level_of, percents)):
        count = len(list(cells))
        runs.setdefault(level, []).append(f"M{start} 0h{count}v{HIGH - STRIP:g}h-{count}z")
        start += count
    return tuple(Shade(level, "".join(paths), about(level)) for level, paths in sorted(runs.items()))


def level_of(percent: int) -> int:
    return min(LEVELS - 1, max(0, percent) * LEVELS // 100)


def about(level: int) -> str:
    return f"needed more than {100 * level / LEVELS:g} to {100 * (level + 1) / LEVELS:g} % of all units"


def strip(gone: Sequence[int]) -> str:
    """A path of what went of every cell, as high as its share."""
    parts, start = [], 0
    for percent, cells in groupby(gone):
        count = len(list(cells))
        if percent > 0:
            high = (STRIP - 0.5) * min(percent, 100) / 100
            parts.append(f"M{start} {HIGH:g}h{count}v-{high:.3g}h-{count}z")
        start += count
    return "".join(parts)


@dataclass(frozen=True)
class Fall:
    """A layer's cell at an amount: the metric, how much worse than whole, 0..1 of the worst there is, and in words."""

    said: str
    depth: float
    about: str


@dataclass(frozen=True)
class LayerCurves:
    """amounts: in words. rows: layer -> a cell for each of them (None where it was not measured), the most sensitive first.

    lines: of the most sensitive layers, for a chart; level: the whole model's value.
    """

    metric: str
    title: str
    level: float
    amounts: tuple[str, ...]
    rows: dict[str, tuple[Fall | None, ...]]
    lines: dict[str, Sequence[Mapping[str, float]]]
    points: bool


def layer_curves(curves: Mapping[str, Sequence[Mapping[str, float]]]) -> LayerCurves | None:
    """Of curves that each begin with the whole model's point (amount 0); None where there are none."""
    whole = next((point for points in curves.values() for point in points if point.get("amount") == 0), {})
    metric = next((name for name in whole if name != "amount"), None)
    if metric is None:
        return None
    column = COLUMNS.get(metric)
    points, sign = (True, -1.0) if column is not None and column.style == "share" else (False, 1.0)
    at = {layer: {point["amount"]: point[metric] for point in known if metric in point} for layer, known in curves.items()}
    amounts = sorted({amount for known in at.values() for amount in known if amount > 0})
    loss = {layer: {amount: sign * (value - whole[metric]) for amount, value in known.items()} for layer, known in at.items()}
    worst = max((max(0.0, value) for known in loss.values() for value in known.values()), default=0.0) or 1.0
    order = sorted(loss, key=lambda layer: -sum(loss[layer].values()))
    title = column.title if column else metric

    def cell(layer: str, amount: float) -> Fall | None:
        if amount not in loss[layer]:
            return None
        change = -loss[layer][amount] if points else loss[layer][amount]
        said = f"{100 * change:+.1f}" if points else f"{change:+.3g}"
        said = "0" if float(said) == 0 else said
        value = f"{100 * at[layer][amount]:.1f} %" if points else f"{at[layer][amount]:.4g}"
        return Fall(said.replace("-", "−"), max(0.0, loss[layer][amount]) / worst, f"{layer}: {title} {value} without {amount:.0%} of it")

    return LayerCurves(
        metric,
        title,
        whole[metric],
        tuple(f"{100 * amount:g} %" for amount in amounts),
        {layer: tuple(cell(layer, amount) for amount in amounts) for layer in order},
        {layer: curves[layer] for layer in order[:NAMED]},
        points,
    )
