"""Which weights read what was removed, in the order in which the model calls them; and what they read, as the rows of a matrix product.

    y = u W + b,    u: (groups, rows, inputs), W: (groups, inputs, outputs), a row for each sample and position
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..flows import Use
from ..flows.watch import Call, Watch
from ..flows.ways import CONVOLUTIONS, Geometry, windows


@dataclass(frozen=True)
class Reading:
    """A call whose weight reads removed units.

    weight, bias: the parameters; None where there is no bias.
    mean: the running mean of the batch norm behind it, which takes up a shift.
    reads: the dimension of the weight that is read along. groups: of a convolution.
    """

    call: Call
    weight: str
    bias: str | None
    reads: int
    groups: int
    mean: str | None = None


class Reached(Exception):
    """The model has run as far as it had to."""


class Readings(Watch):
    """Finds the calls whose weights lose inputs. losing: parameter -> its dimensions of which something is removed."""

    def __init__(self, losing: Mapping[str, set[int]]) -> None:
        super().__init__()
        self.losing = losing
        self.found: list[Reading] = []
        self.made: list[Tensor] = []
        self.met: Counter[str] = Counter()

    def meets(self, use: Use, call: Call, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if call.operator == "batch_norm":
            self.behind(use, args[0])
        y = func(*args, **kwargs)
        name = self.name(use.weight)
        if name is not None:
            self.met[name] += 1
            reads = self.losing.get(name, set()) & use.reads.keys()
            matrix = matrix_read(use, call, args, kwargs) if reads else None
            if matrix is not None:
                self.made.append(y)
                self.found.append(Reading(call, name, self.name(use.bias), reads.pop(), len(matrix)))
        return y

    def behind(self, use: Use, x: Tensor) -> None:
        name = self.name(use.weight) or self.name(use.bias)
        for place, y in enumerate(self.made):
            if y is x and name is not None:
                self.found[place] = replace(self.found[place], mean=f"{name.rpartition('.')[0]}.running_mean")

    def once(self) -> list[Reading]:
        """Those whose weight is called once."""
        return [reading for reading in self.found if self.met[reading.weight] == 1]


class Until(Watch):
    """Runs the model up to one call, and keeps the rows that are read there, or that are made."""

    def __init__(self, reading: Reading, made: bool) -> None:
        super().__init__()
        self.reading, self.made = reading, made
        self.rows = torch.zeros(0)

    def meets(self, use: Use, call: Call, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if call != self.reading.call:
            return func(*args, **kwargs)
        if self.made:
            ((_, axis),) = use.makes.items()
            y: Tensor = func(*args, **kwargs)
            self.rows = torch.unflatten(y.movedim(axis, -1).flatten(0, -2), 1, (self.reading.groups, -1)).movedim(1, 0)
        else:
            read = matrix_read(use, call, args, kwargs)
            assert read is not None  # it was, when the call was found
            self.rows = read
        raise Reached


def matrix_read(use: Use, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """u, or None where there is no way to make it."""
    weight, x = use.weight, use.x
    if weight is None or x is None or len(use.makes) != 1:
        return None
    ((dim, axis),) = use.reads.items()
    if call.operator in CONVOLUTIONS:
        how = CONVOLUTIONS[call.operator](*args, **kwargs)
        fits = how is not None and not how.transposed and x.dim() == weight.dim() and weight.shape[1] > 1
        return unfolded(x, weight, how) if fits and how is not None else None
    return x.movedim(axis, -1).flatten(0, -2)[None] if weight.dim() == 2 and x.shape[axis] == weight.shape[dim] else None


def unfolded(x: Tensor, weight: Tensor, how: Geometry) -> Tensor:
    """The windows that the kernel sees: (groups, samples x positions, places of the kernel x channels of a group)."""
    sizes = weight.shape[2:]
    spatial = zip(x.shape[2:], sizes, how.stride, how.padding, how.dilation)
    positions = [(size + 2 * p - d * (k - 1) - 1) // s + 1 for size, k, s, p, d in spatial]
    last = x.movedim(1, -1).unsqueeze(1)
    rows = torch.stack([part.clone() for part in windows(last, sizes, positions, how)(last)], 2)  # (samples, positions, places, the rest)
    return torch.unflatten(rows.flatten(0, 1), -1, (-1, how.groups, weight.shape[1])).movedim(-2, 0).flatten(2)


def matrix_of(weight: Tensor, reading: Reading) -> Tensor:
    """A weight as (groups, inputs, outputs)."""
    if weight.dim() == 2:
        return weight.movedim(reading.reads, 0)[None]
    return torch.unflatten(weight, 0, (reading.groups, -1)).movedim(2, -1).flatten(2).mT


def weight_of(matrix: Tensor, like: Tensor, reading: Reading) -> Tensor:
    """The inverse of `matrix_of`."""
    if like.dim() == 2:
        return matrix[0].movedim(0, reading.reads)
    return torch.unflatten(matrix.mT, 2, (*like.shape[2:], like.shape[1])).movedim(-1, 2).flatten(0, 1)
