"""A run that halts: a function in a thread of its own, which goes on only when it is told to. One of all runs goes at a time.

So a model is run on many batches side by side, all of them halting at the same call, and what that call reads may be changed there: in one
run of the model instead of one for every call.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Generic, TypeVar

At = TypeVar("At")


class Closed(BaseException):
    """The run is not wanted any more. No code of the model may catch it."""


class Run(Generic[At]):
    """body: called with `halt`, which it calls with where it is, and which returns when the run may go on."""

    def __init__(self, body: Callable[[Callable[[At], None]], None]) -> None:
        self.body = body
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
        self.may_go.release()
        self.has_halted.acquire()
        if self.error is not None:
            raise self.error
        return self.at

    def close(self) -> None:
        self.closed = True
        self.may_go.release()
        self.thread.join()


@contextmanager
def running(bodies: Sequence[Callable[[Callable[[At], None]], None]]) -> Iterator[list[Run[At]]]:
    """A run for each body, none of which is left over."""
    runs = [Run(body) for body in bodies]
    try:
        yield runs
    finally:
        for run in runs:
            run.close()
