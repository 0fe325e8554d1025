"""Units that the data as a whole would do without, and that some part of it cannot: globally cheap, locally vital."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from . import tree
from .errors import BadInput
from .reductions import normalised
from .smallest import smallest
from .tree import Scores


@dataclass(frozen=True)
class Conflict:
    """A unit that goes by its global sensitivity, and the context that needs it.

    unit: its place in the group (of connections, in the flattened parameter). key: None where contexts have no names.
    global_rank, local_rank: the share of all units, 0..1, that are cheaper over all contexts, and in that one.
    global_share, local_share: its part of the whole sensitivity over all contexts, and in that one.
    strength: local_share - global_share, the sensitivity that this context loses with it beyond what an average one does.
    """

    group: str
    unit: int
    key: str | None
    global_rank: float
    local_rank: float
    global_share: float
    local_share: float
    strength: float


def conflicts(
    global_: Scores, local: Scores, keys: Mapping[str, Scores], amount: float = 0.5, share: float = 0.1, limit: int = 100
) -> list[Conflict]:
    """The strongest conflicts first, at most `limit`, and each unit once, with the key whose loss is the largest.

    amount: units are cheap that are among this share of the lowest by global sensitivity. share: and vital that are among this share of the
    highest of a key; where contexts have no names, of the local sensitivity, normalised.
    """
    for name, value in (("amount", amount), ("share", share)):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
            raise BadInput(f"{name}= is a share of the units, in 0..1, but it is {value!r}. Try {name}=0.2.")
    overall = tree.flat(global_)
    cheap = smallest(overall, round(amount * len(overall)))
    named: dict[str | None, Tensor] = {key: tree.flat(scores) for key, scores in keys.items()}
    named = named or {None: tree.flat(normalised(local))}
    strongest, which = torch.full_like(overall, -torch.inf), torch.zeros(len(overall), dtype=torch.int64)
    for number, values in enumerate(named.values()):
        vital = ~smallest(values, len(values) - round(share * len(values)))
        strength = torch.where(cheap & vital & (values > overall), values - overall, -torch.inf)
        which[strength > strongest] = number
        strongest = torch.maximum(strongest, strength)
    chosen = strongest.argsort(descending=True, stable=True)[: min(limit, int(strongest.isfinite().count_nonzero()))]
    starts, names = starts_of(global_), list(global_)
    ordered, by_key = overall.sort().values, [values.sort().values for values in named.values()]
    found = []
    for place in chosen.tolist():
        number = int(which[place])
        key, values = list(named.items())[number]
        group = int(torch.searchsorted(starts, place, right=True)) - 1
        found.append(
            Conflict(
                group=names[group],
                unit=place - int(starts[group]),
                key=key,
                global_rank=below(ordered, overall[place]),
                local_rank=below(by_key[number], values[place]),
                global_share=float(overall[place]),
                local_share=float(values[place]),
                strength=float(strongest[place]),
            )
        )
    return found


def starts_of(scores: Scores) -> Tensor:
    """Where every group begins in the flat vector."""
    sizes = torch.tensor([value.numel() for value in scores.values()])
    return sizes.cumsum(0) - sizes


def below(ordered: Tensor, value: Tensor) -> float:
    return int(torch.searchsorted(ordered, value)) / len(ordered)
