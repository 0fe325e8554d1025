"""The structure in which every connection is a unit of its own: both maps are the identity."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..errors import NothingToPrune
from ..tree import Scores, Tree
from .run import macs_per_element, traced
from .structure import Group, digest_of, shapes_of


@dataclass(frozen=True)
class Weights:
    """Units are the elements of the weight tensors: every parameter with two dimensions or more. Biases and norms are left alone."""

    groups: dict[str, Group]
    numel: dict[str, int]
    itemsize: dict[str, int]
    uses: dict[str, float]
    shapes: dict[str, tuple[int, ...]]
    digest: str
    like: Tree = field(repr=False)  # meta tensors, for the masks of what is left alone
    frozen: dict[str, Group] = field(default_factory=dict)
    kind: str = "weights"
    divided: tuple[tuple[str, int], ...] = ()

    def expand(self, keep: Mapping[str, Tensor]) -> Tree:
        return {name: keep[name] if name in keep else torch.ones(value.shape, dtype=torch.bool) for name, value in self.like.items()}

    def reduce(self, values: Mapping[str, Tensor]) -> Scores:
        return {name: values[name] for name in self.groups}

    def parts(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: values[name].reshape(-1, 1) for name in self.groups}

    def gather(self, lines: Mapping[tuple[str, int], Tensor]) -> Scores:
        """A connection is in one index of every dimension: the sum of their numbers."""
        batch = next((line.shape[:-1] for line in lines.values()), torch.Size())
        return {name: sum_of_indices(lines, name, group.shape, batch) for name, group in self.groups.items()}

    def count(self, keep: Mapping[str, Tensor]) -> dict[str, int]:
        return {name: int(keep[name].count_nonzero()) if name in keep else number for name, number in self.numel.items()}

    def kept(self, keep: Mapping[str, Tensor]) -> dict[str, tuple[Tensor | None, ...]]:
        return {}

    def skipped(self, keep: Mapping[str, Tensor]) -> tuple[str, ...]:
        return ()

    def sizes(self, keep: Mapping[str, Tensor]) -> dict[str, int | tuple[int, ...]]:
        return {}


def sum_of_indices(lines: Mapping[tuple[str, int], Tensor], name: str, shape: tuple[int, ...], batch: torch.Size) -> Tensor:
    mine = [line.view(*batch, *(-1 if d == dim else 1 for d in range(len(shape)))) for (of, dim), line in lines.items() if of == name]
    some = next(iter(lines.values()), torch.zeros(()))
    return sum(mine, torch.zeros((), dtype=some.dtype, device=some.device)).expand(*batch, *shape)


def weights(model: nn.Module, example: object = None) -> Weights:
    """Each connection of `model` as a unit. With an example of its inputs, MACs can be counted, too.

    Raises NothingToPrune where no parameter has two dimensions.
    """
    named = {name: value for name, value in model.named_parameters() if value.is_floating_point()}
    groups = {name: Group(name, tuple(value.shape), "connection", ((name, 0),)) for name, value in named.items() if value.dim() >= 2}
    if not groups:
        raise NothingToPrune(
            "The model has no weight tensor of two dimensions or more, so no connection can be removed. Give a model with weights."
        )
    return Weights(
        groups,
        numel={name: value.numel() for name, value in named.items()},
        itemsize={name: value.element_size() for name, value in named.items()},
        uses={} if example is None else uses(model, example),
        shapes=shapes_of(model),
        digest=digest_of(model),
        like={name: torch.empty_like(value, device="meta") for name, value in named.items()},
    )


def uses(model: nn.Module, example: object) -> dict[str, float]:
    """Multiply-accumulates per element and sample, counted in one run."""
    trace, _, inputs = traced(model, example)
    return macs_per_element(trace, inputs)
