"""Running is not being right: the shrunk and the masked model are compared on real numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..structure import Channels, all_kept
from ..structure.cut import cut, twin
from ..structure.rules import flat
from ..task import call, evaluating
from ..tree import Keep

TOLERANCE = 1e-9  # relative to the largest output, in float64


def unequal(model: nn.Module, structure: Channels, example: object, seed: int = 0) -> dict[str, str]:
    """Groups of which removing half is not the same as zeroing it, with the reason; {} where all is well.

    Groups that the structure calls approximate are left out: there the two differ by design. All other groups are tried at once,
    one by one only if that fails. The model runs in float64 on a copy.
    """
    generator = torch.Generator().manual_seed(seed)
    whole = all_kept(structure)
    halves = {
        name: torch.randperm(group.size, generator=generator) >= group.size // 2
        for name, group in structure.groups.items()
        if not group.approximate
    }
    precise, inputs = twin(model, double), doubled(example)
    if difference(precise, structure, {**whole, **halves}, inputs) <= TOLERANCE:
        return {}
    reasons = {}
    for name, half in halves.items():
        apart = difference(precise, structure, {**whole, name: half}, inputs)
        if apart > TOLERANCE:
            reasons[name] = (
                f"the smaller model computes something else than the masked one (they differ by {apart:.1e} of the largest output)"
            )
    return reasons


def difference(model: nn.Module, structure: Channels, keep: Keep, inputs: object) -> float:
    """The largest difference between the outputs of the shrunk and the masked model, relative to the largest output."""
    masks = structure.expand(keep)
    masked = twin(model, lambda name, value: value * masks[name] if name in masks else value.clone())
    small = cut(model, structure.kept(keep), structure.sizes(keep))
    return apart(outputs(masked, inputs), outputs(small, inputs))


def apart(a: list[Tensor], b: list[Tensor]) -> float:
    worst = 0.0
    for x, y in zip(a, b):
        if x.shape != y.shape:
            return float("inf")
        if x.numel():
            gap = ((x - y).abs().max() / x.abs().max().clamp_min(1e-300)).item()
            worst = max(worst, gap if math.isfinite(gap) else float("inf"))
    return worst


def outputs(model: nn.Module, inputs: object) -> list[Tensor]:
    with evaluating(model), torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return [value.double() for value in flat(call(model, inputs)) if isinstance(value, Tensor)]


def double(_: str, value: Tensor) -> Tensor:
    return value.double() if value.is_floating_point() else value.clone()


def doubled(value: object) -> object:
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, Mapping):
        return {key: doubled(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(doubled(item) for item in value)
    return value
