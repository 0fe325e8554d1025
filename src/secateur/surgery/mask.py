"""Zero the removed weights: the same function as the smaller model's, at the old size."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import PlanMismatch
from ..plan import Plan, check_fits
from ..structure.cut import twin
from ..structure.kinds import at_old_size
from ..structure.tiles import spread
from ..tree import Tree
from .hold import hold


def masks(plan: Plan) -> Tree:
    """Parameter -> a bool tensor of its shape, True where the plan keeps it; only parameters of which something is removed."""
    if at_old_size(plan.structure):
        return {name: spread(mask, plan.blocks.get(name, ()), plan.shapes[name]) for name, mask in plan.keep.items() if not mask.all()}
    leaving = {name: torch.zeros(shape, dtype=torch.bool) for name, shape in plan.shapes.items() if plan.gone(name)}
    return leaving | {
        name: inside(plan.shapes[name], tuple(None if (name, dim) in plan.divided else index for dim, index in enumerate(indices)))
        for name, indices in plan.kept.items()
    }


def inside(shape: tuple[int, ...], indices: tuple[Tensor | None, ...]) -> Tensor:
    """True at the elements all of whose indices are kept."""
    mask = torch.ones((), dtype=torch.bool)
    for dim, index in enumerate(indices):
        line = (
            torch.ones(shape[dim], dtype=torch.bool)
            if index is None
            else torch.zeros(shape[dim], dtype=torch.bool).index_fill(0, index, True)
        )
        mask = mask & line.view([-1 if d == dim else 1 for d in range(len(shape))])
    return mask


def mask(model: nn.Module, plan: Plan) -> nn.Module:
    """A copy of `model` in which what the plan removes is zero, and gets no gradient: whatever optimizer trains it, it stays zero.

    Raises PlanMismatch where the plan was made for another model.
    """
    check_fits(plan.shapes, model)
    copy = twin(model, lambda _, value: value.clone())
    parameters = dict(copy.named_parameters())
    hold(copy, {name: kept for name, kept in masks(plan).items() if name in parameters})
    return copy


def with_values(model: nn.Module, values: Tree) -> nn.Module:
    """A copy of `model` with other values of some parameters and buffers. Raises PlanMismatch for a name or a shape that it has not."""
    own = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}
    for name, value in values.items():
        if name not in own or own[name].shape != value.shape:
            found = f"{tuple(own[name].shape)}" if name in own else "none of that name"
            told = f"The values have {name} of shape {tuple(value.shape)}, the model {found}."
            raise PlanMismatch(f"{told} Give the model they were made for.")
    return twin(model, lambda name, value: values.get(name, value).to(value).clone())
