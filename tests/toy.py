"""A multilayer perceptron and, written by hand, the structure of its hidden units: small enough to be obviously right."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor, nn

from secateur.structure import Group
from secateur.structure.structure import digest_of, shapes_of
from secateur.tree import Keep, Scores, Tree


def mlp(*widths: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """Linear layers "0", "1", ... with a tanh between them."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = [nn.Linear(a, b, dtype=dtype) for a, b in pairwise(widths)]
    model = nn.Sequential()
    for index, layer in enumerate(layers):
        if index:
            model.append(nn.Tanh())
        model.append(layer)
    return model


@dataclass(frozen=True)
class Hidden:
    """Unit u of group "h0" is row u of the first weight and bias and column u of the second weight; and so on for every hidden layer."""

    model: nn.Sequential
    kind: str = "channels"
    frozen: dict[str, Group] = field(default_factory=dict)
    divided: tuple[tuple[str, int], ...] = ()

    def skipped(self, keep: Keep) -> tuple[str, ...]:
        return ()

    @property
    def linears(self) -> list[str]:
        return [name for name, module in self.model.named_children() if isinstance(module, nn.Linear)]

    @property
    def groups(self) -> dict[str, Group]:
        return {
            f"h{i}": Group(f"h{i}", (self.model[int(a)].out_features,), members=((f"{a}.weight", 0), (f"{a}.bias", 0), (f"{b}.weight", 1)))
            for i, (a, b) in enumerate(pairwise(self.linears))
        }

    @property
    def numel(self) -> dict[str, int]:
        return {name: value.numel() for name, value in self.model.named_parameters()}

    @property
    def itemsize(self) -> dict[str, int]:
        return {name: value.element_size() for name, value in self.model.named_parameters()}

    @property
    def uses(self) -> dict[str, float]:
        return {f"{name}.weight": 1.0 for name in self.linears}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return shapes_of(self.model)

    @property
    def digest(self) -> str:
        return digest_of(self.model)

    def expand(self, keep: Mapping[str, Tensor]) -> Tree:
        masks: Tree = {}
        for i, name in enumerate(self.linears):
            linear = self.model[int(name)]
            rows = keep[f"h{i}"].double() if f"h{i}" in keep else torch.ones(linear.out_features, dtype=torch.float64)
            columns = keep[f"h{i - 1}"].double() if i else torch.ones(linear.in_features, dtype=torch.float64)
            masks[f"{name}.weight"] = rows[:, None] * columns[None, :]
            masks[f"{name}.bias"] = rows
        return masks

    def reduce(self, values: Mapping[str, Tensor]) -> Scores:
        return {
            f"h{i}": values[f"{a}.weight"].sum(1) + values[f"{a}.bias"] + values[f"{b}.weight"].sum(0)
            for i, (a, b) in enumerate(pairwise(self.linears))
        }

    def parts(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            f"h{i}": torch.cat([values[f"{a}.weight"], values[f"{a}.bias"][:, None], values[f"{b}.weight"].T], 1)
            for i, (a, b) in enumerate(pairwise(self.linears))
        }

    def gather(self, lines: Mapping[tuple[str, int], Tensor]) -> Scores:
        members = {name: group.members for name, group in self.groups.items()}
        return {name: sum(lines[member] for member in members[name] if member in lines) for name in members}  # type: ignore[misc]

    def count(self, keep: Mapping[str, Tensor]) -> dict[str, int]:
        return {name: int(mask.sum()) for name, mask in self.expand(keep).items()}

    def kept(self, keep: Mapping[str, Tensor]) -> dict[str, tuple[Tensor | None, ...]]:
        indices = {name: mask.nonzero().flatten() for name, mask in keep.items()}
        return {f"{name}.weight": (indices.get(f"h{i}"), indices.get(f"h{i - 1}")) for i, name in enumerate(self.linears)}

    def sizes(self, keep: Mapping[str, Tensor]) -> dict[str, int | tuple[int, ...]]:
        return {f"{name}.out_features": int(keep[f"h{i}"].sum()) for i, name in enumerate(self.linears[:-1])}


def batches(
    count: int, size: int, width: int, classes: int, seed: int = 0, dtype: torch.dtype = torch.float64
) -> list[tuple[Tensor, Tensor]]:
    """Random inputs and labels."""
    chance = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(size, width, generator=chance, dtype=dtype), torch.randint(0, classes, (size,), generator=chance))
        for _ in range(count)
    ]
