"""Where the marks of a figure stand; what they look like is the page's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .story import Reasons

WIDTH, HEIGHT = 640.0, 360.0
LEFT, RIGHT, TOP, BOTTOM = 64.0, 20.0, 16.0, 58.0


@dataclass(frozen=True)
class Mark:
    x: float
    y: float
    about: str


@dataclass(frozen=True)
class Series:
    """number: which of the page's colours and shapes it has."""

    name: str
    number: int
    path: str
    marks: tuple[Mark, ...]


@dataclass(frozen=True)
class Chart:
    """Lines over two axes. across, up: (place, label) of the ticks; level: the place of the dense model's value, and its label."""

    title: str
    x: str
    y: str
    across: tuple[tuple[float, str], ...]
    up: tuple[tuple[float, str], ...]
    series: tuple[Series, ...]
    level: tuple[float, str] | None = None


@dataclass(frozen=True)
class Bin:
    """A column of a histogram, in percent of its width and height: what went below, what stayed above it."""

    x: float
    width: float
    removed: float
    kept: float
    about: str


def chart(
    curves: Mapping[str, Sequence[Mapping[str, float]]],
    x: str,
    y: str,
    title: str,
    labels: tuple[str, str],
    level: float | None = None,
    shares: tuple[bool, bool] = (True, True),
) -> Chart | None:
    """`y` against `x` of every series that has both; None where none has. shares: whether an axis is in percent."""
    points = {name: sorted((point[x], point[y]) for point in curve if x in point and y in point) for name, curve in curves.items()}
    every = [point for series in points.values() for point in series]
    if not every:
        return None
    heights = [height for _, height in every] + ([] if level is None else [level])
    across = ticks(min(place for place, _ in every), max(place for place, _ in every))
    up = ticks(min(heights), max(heights))
    left, bottom = Scale(across, LEFT, WIDTH - RIGHT), Scale(up, HEIGHT - BOTTOM, TOP)

    def said(value: float, share: bool) -> str:
        return f"{100 * value:.4g} %" if share else f"{value:.4g}"

    def series(number: int, name: str) -> Series:
        marks = [
            Mark(left(a), bottom(b), f"{name}: {labels[1]} {said(b, shares[1])} at {labels[0]} {said(a, shares[0])}")
            for a, b in points[name]
        ]
        path = " ".join(f"{'M' if place == 0 else 'L'}{mark.x:.1f} {mark.y:.1f}" for place, mark in enumerate(marks))
        return Series(name, number, path, tuple(marks))

    return Chart(
        title,
        labels[0],
        labels[1],
        tuple((left(tick), said(tick, shares[0])) for tick in across),
        tuple((bottom(tick), said(tick, shares[1])) for tick in up),
        tuple(series(number, name) for number, name in enumerate(points) if points[name]),
        None if level is None else (bottom(level), said(level, shares[1])),
    )


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers that enclose low..high."""
    if high - low < 1e-12:
        low, high = low - 0.05, high + 0.05
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(factor for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


class Scale:
    """From the ticks' values to places on the page, linearly."""

    def __init__(self, ticks: Sequence[float], start: float, end: float) -> None:
        self.low, self.start = ticks[0], start
        self.by = (end - start) / (ticks[-1] - ticks[0])

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) * self.by


def histogram(reasons: Reasons) -> tuple[Bin, ...]:
    """Columns as high as the most there is in one bin."""
    highest = max((removed + kept for _, _, removed, kept in reasons.histogram), default=0)
    count = len(reasons.histogram)
    return tuple(
        Bin(
            100 * number / count,
            100 / count,
            100 * removed / highest,
            100 * kept / highest,
            f"score {10**low:.2g} to {10**high:.2g}: {removed:,} removed, {kept:,} kept",
        )
        for number, (low, high, removed, kept) in enumerate(reasons.histogram)
    )


def cut_at(reasons: Reasons) -> float | None:
    """Where the cut stands on the histogram's axis, in percent; None where it lies beyond."""
    if not reasons.histogram or reasons.cut is None or reasons.cut <= 0:
        return None
    low, high = reasons.histogram[0][0], reasons.histogram[-1][1]
    place = 100 * (math.log10(reasons.cut) - low) / (high - low)
    return place if 0 <= place <= 100 else None
