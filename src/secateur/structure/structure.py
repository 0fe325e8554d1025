"""What a structure is: which units a model has, and the pair of maps between its parameters and its units."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from ..errors import BadInput, NothingToPrune
from ..sharded import is_sharded
from ..tree import Keep, Scores, Tree


@dataclass(frozen=True)
class Run:
    """Of every m consecutive units along a dimension of a group's shape, the n best stay, whatever is asked."""

    n: int
    m: int
    dim: int


@dataclass(frozen=True)
class Group:
    """The units along one coupled dimension.

    shape: of the group's scores: (units,) for channels, the parameter's own shape for connections, for blocks how many
        there are along each of its dimensions.
    members: (parameter or buffer, dimension) pairs that are cut together.
    through: the operators that couple them, with their place in the user's code.
    approximate: why removing a unit is not quite the same as zeroing it (a statistic runs over the dimension), or "".
    frozen: why no unit of it may be removed, or "".
    least: so many units have to stay: the k largest of them are asked for, say.
    multiple: what stays is a multiple of it: an operator takes no other sizes.
    block: of units that are blocks of a parameter, a block's size along every dimension of it; else ().
    run: which of its units are compared with each other, and how many of those stay, where the structure itself says so.
    """

    name: str
    shape: tuple[int, ...]
    kind: str = "channel"
    members: tuple[tuple[str, int], ...] = ()
    through: tuple[str, ...] = ()
    approximate: str = ""
    frozen: str = ""
    least: int = 1
    multiple: int = 1
    block: tuple[int, ...] = ()
    run: Run | None = None

    @property
    def size(self) -> int:
        return math.prod(self.shape)


class Structure(Protocol):
    """A pair of maps, one the derivative of the other, and what is needed to count.

    kind: "weights", "channels", "layers", a shape of blocks ("1x4") or n of m ("2:4").
    groups: the groups whose units may be removed, by name.
    frozen: the groups that may not, with the reason.
    numel, itemsize: elements and bytes per element of every parameter, so that a plan can be counted.
    uses: multiply-accumulates per element and sample (float) of the parameters that multiply something; empty where no example was given.
    divided: (parameter, dimension) that a mask leaves alone, since the model divides it by its own norm: 0 / 0.
    shapes, digest: of every parameter and buffer, and of their values, so that a plan can say which model it was made for.
    """

    @property
    def kind(self) -> str: ...
    @property
    def groups(self) -> dict[str, Group]: ...
    @property
    def frozen(self) -> dict[str, Group]: ...
    @property
    def numel(self) -> dict[str, int]: ...
    @property
    def itemsize(self) -> dict[str, int]: ...
    @property
    def uses(self) -> dict[str, float]: ...
    @property
    def shapes(self) -> dict[str, tuple[int, ...]]: ...
    @property
    def digest(self) -> str: ...
    @property
    def divided(self) -> tuple[tuple[str, int], ...]: ...

    def expand(self, keep: Mapping[str, Tensor]) -> Tree:
        """Kept units -> parameter masks: for each connection, the product over the units it lies in. `keep` may be real-valued."""

    def reduce(self, values: Mapping[str, Tensor]) -> Scores:
        """A parameter-shaped quantity summed over each unit: d<values, expand(k)>/dk at k = 1."""

    def parts(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What `reduce` sums: (units, elements) of every group, the elements of all its units in one order, so that units can be compared.

        Zeros stand for what the smaller of the blocks of a tensor lack.
        Raises BadInput where units of one group differ in what they are made of.
        """

    def gather(self, lines: Mapping[tuple[str, int], Tensor]) -> Scores:
        """Numbers of the indices of some parameters' dimensions, (*batch, size of the dimension), summed over each unit: (*batch, *shape).

        Lines that no unit lies in are not looked at. With lines that are sums over all other dimensions, the same as `reduce` (which has
        no batch), for units that are whole indices.
        """

    def count(self, keep: Mapping[str, Tensor]) -> dict[str, int]:
        """Kept elements of every parameter."""

    def kept(self, keep: Mapping[str, Tensor]) -> dict[str, tuple[Tensor | None, ...]]:
        """Kept indices of every dimension of every parameter and buffer that changes; None for a dimension that does not."""

    def skipped(self, keep: Mapping[str, Tensor]) -> tuple[str, ...]:
        """Paths of the modules that leave whole."""

    def sizes(self, keep: Mapping[str, Tensor]) -> dict[str, int | tuple[int, ...]]:
        """New values of the attributes ("module.attribute") that the Python code of the model keeps sizes in."""


WITHOUT = {  # a unit, and frozen ones: what a model does not have
    "channels": "no dimension of its weights is a channel",
    "layers": "no module of it is skipped by a residual connection",
}


def check_prunable(structure: Structure) -> None:
    """Raises NothingToPrune, with the reasons, where no unit may be removed."""
    if not structure.groups:
        reasons = (
            "; ".join(f"{name}: {group.frozen}" for name, group in list(structure.frozen.items())[:3])
            or WITHOUT.get(structure.kind, "nothing in it is a unit")
        )
        fixed = any("fixed in the code" in group.frozen or "AssertionError" in group.frozen for group in structure.frozen.values())
        other = "structure 'channels' or 'weights'" if structure.kind == "layers" else "structure 'weights'"
        way = "Try as_graph=True, where sizes in the code follow" if fixed else f"Prune other units of it instead: {other}"
        raise NothingToPrune(f"The model has no unit that may be removed ({reasons}). {way}.")


def all_kept(structure: Structure) -> Keep:
    return {name: torch.ones(group.shape, dtype=torch.bool) for name, group in structure.groups.items()}


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes of all parameters and buffers, tied ones once."""
    return {name: tuple(value.shape) for name, value in [*model.named_parameters(), *model.named_buffers()]}


def digest_of(model: nn.Module) -> str:
    """SHA-256 over the names, types, shapes and values of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        if is_sharded(value):
            raise BadInput(f"{name} is sharded over several processes. Make the structure before the model is sharded.")
        if value.device.type != "meta":
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data if value.numel() else b"")
    return digest.hexdigest()
