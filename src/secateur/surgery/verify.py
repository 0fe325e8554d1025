"""Running is not being right: the shrunk and the masked model are compared on real numbers."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..structure import Channels, all_kept
from ..structure.channels import uneven
from ..structure.cut import cut, twin
from ..structure.rules import flat
from ..task import call, each, evaluating
from ..tree import Keep

ELSE = "computes something else than the masked one"
Convert = Callable[[Tensor], Tensor]
DOUBLE: tuple[Convert, float] = (lambda value: value.double() if value.is_floating_point() else value.clone(), 1e-9)
OWN: tuple[Convert, float] = (lambda value: value.clone(), 1e-3)  # for models that insist on a type of their own (x.float() in the code)


def unequal(model: nn.Module, structure: Channels, example: object, seed: int = 0) -> dict[str, str]:
    """Groups of which removing a part is not the same as zeroing it, with the reason; {} where all is well.

    Groups that the structure calls approximate are left out: there the two differ by design. All other groups are tried at once,
    one by one only if that fails. A copy of the model runs in float64, to 1e-9 of the largest output, or, if it cannot, as it is, to 1e-3.
    """
    if any(value.is_meta for value in model.parameters()):
        return {}  # there are no numbers to compare
    whole = all_kept(structure)
    parts = {name: keep for name, keep in uneven(structure, seed).items() if not structure.groups[name].approximate}
    convert, tolerance = DOUBLE if runs(model, example, DOUBLE[0]) else OWN
    copy = twin(model, lambda _, value: convert(value))
    inputs = converted(example, convert)
    if difference(copy, structure, {**whole, **parts}, inputs) <= tolerance:
        return {}
    reasons = {}
    for name, part in parts.items():
        apart = difference(copy, structure, {**whole, name: part}, inputs)
        if apart > tolerance:
            reasons[name] = f"the smaller model {ELSE} (they differ by {apart:.1e} of the largest output)"
    return reasons or {name: f"together with others, the smaller model {ELSE}" for name in parts}


def converted(example: object, convert: Convert) -> object:
    return each(lambda leaf: convert(leaf) if isinstance(leaf, Tensor) else leaf, example)


def runs(model: nn.Module, example: object, convert: Convert) -> bool:
    try:
        outputs(twin(model, lambda _, value: convert(value)), converted(example, convert))
    except Exception:  # the user's code, whatever it raises about types
        return False
    return True


def difference(model: nn.Module, structure: Channels, keep: Keep, inputs: object) -> float:
    """The largest difference between the outputs of the shrunk and the masked model, relative to the largest; infinite if one fails."""
    masks = structure.expand(keep)
    masked = twin(model, lambda name, value: value * masks[name] if name in masks else value.clone())
    small = cut(model, structure.kept(keep), structure.sizes(keep))
    try:
        return apart(outputs(masked, inputs), outputs(small, inputs))
    except Exception:  # the user's code, whatever it raises about sizes
        return math.inf


def apart(a: list[Tensor], b: list[Tensor]) -> float:
    worst = 0.0
    for x, y in zip(a, b):
        if x.shape != y.shape:
            return math.inf
        if x.numel():
            gap = ((x - y).abs().max() / x.abs().max().clamp_min(1e-300)).item()
            worst = max(worst, gap if math.isfinite(gap) else math.inf)
    return worst


def outputs(model: nn.Module, inputs: object) -> list[Tensor]:
    with evaluating(model), torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return [value.double() for value in flat(call(model, inputs)) if isinstance(value, Tensor)]
