"""How the learning rate goes: the share 0..1 of a training run that is over -> a factor of the optimizer's own rate."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from .errors import BadInput

Course = Callable[[float], float]


def cosine(share: float) -> float:
    """Half a cosine, down to 0 (Loshchilov and Hutter, 2017, "SGDR", eq. 5).

    f(t) = (1 + cos(pi t)) / 2
    """
    return (1 + math.cos(math.pi * share)) / 2


def constant(share: float) -> float:
    """f(t) = 1"""
    return 1.0


RATES: dict[str, Course] = {"cosine": cosine, "constant": constant}


@dataclass(frozen=True)
class Rate:
    """A course after a warm-up over the share w of the run, in which the rate rises in equal steps (Goyal et al., 2017, section 2.2).

    f(t) = (t + dt) / w for t < w, course((t - w) / (1 - w)) after that; t: where a step begins, dt: the share of the run that it takes
    """

    course: Course
    warmup: float

    def __call__(self, share: float, step: float) -> float:
        w = self.warmup
        factor = min(1.0, (share + step) / w) if share < w else self.course((share - w) / (1 - w) if w < 1 else 1.0)
        if not 0 <= factor < math.inf:
            raise BadInput(f"The course of the learning rate gives {factor} at {share:.3f}. It must be a factor of 0 or more.")
        return factor


def rate_of(course: str | Course, warmup: float) -> Rate:
    """Raises BadInput for a name that is none, or a warm-up that is no share of the run."""
    if isinstance(course, str) and course not in RATES:
        raise BadInput(f"There is no course {course!r} of the learning rate. Choose {', '.join(RATES)}, or give a function of 0..1.")
    if not 0 <= warmup <= 1:
        raise BadInput(f"warmup is {warmup}, but must lie in 0..1: it is the share of the run in which the learning rate rises.")
    return Rate(RATES[course] if isinstance(course, str) else course, warmup)
