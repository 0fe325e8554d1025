"""A run that halts: a function in a thread of its own, which goes on only when it is told to. One of all runs goes at a time.

So a model is run on many batches side by side, all of them halting at the same call, and what that call reads may be changed there: in one
run of the model instead of one for every call. Each has random numbers of its own, as if it ran alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Generic, TypeVar

import torch
from torch import Tensor

At = TypeVar("At")


CPU = torch.device("cpu")


class Closed(BaseException):
    """The run is not wanted any more. No code of the model may catch it."""


class Run(Generic[At]):
    """body: called with `halt`, which it calls with where it is, and which returns when the run may go on.

    device: where it draws, beside the CPU. Runs that are made in the same random state draw the same.
    """

    def __init__(self, body: Callable[[Callable[[At], None]], None], device: torch.device = CPU) -> None:
        self.body, self.device = body, device
        self.chance = chance(device)
        self.may_go, self.has_halted = threading.Semaphore(0), threading.Semaphore(0)
        self.at: At | None = None
        self.error: BaseException | None = None
        self.closed = False
        self.thread = threading.Thread(target=self._work, daemon=True)
        self.thread.start()

    def _work(self) -> None:
        self.may_go.acquire()
        try:
            if not self.closed:
                self.body(self._halt)
        except Closed:
            pass
        except BaseException as error:  # raised again where the run is told to go on
            self.error = error
        self.at = None
        self.has_halted.release()

    def _halt(self, at: At) -> None:
        self.at = at
        self.has_halted.release()
        self.may_go.acquire()
        if self.closed:
            raise Closed

    def on(self) -> At | None:
        """Go on, up to the next halt: where it is then, or None at the end. Raises what the body raises."""
        outside = chance(self.device)
        draw_from(self.chance, self.device)
        self.may_go.release()
        self.has_halted.acquire()
        self.chance = chance(self.device)
        draw_from(outside, self.device)
        if self.error is not None:
            raise self.error
        return self.at

    def close(self) -> None:
        self.closed, outside = True, chance(self.device)
        self.may_go.release()
        self.thread.join()
        draw_from(outside, self.device)


@contextmanager
def running(bodies: Sequence[Callable[[Callable[[At], None]], None]], device: torch.device = CPU) -> Iterator[list[Run[At]]]:
    """A run for each body, none of which is left over."""
    runs: list[Run[At]] = []
    try:
        for body in bodies:
            runs.append(Run(body, device))
        yield runs
    finally:
        for run in runs:
            run.close()


def chance(device: torch.device) -> list[Tensor]:
    """The state of the random numbers that are drawn on the CPU, and on this device."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def draw_from(states: list[Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    for state in states[1:]:
        torch.cuda.set_rng_state(state, device)
