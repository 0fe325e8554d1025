"""Progress on the terminal: one line a stage and one for what it says, on stderr, and nothing at all where nobody watches."""

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
    console, live, progress, tables, texts = (need(f"rich.{name}", "cli") for name in ("console", "live", "progress", "table", "text"))
    stiff, yielding = tables.Column(no_wrap=True), tables.Column()  # where a terminal is narrow, the name of a stage is folded, no number
    drawn = progress.Progress(
        progress.TextColumn("{task.description:<28}", markup=False, table_column=yielding),
        progress.BarColumn(bar_width=20, table_column=stiff),
        progress.TextColumn("{task.fields[share]:>4}", table_column=stiff),
        progress.TimeElapsedColumn(table_column=stiff),
        progress.TextColumn("left", style="dim", table_column=stiff),
        progress.TimeRemainingColumn(table_column=stiff),
    )
    now = ""  # what the stage that runs says, on a line of its own: however long, it takes nothing from the bar

    def frame() -> object:
        return console.Group(drawn, *([texts.Text(now, style="dim")] if now else []))

    with live.Live(console=console.Console(stderr=True), refresh_per_second=10, get_renderable=frame):
        stages: list[int] = []

        def finish() -> None:
            nonlocal now
            now = ""
            for stage in stages:
                drawn.update(stage, total=1, completed=1, share="100%")
                drawn.stop_task(stage)
            stages.clear()

        def bar(stage: str) -> Tell:
            finish()  # one stage after the other: a new one ends the last
            task = drawn.add_task(stage, total=None, share="")
            stages.append(task)

            def tell(done: int, total: int | None, words: str = "") -> None:
                nonlocal now
                now = words
                drawn.update(task, completed=done, total=total, share=f"{done / total:.0%}" if total else "")

            return tell

        yield bar
        finish()


def silent(done: int, total: int | None, words: str = "") -> None:
    """Nobody watches."""
