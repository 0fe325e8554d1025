"""An optimizer that goes on training where a model was cut: same kind, same groups, its state cut to fit.

A learning-rate scheduler holds on to its optimizer: build a new one, or point it to the new optimizer (`scheduler.optimizer = optimizer`).
"""

from __future__ import annotations

import copy

from torch import Tensor, nn
from torch.optim import Optimizer

from .errors import BadInput, PlanMismatch
from .plan import Plan, check_fits
from .surgery.mask import masks
from .tree import Tree


def rebind(optimizer: Optimizer, old_model: nn.Module, new_model: nn.Module, plan: Plan) -> Optimizer:
    """A new optimizer of the same class over the parameters of `new_model`, which is `old_model` masked or shrunk by `plan`.

    Groups and hyperparameters stay. State of a parameter's shape (momentum_buffer, exp_avg, exp_avg_sq, ...) is cut as the parameter was:
    indices taken where the model shrank, zeros where it was masked. State that is summed over a dimension (Adafactor's) is cut along the
    others, a step count is copied. Parameters that are not `old_model`'s (of a loss, say) are kept with their state.
    Raises PlanMismatch where models, plan and optimizer do not belong together, BadInput where a state cannot be cut (LBFGS).
    """
    kept = masks(plan)
    names = {id(value): name for name, value in old_model.named_parameters()}
    check_fits({name: shape for name, shape in plan.shapes.items() if name in names.values()}, old_model, parameters_only=True)
    new = dict(new_model.named_parameters(remove_duplicate=False))

    def stays(parameter: Tensor) -> bool:
        return id(parameter) not in names or names[id(parameter)] in new or not plan.gone(names[id(parameter)])

    def counterpart(parameter: Tensor) -> Tensor:
        name = names.get(id(parameter))
        if name is not None and name not in new:
            raise PlanMismatch(f"The old model has {name}, but the new one has not. Give the model that was cut, and the result.")
        return parameter if name is None else new[name]

    if not any(id(value) in names for group in optimizer.param_groups for value in group["params"]):
        raise PlanMismatch("The optimizer has no parameter of the old model. Give the model that it was training.")

    result = copy.copy(optimizer)  # what unpickling does: the class's own way to a twin
    for key, value in vars(optimizer).items():
        if key not in vars(result) and not hasattr(type(optimizer), key):  # a scheduler puts a `step` there that is bound to the old one
            setattr(result, key, value)
    result.param_groups = [{**group, "params": [counterpart(p) for p in group["params"] if stays(p)]} for group in optimizer.param_groups]
    result.state = type(optimizer.state)(optimizer.state.default_factory)
    for parameter, state in ((p, s) for p, s in optimizer.state.items() if stays(p)):
        name, successor = names.get(id(parameter)), counterpart(parameter)
        result.state[successor] = {
            key: _cut(value, key, name, parameter, successor, plan, kept) if isinstance(value, Tensor) else copy.copy(value)
            for key, value in state.items()
        }
    return result


def _cut(value: Tensor, key: str, name: str | None, old: Tensor, new: Tensor, plan: Plan, kept: Tree) -> Tensor:
    """One tensor of a parameter's state, as the parameter was cut."""
    if name is None or value.dim() == 0 or value.numel() == 1:
        return value.clone()
    if value.dim() != old.dim() or any(n not in (1, size) for n, size in zip(value.shape, old.shape)):
        raise BadInput(
            f"The optimizer's {key} of {name} is of shape {tuple(value.shape)}, the parameter of {tuple(old.shape)}: "
            f"it is not known how to cut it. Make a new optimizer for the new model."
        )
    if new.shape == old.shape:
        return value * kept[name].to(value.device) if name in kept and value.shape == old.shape else value.clone()
    for dim, indices in enumerate(plan.kept.get(name, ())):
        if indices is not None and value.shape[dim] == old.shape[dim]:
            value = value.index_select(dim, indices.to(value.device))
    if any(n not in (1, size) for n, size in zip(value.shape, new.shape)):
        raise PlanMismatch(
            f"By the plan, {name} becomes {tuple(value.shape)}, but the new model's is {tuple(new.shape)}. "
            f"Give the result of shrinking by this plan."
        )
    return value.clone()
