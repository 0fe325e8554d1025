"""Arithmetic on named tensors: `Tree` (parameters), `Scores` and `Keep` (units) are all dictionaries from a name to a tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Tree = dict[str, Tensor]  # parameter name -> tensor of that parameter's shape
Scores = dict[str, Tensor]  # group name -> one number per unit
Keep = dict[str, Tensor]  # group name -> one bool per unit


def apply(function: Callable[..., Tensor], *trees: Mapping[str, Tensor]) -> Tree:
    """`function` on the tensors of the same name."""
    first, *others = trees
    return {name: function(value, *(other[name] for other in others)) for name, value in first.items()}


def add(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Tree:
    return apply(torch.add, a, b)


def mul(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Tree:
    return apply(torch.mul, a, b)


def scale(a: Mapping[str, Tensor], factor: float) -> Tree:
    return apply(lambda value: value * factor, a)


def square(a: Mapping[str, Tensor]) -> Tree:
    return apply(torch.square, a)


def absolute(a: Mapping[str, Tensor]) -> Tree:
    return apply(torch.abs, a)


def total(a: Mapping[str, Tensor]) -> float:
    """The sum of all elements, in float64."""
    return sum(value.sum(dtype=torch.float64).item() for value in a.values())


def size(a: Mapping[str, Tensor]) -> int:
    return sum(value.numel() for value in a.values())


def flat(a: Mapping[str, Tensor]) -> Tensor:
    """All elements in one vector, in the order of the names."""
    return torch.cat([value.reshape(-1) for value in a.values()]) if a else torch.zeros(0)


def unflat(vector: Tensor, like: Mapping[str, Tensor]) -> Tree:
    """The inverse of `flat`."""
    parts = torch.split(vector, [value.numel() for value in like.values()])
    return {name: part.view(value.shape) for (name, value), part in zip(like.items(), parts)}
