"""Running is not being right: the shrunk and the masked model are compared on real numbers.

Every group is held to another law, too: with its units in another order, in every tensor that has them, the model computes what it did
before. For groups over whose units a statistic runs (a layer norm), where the two models differ by design, it is the only one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..structure import Channels, Group, all_kept
from ..structure.cut import cut, twin
from ..structure.rules import flat
from ..structure.trial import uneven
from ..task import call, each, evaluating
from ..tree import Keep

ELSE = "computes something else than the masked one"
ROUNDED = 1e-5  # where a model's own code rounds to float32
Convert = Callable[[Tensor], Tensor]
DOUBLE: tuple[Convert, float] = (lambda value: value.double() if value.is_floating_point() else value.clone(), 1e-9)
OWN: tuple[Convert, float] = (lambda value: value.clone(), 1e-3)  # for models that insist on a type of their own (x.float() in the code)


def proved(model: nn.Module, structure: Channels, example: object) -> Channels:
    """The structure without what `unequal` finds: again and again, since what is left was only seen to be right together with the rest."""
    while caught := unequal(model, structure, example):
        structure = structure.without(caught)
    return structure


def unequal(model: nn.Module, structure: Channels, example: object, seed: int = 1) -> dict[str, str]:
    """Groups of which removing a part is not the same as zeroing it, with the reason; {} where all is well.

    Groups that the structure calls approximate are only permuted. Of the others some units are removed, then the rest instead: code may
    look at a size, or slice from an end. All groups are tried at once, one by one only if that fails. A copy
    of the model, its values shaken a little (a layer norm of ones would hide what is in the wrong order), runs in float64, to 1e-9 of the
    largest output, or, if it cannot, as it is, to 1e-3. The approximate ones have to run without the others, too.
    """
    if any(value.is_meta for value in model.parameters()):
        return {}  # there are no numbers to compare
    if not structure.groups:
        return {}
    whole = all_kept(structure)
    drawn = uneven(structure, seed)
    loose = {name: keep for name, keep in drawn.items() if structure.groups[name].approximate}
    parts = {name: keep for name, keep in drawn.items() if name not in loose}
    convert, tolerance = DOUBLE if runs(model, example, DOUBLE[0]) else OWN
    generator = torch.Generator().manual_seed(seed)
    parameters = {name for name, _ in model.named_parameters()}
    copy = twin(model, lambda name, value: shaken(convert(value), generator, name in parameters))
    inputs = converted(example, convert)
    with Lower() as mode:  # type: ignore[no-untyped-call]
        before = outputs(copy, inputs)
    if tolerance == DOUBLE[1] and mode.lower:
        tolerance = ROUNDED
    reasons: dict[str, str] = {}
    for part in (parts, {name: others(keep, structure.groups[name]) for name, keep in parts.items()}):
        part = {name: keep for name, keep in part.items() if name not in reasons}
        if part and difference(copy, structure, {**whole, **part}, inputs) > tolerance:
            gaps = {name: difference(copy, structure, {**whole, name: keep}, inputs) for name, keep in part.items()}
            guilty = {name: gap for name, gap in gaps.items() if gap > tolerance}
            reasons |= {n: f"the smaller model {ELSE} (they differ by {gap:.1e} of the largest output)" for n, gap in guilty.items()}
            if not guilty:
                reasons |= {name: f"together with others, the smaller model {ELSE}" for name in part}
    if loose and not runs_small(copy, structure, {**whole, **loose}, inputs, before):
        alone = [name for name, keep in loose.items() if not runs_small(copy, structure, {**whole, name: keep}, inputs, before)]
        reasons |= dict.fromkeys(alone or loose, "the smaller model fails on real numbers")
    rest = [name for name in structure.groups if name not in reasons]
    if rest and moved(copy, structure, rest, inputs, before, seed) > tolerance:
        for name in rest:
            gap = moved(copy, structure, [name], inputs, before, seed)
            if gap > tolerance:
                reasons[name] = f"the order of its units matters (outputs differ by {gap:.1e} of the largest)"
    return reasons


def others(keep: Tensor, group: Group) -> Tensor:
    """The units that `keep` removes, and as few more as must be there: few are left, and every unit is removed once."""
    kept = ~keep
    wanted = max(int(kept.sum()), min(max(2, group.least), len(keep) - 1))
    missing = wanted + -wanted % group.multiple - int(kept.sum())
    return kept.index_fill(0, keep.nonzero()[:missing, 0], True)


def moved(model: nn.Module, structure: Channels, names: list[str], inputs: object, before: list[Tensor], seed: int) -> float:
    """How far the outputs move from what they were before, relative to the largest, when the units of these groups change places.

    Once all of them, in one cycle, once two of them: only the right order agrees with both.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = {name: torch.randperm(structure.groups[name].size, generator=generator) for name in names}
    cycles = {name: torch.empty_like(units).scatter_(0, units, units.roll(1)) for name, units in drawn.items()}
    swaps = {name: torch.arange(len(units)).index_copy(0, units[:2], units[:2].flip(0)) for name, units in drawn.items()}
    return max(reordered(model, structure, orders, inputs, before) for orders in (cycles, swaps))


def reordered(model: nn.Module, structure: Channels, orders: dict[str, Tensor], inputs: object, before: list[Tensor]) -> float:
    numbers, last = [torch.zeros(1, dtype=torch.long)], 1
    for name, group in structure.groups.items():
        numbers.append(last + orders.get(name, torch.arange(group.size)))
        last += group.size
    new = torch.cat(numbers)
    kept = {name: tuple(None if index is None else sources(index, new[index]) for index in dims) for name, dims in structure.index.items()}
    try:
        return apart(before, outputs(cut(model, kept, {}), inputs))
    except Exception:  # the user's code, whatever it raises
        return math.inf


def sources(index: Tensor, wanted: Tensor) -> Tensor:
    """Where the indices with the wanted units are now; of several with the same units, the first is the first."""
    source = torch.empty(index.shape[1], dtype=torch.long)
    source[sorted_by_units(wanted)] = sorted_by_units(index)
    return source


def sorted_by_units(index: Tensor) -> Tensor:
    return torch.from_numpy(np.lexsort(index.numpy()))


class Lower(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees whether anything is computed in less than float64: the model's own code may cast, in a norm, say."""

    lower = False

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, object] | None = None
    ) -> object:
        out = func(*args, **(kwargs or {}))
        self.lower |= any(isinstance(x, Tensor) and x.is_floating_point() and x.dtype != torch.float64 for x in flat(out))
        return out


def shaken(value: Tensor, generator: torch.Generator, parameter: bool) -> Tensor:
    """Each number moved by about five percent, zeros by a little; parameters that are next to nothing (the scale of a branch that has not
    been trained, which would hide the branch) by as much as others are large."""
    if not value.is_floating_point() or not value.numel():
        return value
    noise = 0.05 * torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value)
    finite = value.isfinite()
    least = 2.0 if parameter and (value[finite].abs() < 0.01).all() else 0.01
    moved = value + noise * torch.where(finite, value.abs() + least, torch.zeros_like(value))
    return moved.abs() if not parameter and (value >= 0).all() else moved  # a variance stays one


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


def runs_small(model: nn.Module, structure: Channels, keep: Keep, inputs: object, before: list[Tensor]) -> bool:
    """Whether the smaller model runs, with outputs of the shapes that they had before."""
    try:
        made = outputs(cut(model, structure.kept(keep), structure.sizes(keep)), inputs)
    except Exception:  # the user's code, whatever it raises about sizes
        return False
    return [value.shape for value in made] == [value.shape for value in before]


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
