"""Zeros that stay zero: removed connections get no gradient, whatever optimizer the user steps with.

dL/dw <- dL/dw where w is kept, 0 where it is removed, and w = 0 there. SGD (momentum, weight decay, Nesterov), Adam, AdamW and RMSprop move
such a weight by nothing: their steps are multiples of moments of the gradient and of the weight, and all of them are 0.

No module is wrapped and no name changes: a hook sits on the parameter itself. It survives `.to(device)` and `.to(dtype)`, which keep the
parameter; `copy.deepcopy`, `torch.save` and `load_state_dict` into another model do not carry it. There: `hold(again, held(model))`, or for
a model read from disk `hold(model, masks_of(model))`. An optimizer that stepped before the cut still has momentum (`secateur.rebind` cuts
it), and one of a kind that moves weights without a gradient would move these: `zeroed(model)` after its step puts them back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import PlanMismatch
from ..tree import Tree


@dataclass(frozen=True, eq=False)
class _Cut:
    """The gradient hook. Filled rather than multiplied: 0 * inf, of a gradient that overflowed in half precision, would be NaN."""

    removed: Tensor

    def __call__(self, gradient: Tensor) -> Tensor:
        removed = self.removed.to(gradient.device)
        return gradient.masked_fill(removed, 0) if gradient.layout == torch.strided else gradient * ~removed


def hold(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Zero the parameters of `model` where their mask is False, and keep them zero through training. In place.

    masks: parameter name -> bool tensor of its shape, True where it is kept. Raises PlanMismatch where one does not fit.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, mask in masks.items():
        if name not in parameters:
            raise PlanMismatch(
                f"There is a mask for {name}, but the model has no such parameter. Build the same architecture, or make a new plan."
            )
        if mask.shape != parameters[name].shape:
            raise PlanMismatch(
                f"The mask of {name} is of shape {tuple(mask.shape)}, but the parameter of {tuple(parameters[name].shape)}. "
                f"Build the same architecture, or make a new plan."
            )
    for name, mask in masks.items():
        parameter, removed = parameters[name], ~mask.bool()
        if removed.any():
            removed = removed if parameter.is_meta else removed.to(parameter.device)
            with torch.no_grad():
                parameter.masked_fill_(removed, 0)
            hooks = parameter._backward_hooks or {}
            before = next(((key, hook) for key, hook in hooks.items() if isinstance(hook, _Cut)), None)
            if before is not None:  # one hook a parameter, however often more of it is held
                hooks[before[0]] = _Cut(removed | before[1].removed.to(removed.device))
                continue
            trained = parameter.requires_grad
            hooked: Callable[[_Cut], object] = parameter.requires_grad_(True).register_hook  # torch refuses a frozen one; it may thaw later
            hooked(_Cut(removed))
            parameter.requires_grad_(trained)


def zeroed(model: nn.Module) -> None:
    """Zero again, in place, what `model` is held to."""
    with torch.no_grad():
        for parameter in model.parameters():
            if (cut := _cut_of(parameter)) is not None:
                parameter.masked_fill_(cut.removed.to(parameter.device), 0)


def held(model: nn.Module) -> Tree:
    """The masks that `model` is held to: what a copy of it has to be held to again."""
    cuts = {name: _cut_of(parameter) for name, parameter in model.named_parameters()}
    return {name: ~cut.removed for name, cut in cuts.items() if cut is not None}


def _cut_of(parameter: nn.Parameter) -> _Cut | None:
    return next((hook for hook in (parameter._backward_hooks or {}).values() if isinstance(hook, _Cut)), None)


def masks_of(model: nn.Module) -> Tree:
    """Where the weights are not zero, for the parameters of two dimensions or more that contain zeros."""
    weights = {name: value.detach() for name, value in model.named_parameters() if value.dim() >= 2 and value.is_floating_point()}
    return {name: value != 0 for name, value in weights.items() if (value == 0).any()}
