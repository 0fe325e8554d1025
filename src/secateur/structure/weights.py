"""Structures whose units are connections, or blocks of them: what leaves becomes zero, and the tensors keep their size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..errors import NothingToPrune
from ..tree import Scores, Tree
from .axes import ROWS, Axes, axes_of
from .run import macs_per_element, traced
from .structure import Group, digest_of, shapes_of
from .tiles import cells, spread, summed


@dataclass(frozen=True)
class Weights:
    """Units are connections of the weight tensors, or blocks of them where a group has a `block`. Both maps go tensor by tensor.

    Of single connections both are the identity. Weight tensors are parameters with two dimensions or more; biases and norms are left alone.
    """

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
        return {
            name: spread(keep[name], self.groups[name].block, value.shape) if name in keep else torch.ones(value.shape, dtype=torch.bool)
            for name, value in self.like.items()
        }

    def reduce(self, values: Mapping[str, Tensor]) -> Scores:
        return {name: summed(values[name], group.block) for name, group in self.groups.items()}

    def parts(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: cells(values[name], group.block) for name, group in self.groups.items()}

    def gather(self, lines: Mapping[tuple[str, int], Tensor]) -> Scores:
        """A connection is in one index of every dimension, and has the sum of their numbers; a block the sum over its connections."""
        batch = next((line.shape[:-1] for line in lines.values()), torch.Size())
        return {
            name: summed(sum_of_indices(lines, name, self.shapes[name], batch), group.block) for name, group in self.groups.items()
        }

    def count(self, keep: Mapping[str, Tensor]) -> dict[str, int]:
        return {
            name: int(spread(keep[name], self.groups[name].block, self.shapes[name]).count_nonzero()) if name in keep else number
            for name, number in self.numel.items()
        }

    def kept(self, keep: Mapping[str, Tensor]) -> dict[str, tuple[Tensor | None, ...]]:
        return {}

    def skipped(self, keep: Mapping[str, Tensor]) -> tuple[str, ...]:
        return ()

    def sizes(self, keep: Mapping[str, Tensor]) -> dict[str, int | tuple[int, ...]]:
        return {}

    def explain(self) -> str:
        """Weights, how many units each has and of what size, and which are left alone and why."""
        lines = []
        for name, group in self.groups.items():
            along = f" of {' x '.join(map(str, group.block))} of its {' x '.join(map(str, self.shapes[name]))}" if group.block else ""
            lines.append(f"{name}: {group.size} units ({group.kind}{along})")
        return "\n".join([*lines, *(f"{name}: {group.size} units, frozen: {group.frozen}" for name, group in self.frozen.items())])


def sum_of_indices(lines: Mapping[tuple[str, int], Tensor], name: str, shape: tuple[int, ...], batch: torch.Size) -> Tensor:
    mine = [line.view(*batch, *(-1 if d == dim else 1 for d in range(len(shape)))) for (of, dim), line in lines.items() if of == name]
    some = next(iter(lines.values()), torch.zeros(()))
    return sum(mine, torch.zeros((), dtype=some.dtype, device=some.device)).expand(*batch, *shape)


def weights(model: nn.Module, example: object = None) -> Weights:
    """Each connection of `model` as a unit. With an example of its inputs, MACs can be counted, too.

    Raises NothingToPrune where no parameter has two dimensions.
    """
    return of_tensors(model, example, "weights", lambda name, shape, axes, used: connections(name, shape))


def connections(name: str, shape: tuple[int, ...]) -> Group:
    return Group(name, shape, "connection", ((name, 0),))


def of_tensors(
    model: nn.Module, example: object, kind: str, group: Callable[[str, tuple[int, ...], Axes, bool], Group]
) -> Weights:
    """The structure of that kind.

    group: the units of a weight tensor, of its name, its shape, where its outputs and inputs lie, and whether it multiplies something in a
        run (True where there was none).
    """
    named = {name: value for name, value in model.named_parameters() if value.is_floating_point()}
    macs, axes = ({}, axes_of(model)) if example is None else seen(model, example)
    made = {
        name: group(name, tuple(value.shape), axes.get(name, ROWS), name in macs or example is None)
        for name, value in named.items()
        if value.dim() >= 2
    }
    if not made:
        raise NothingToPrune(
            "The model has no weight tensor of two dimensions or more, so no connection can be removed. Give a model with weights."
        )
    return Weights(
        {name: one for name, one in made.items() if not one.frozen},
        numel={name: value.numel() for name, value in named.items()},
        itemsize={name: value.element_size() for name, value in named.items()},
        uses=macs,
        shapes=shapes_of(model),
        digest=digest_of(model),
        like={name: torch.empty_like(value, device="meta") for name, value in named.items()},
        frozen={name: one for name, one in made.items() if one.frozen},
        kind=kind,
    )


def uses(model: nn.Module, example: object) -> dict[str, float]:
    """Multiply-accumulates per element and sample, counted in one run."""
    return seen(model, example)[0]


def seen(model: nn.Module, example: object) -> tuple[dict[str, float], dict[str, Axes]]:
    """Multiply-accumulates per element and sample, and where outputs and inputs of weights lie, by one run."""
    trace, _, inputs = traced(model, example)
    return macs_per_element(trace, inputs), {**axes_of(model), **trace.axes}
