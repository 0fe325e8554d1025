"""repair/lockstep.py: runs that halt, side by side."""

from __future__ import annotations

import threading
from collections.abc import Callable
from unittest import mock

import pytest
import torch

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


def test_no_thread_is_left_over_where_there_can_be_no_more() -> None:
    before, start, started = threading.active_count(), threading.Thread.start, list[threading.Thread]()

    def refuse(thread: threading.Thread) -> None:
        if len(started) == 2:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    with mock.patch.object(threading.Thread, "start", refuse), pytest.raises(RuntimeError, match="new thread"):
        with running([counting(9, [], name) for name in "abc"]):
            pass
    assert threading.active_count() == before


def test_every_run_draws_as_if_it_ran_alone() -> None:
    def body(halt: Callable[[float], None]) -> None:
        for _ in range(3):
            halt(float(torch.rand(())))

    torch.manual_seed(0)
    alone = [float(torch.rand(())) for _ in range(3)]
    torch.manual_seed(0)
    with running([body, body]) as runs:
        seen = []
        for _ in range(3):
            seen.append([run.on() for run in runs])
            torch.rand(5)  # the caller's numbers are others
    assert seen == [[number, number] for number in alone]
    torch.manual_seed(0)
    torch.rand(15)
    expected = torch.rand(3)
    torch.manual_seed(0)
    with running([body, body]) as runs:
        for _ in range(2):
            [run.on() for run in runs]
            torch.rand(5)
    torch.rand(5)
    assert torch.equal(torch.rand(3), expected)  # and stay the caller's
