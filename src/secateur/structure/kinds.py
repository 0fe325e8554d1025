"""The kinds of structures by their names: what a plan's "2:4" or "4x1" says of itself, without the structure at hand."""

from __future__ import annotations

import re

from ..errors import BadInput

NAMED = ("channels", "layers", "weights")
BLOCKS = re.compile(r"([1-9][0-9]{0,5})x([1-9][0-9]{0,5})")
N_OF_M = re.compile(r"([1-9][0-9]{0,5}):([1-9][0-9]{0,5})")
WORDS = {"channels": "channel", "layers": "layer", "weights": "connection"}  # what a unit is called
SIZED = "by their sizes 4x1 (blocks), 2:4 (n of every m)"


def block_of(kind: str) -> tuple[int, int] | None:
    """ "4x1" -> (4, 1), blocks of four outputs and one input; None for what is no shape of a block."""
    match = BLOCKS.fullmatch(kind)
    return (int(match[1]), int(match[2])) if match and kind != "1x1" else None


def n_of_m_in(kind: str) -> tuple[int, int] | None:
    """ "2:4" -> (2, 4); None for what does not say how many of how many."""
    match = N_OF_M.fullmatch(kind)
    return (int(match[1]), int(match[2])) if match and int(match[1]) < int(match[2]) else None


def is_kind(kind: object) -> bool:
    return isinstance(kind, str) and (kind in NAMED or at_old_size(kind))


def of_connections(kind: str) -> bool:
    """Whether a unit is a single connection."""
    return kind == "weights" or n_of_m_in(kind) is not None


def at_old_size(kind: str) -> bool:
    """Whether what leaves becomes zeros in tensors of the old size."""
    return of_connections(kind) or block_of(kind) is not None


def word(kind: str) -> str:
    """What a unit is called."""
    return WORDS["weights"] if of_connections(kind) else WORDS.get(kind, "block")


def refuse_amount(kind: str, **asked: bool) -> None:
    """Raises BadInput where the structure itself says how much goes, and something that was asked for would say it, too.

    asked: what would, by name ("amount="), and whether it was asked for.
    """
    found = n_of_m_in(kind)
    if found is not None and (what := next((name for name, given in asked.items() if given), None)):
        raise BadInput(
            f"The structure {kind} itself says how much goes: of every {found[1]} connections the {found[0]} best stay. Leave {what} out "
            "(keep= leaves whole weights as they are), or choose another structure: 'weights' or 'blocks'."
        )
