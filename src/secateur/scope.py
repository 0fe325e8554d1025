"""How the groups of a model are made comparable before their units are ranked together."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .tree import Scores, apply

Scope = Callable[[Scores], Scores]


def everywhere(scores: Scores) -> Scores:
    """Scores are comparable as they are: the whole model is ranked at once, and sensitive layers lose less."""
    return scores


def layer(scores: Scores) -> Scores:
    """The same fraction of every group: a unit's score is its place in its own group.

    score_u = (rank of u in its group + 1/2) / (units in the group)
    """
    return apply(place, scores)


def place(values: Tensor) -> Tensor:
    order = values.flatten().argsort(stable=True)
    places = (torch.arange(len(order), dtype=torch.float64) + 0.5) / len(order)
    return torch.empty_like(places).scatter_(0, order, places).view(values.shape)


SCOPES: dict[str, Scope] = {"global": everywhere, "layer": layer}
