"""What the builder of a random net knows of its channels, by construction, without the library: which indices of parameters may leave.

A `Wire` is a run of channels; a `Stream` is a tensor of the net with the wires that its channels are, one after another. Blocks say which
parameters make and read a wire, which wires are the same, and what stands in the way. The claims are a lower bound of what must be found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from torch import Tensor

FREE, APPROXIMATE, UNSURE, FROZEN = range(4)  # removable; only where not exact; nothing is claimed; must stay whole
AXIS = {"image": 1, "series": -1, "vector": -1}  # (n, c, h, w), (n, t, c), (n, c)


@dataclass(frozen=True)
class Member:
    """Indices start..stop of a dimension of a parameter."""

    tensor: Tensor
    dim: int
    start: int
    stop: int


@dataclass(eq=False)
class Wire:
    size: int
    state: int = FREE
    members: list[Member] = field(default_factory=list)
    splits: set[int] = field(default_factory=set)  # numbers of parts that it was seen in
    up: Wire | None = None

    def root(self) -> Wire:
        return self if self.up is None else self.up.root()


@dataclass(frozen=True)
class Stream:
    """kind: a key of AXIS. side: pixels along height and width, or steps. order: how the channels stand, where not as they were made.

    every: all wires of the net, those that end inside a block, too.
    """

    kind: str
    wires: tuple[Wire, ...]
    side: int = 1
    order: str = ""
    every: list[Wire] = field(default_factory=list)

    @property
    def width(self) -> int:
        return sum(wire.size for wire in self.wires)

    @property
    def axis(self) -> int:
        return AXIS[self.kind]

    def of(self, *wires: Wire) -> Stream:
        return replace(self, wires=wires, order="")

    def made(self, size: int, *members: tuple[Tensor, int], state: int = FREE) -> Stream:
        """New channels, and the parameters that have an index (or several) for each."""
        wire = Wire(size, state, [Member(tensor, dim, 0, tensor.shape[dim]) for tensor, dim in members])
        self.every.append(wire)
        return self.of(wire)

    def beside(self, other: Stream) -> Stream:
        return replace(self, wires=self.wires + other.wires, order=", ".join(filter(None, (self.order, other.order))))

    def read_by(self, tensor: Tensor, dim: int, times: int = 1) -> Stream:
        """Each channel stands `times` times in a row in this dimension of a parameter."""
        end = 0
        for wire in self.wires:
            start, end = end, end + wire.size * times
            wire.root().members.append(Member(tensor, dim, start, end))
        return self

    def at_most(self, state: int) -> Stream:
        """Something stands in the way."""
        for wire in self.wires:
            wire.root().state = max(wire.root().state, state)
        return self

    def split(self, n: int) -> Stream:
        """Seen as n parts: of one wire in its own order, parts and units within parts can leave, if earlier parts nest with these."""
        root = self.wires[0].root()
        if n in (1, self.width):
            return self
        if len(self.wires) > 1 or self.order:
            return self.at_most(UNSURE)
        root.splits.add(n)
        return self.at_most(FREE if nested(root.splits) else UNSURE)


def nested(splits: set[int]) -> bool:
    ordered = sorted(splits)
    return all(b % a == 0 for a, b in pairwise(ordered))


def tie(a: Stream, b: Stream) -> Stream:
    """Channel by channel, these are the same."""
    if [wire.size for wire in a.wires] != [wire.size for wire in b.wires] or a.order != b.order:
        a.at_most(UNSURE), b.at_most(UNSURE)
        return a
    for x, y in zip(a.wires, b.wires):
        x, y = x.root(), y.root()
        if x is not y:
            y.up = x
            x.state, x.members, x.splits = max(x.state, y.state), x.members + y.members, x.splits | y.splits
            if not nested(x.splits):
                x.state = max(x.state, UNSURE)
    return a


def claims(every: Sequence[Wire], names: Mapping[int, str]) -> list[tuple[str, int, int, int, int]]:
    """(parameter, dimension, start, stop, state) of all members of all wires."""
    roots = dict.fromkeys(wire.root() for wire in every)
    return [(names[id(m.tensor)], m.dim, m.start, m.stop, root.state) for root in roots for m in root.members]
