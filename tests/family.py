"""What a family is: a tiny model as its users write it, and which dimensions an expert would expect to be prunable."""

from __future__ import annotations

from dataclasses import dataclass

from cases import Named


@dataclass(frozen=True)
class Family(Named):
    """smaller: (parameter, dimension) pairs that have to belong to some group."""

    smaller: tuple[tuple[str, int], ...]
