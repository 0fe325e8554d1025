"""The learning rate's course, against its equation step by step."""

from __future__ import annotations

import math

import pytest

from secateur.errors import BadInput
from secateur.rates import RATES, rate_of

STEPS = 20


def slow(course: str, warm: int) -> list[float]:
    """`warm` equal steps up to 1, then the course over the steps that are left."""
    rest = STEPS - warm
    down = {"cosine": lambda k: 0.5 + 0.5 * math.cos(math.pi * k / rest), "constant": lambda k: 1.0}[course]
    return [(k + 1) / warm for k in range(warm)] + [down(k) for k in range(rest)]


@pytest.mark.parametrize("warm", [0, 1, 5, 19, 20])
@pytest.mark.parametrize("course", RATES)
def test_a_run_goes_up_and_then_along_its_course(course: str, warm: int):
    rate = rate_of(course, warm / STEPS)
    assert [rate(k / STEPS, 1 / STEPS) for k in range(STEPS)] == pytest.approx(slow(course, warm), abs=1e-9)


def test_a_warm_up_of_part_of_a_step_never_goes_beyond_the_rate():
    rate = rate_of("constant", 0.12)
    assert [rate(k / 10, 0.1) for k in range(3)] == pytest.approx([0.1 / 0.12, 1.0, 1.0])


def test_a_course_of_the_users_own():
    rate = rate_of(lambda share: 1 - share, 0.5)
    assert [rate(k / 4, 0.25) for k in range(4)] == pytest.approx([0.5, 1.0, 1.0, 0.5])


@pytest.mark.parametrize(
    ("course", "warmup", "sentence"),
    [
        ("step", 0.0, "There is no course 'step' of the learning rate. Choose cosine, constant"),
        ("cosine", -0.1, "warmup is -0.1, but must lie in 0..1"),
        ("cosine", 1.5, "warmup is 1.5"),
        ("cosine", math.nan, "warmup is nan"),
        (lambda share: -1.0, 0.0, "gives -1.0 at 0.000"),
        (lambda share: math.inf, 0.0, "gives inf"),
        (lambda share: math.nan, 0.0, "gives nan"),
    ],
)
def test_what_is_no_course_is_refused(course, warmup, sentence):
    with pytest.raises(BadInput, match=sentence):
        rate_of(course, warmup)(0.0, 0.1)
