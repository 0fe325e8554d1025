"""What a family is: a tiny model as its users write it, and which dimensions an expert would expect to be prunable."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from cases import doubled


@dataclass(frozen=True)
class Family:
    """smaller: (parameter, dimension) pairs that have to belong to some group. """

    name: str
    build: Callable[[], nn.Module]
    example: Callable[[], object]
    smaller: tuple[tuple[str, int], ...]

    def __str__(self) -> str:
        return self.name

    def model(self) -> nn.Module:
        """In float64, with weights that do something."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = self.build().double().eval()
            for name, value in model.named_buffers():
                if name.endswith("running_mean"):
                    value.normal_()
                elif name.endswith("running_var"):
                    value.uniform_(0.5, 2)
            for value in model.parameters():
                if value.dim() == 1:
                    value.data.uniform_(0.3, 1.5)
        return model

    def inputs(self) -> object:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            return doubled(self.example())
