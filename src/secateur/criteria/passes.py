"""Data as some criteria need it: made by a function, counted as it goes by."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from ..contexts import samples_in


@dataclass(frozen=True)
class Passes:
    """Data that a function yields, as often as it is asked for."""

    function: Callable[[], Iterator[object]]

    def __iter__(self) -> Iterator[object]:
        return self.function()


@dataclass
class Counted:
    """Data that remembers how many samples the batch has that it gave last."""

    data: Iterable[object]
    samples: int = 0

    def __iter__(self) -> Iterator[object]:
        for batch in self.data:
            self.samples = samples_in(batch)
            yield batch
