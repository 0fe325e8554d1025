"""repair/lockstep.py: runs that halt, side by side."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from secateur.repair.lockstep import Run, running


def counting(to: int, seen: list[str], name: str) -> Callable[[Callable[[int], None]], None]:
    def body(halt: Callable[[int], None]) -> None:
        for number in range(to):
            seen.append(f"{name}{number}")
            halt(number)
        seen.append(f"{name} is over")

    return body


def test_runs_go_on_when_they_are_told_to() -> None:
    seen: list[str] = []
    with running([counting(2, seen, "a"), counting(2, seen, "b")]) as runs:
        assert seen == []
        assert [[run.on() for run in runs] for _ in range(3)] == [[0, 0], [1, 1], [None, None]]
    assert seen == ["a0", "b0", "a1", "b1", "a is over", "b is over"]


def test_no_thread_is_left_over() -> None:
    before, seen = threading.active_count(), list[str]()
    with pytest.raises(KeyboardInterrupt), running([counting(9, seen, "a"), counting(9, seen, "b")]) as runs:
        runs[0].on()
        raise KeyboardInterrupt
    assert threading.active_count() == before
    assert seen == ["a0"]  # the second was never begun, the first is stopped where it was


def test_what_goes_wrong_in_a_run_is_raised_where_it_is_told_to_go_on() -> None:
    def body(halt: Callable[[int], None]) -> None:
        halt(1)
        raise ValueError("of the model's own")

    with running([body]) as (run,):
        assert run.on() == 1
        with pytest.raises(ValueError, match="of the model's own"):
            run.on()


def test_a_model_that_catches_what_it_can_is_stopped() -> None:
    def body(halt: Callable[[int], None]) -> None:
        try:
            halt(1)
        except Exception:
            halt(2)

    run: Run[int] = Run(body)
    assert run.on() == 1
    run.close()
    assert not run.thread.is_alive() and run.at is None
