"""Progress on the terminal: one line a stage, on stderr, and nothing at all where nobody watches."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from .errors import need


class Tell(Protocol):
    """Called with (done, all or None where that is not known, a few words)."""

    def __call__(self, done: int, total: int | None, words: str = "") -> None: ...


Bar = Callable[[str], Tell]  # the name of a stage -> what tells how far it is


@contextmanager
def bars(quiet: bool = False) -> Iterator[Bar]:
    """A bar for every stage that is begun; off with `quiet`, and where stderr is not a terminal."""
    if quiet or not sys.stderr.isatty():
        yield lambda stage: silent
        return
    console, progress = need("rich.console", "cli"), need("rich.progress", "cli")
    columns = (
        progress.TextColumn("{task.description:<28}", markup=False),
        progress.BarColumn(bar_width=24),
        progress.TimeElapsedColumn(),
        progress.TextColumn("left", style="dim"),
        progress.TimeRemainingColumn(),
        progress.TextColumn("{task.fields[words]}", markup=False),
    )
    with progress.Progress(*columns, console=console.Console(stderr=True)) as drawn:
        stages: list[int] = []

        def finish() -> None:
            for stage in stages:
                drawn.update(stage, total=1, completed=1)
                drawn.stop_task(stage)
            stages.clear()

        def bar(stage: str) -> Tell:
            finish()  # one stage after the other: a new one ends the last
            task = drawn.add_task(stage, total=None, words="")
            stages.append(task)

            def tell(done: int, total: int | None, words: str = "") -> None:
                drawn.update(task, completed=done, total=total, words=words)

            return tell

        yield bar
        finish()


def silent(done: int, total: int | None, words: str = "") -> None:
    """Nobody watches."""
