"""The largest amount that costs no more quality than allowed, found by bisection on held-out data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from .errors import BadInput, BudgetUnreachable

T = TypeVar("T")
TRIALS = 7  # amounts are then told apart to 1/128


@dataclass(frozen=True)
class Largest(Generic[T]):
    """made: what the largest amount within the drop made. amount, value: that amount, and the quality it has; dense: of the whole model.

    trials: every (amount, value) that was tried, in order; None where no plan reaches that amount.
    """

    made: T
    amount: float
    value: float
    dense: float
    trials: tuple[tuple[float, float | None], ...]

    def said(self, drop: float, metric: str) -> dict[str, object]:
        """What a plan remembers of it, as JSON values."""
        trials = [[amount, value] for amount, value in self.trials]
        return {"drop": drop, "metric": metric, "dense": self.dense, "reached": self.value, "trials": trials}


def largest_within(
    make: Callable[[float], T],
    value_of: Callable[[T], float],
    dense: float,
    drop: float,
    trials: int = TRIALS,
    progress: Callable[[int, int | None], None] | None = None,
) -> Largest[T]:
    """The largest amount on a grid of 2**-trials at which `value_of(make(amount))` is at least dense - drop / 100.

    drop: in points, hundredths of the metric. All amounts lie on one nested path, so bisection halves what is left with each of `trials`
    evaluations; quality need not fall with every step, and what is found is an amount within the drop next to one that is not, on that
    grid. Nothing is removed (amount 0) where no amount on the way stays within it. Raises BadInput for a drop that is no number of points.
    """
    points(drop)
    if isinstance(trials, bool) or not isinstance(trials, int) or trials < 1:
        raise BadInput(f"trials= must be a whole number of at least 1, but it is {trials!r}. Try trials={TRIALS}.")
    floor = dense - drop / 100
    tried: list[tuple[float, float | None]] = []
    best: tuple[T, float, float] | None = None
    low, high = 0.0, 1.0
    for number in range(trials):
        if progress:
            progress(number, trials)
        amount = (low + high) / 2
        made, value = None, None
        try:
            made = make(amount)
        except BudgetUnreachable:
            tried.append((amount, None))
        else:
            tried.append((amount, value := value_of(made)))
        if made is not None and value is not None and value >= floor - 1e-12:
            low, best = amount, (made, amount, value)
        else:
            high = amount
    if progress:
        progress(trials, trials)
    made, amount, value = best if best is not None else (make(0.0), 0.0, dense)
    return Largest(made, amount, value, dense, tuple(tried))


def dense_quality(value: Callable[[], float], metric: str) -> float:
    """The whole model's quality. Raises BadInput, saying what a drop needs, where the data has no such metric."""
    try:
        return value()
    except BadInput as error:
        raise BadInput(
            f"A drop is counted in points of {metric}, which needs class scores and one class a sample. {str(error).partition('. ')[0]}. "
            "Give an amount, a budget or a threshold instead of a drop."
        ) from error


def points(drop: object) -> None:
    """Raises BadInput for what is no number of points."""
    if drop is not None and (isinstance(drop, bool) or not isinstance(drop, (int, float)) or not 0 <= drop <= 100):
        raise BadInput(f"drop= is a number of points (hundredths of the metric) in 0..100, but it is {drop!r}. Try drop=0.5.")
