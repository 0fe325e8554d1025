"""How gradual pruning goes: progress in 0..1 -> the share of the final amount that is removed by then."""

from __future__ import annotations

from collections.abc import Callable

Schedule = Callable[[float], float]


def one_shot(progress: float) -> float:
    """Everything at once, at the start.

    share(t) = 1
    """
    return 1.0


def linear(progress: float) -> float:
    """Equal steps.

    share(t) = t
    """
    return progress


def cubic(progress: float) -> float:
    """Fast while there is much redundancy, slow at the end (Zhu and Gupta, 2017, "To prune, or not to prune", eq. 1, from zero sparsity).

    share(t) = 1 - (1 - t)^3
    """
    return 1.0 - (1.0 - progress) ** 3


SCHEDULES: dict[str, Schedule] = {"one-shot": one_shot, "linear": linear, "cubic": cubic}
