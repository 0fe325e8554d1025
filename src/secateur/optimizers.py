"""An optimizer that goes on training where a model was cut: same kind, same groups, its state cut to fit.

A learning-rate scheduler holds on to its optimizer: build a new one, or point it to the new optimizer (`scheduler.optimizer = optimizer`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable

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
    others, a step count is copied. Parameters that are not `old_model`'s (of a loss, say) are kept with their state. An optimizer that it
    holds (the one that SAM steps with) goes along.
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

    def cut(key: str, value: object, parameter: Tensor) -> object:
        if not isinstance(value, Tensor):
            return copy.copy(value)
        return _cut(value, key, names.get(id(parameter)), parameter, counterpart(parameter), plan, kept)

    groups = {
        id(group): {**group, "params": [counterpart(p) for p in group["params"] if stays(p)]}
        for one in optimizers_in(optimizer).values()
        for group in one.param_groups
    }

    def rebound(one: Optimizer) -> Optimizer:
        result = copy.copy(one)  # what unpickling does: the class's own way to a twin
        for key, value in vars(one).items():
            if isinstance(value, Optimizer):
                setattr(result, key, rebound(value))
            elif key not in vars(result) and not hasattr(type(one), key):  # a scheduler puts a `step` there that is bound to the old one
                setattr(result, key, value)
        result.param_groups = [groups[id(group)] for group in one.param_groups]  # an optimizer and the one that it holds share theirs
        result.state = type(one.state)(one.state.default_factory)
        for parameter, state in ((p, s) for p, s in one.state.items() if stays(p)):
            result.state[counterpart(parameter)] = {key: cut(key, value, parameter) for key, value in state.items()}
        return result

    return rebound(optimizer)


def optimizers_in(optimizer: Optimizer) -> dict[str, Optimizer]:
    """An optimizer, named "", and those that it holds, each under the attributes that lead there."""
    found = {"": optimizer}
    for name, value in vars(optimizer).items():
        if isinstance(value, Optimizer):
            found |= {f"{name}/{inner}".rstrip("/"): one for inner, one in optimizers_in(value).items()}
    return found


def restore(optimizer: Optimizer, states: dict[str, dict[str, object]]) -> None:
    """Load the states of `optimizers_in`. Groups and states stay the very objects, which an optimizer and the one that it holds share."""
    there = optimizers_in(optimizer)
    before = {name: (one.param_groups, [*one.param_groups], one.state) for name, one in there.items()}
    for name, one in there.items():
        load: Callable[[dict[str, object]], object] = one.load_state_dict
        load(states[name])
        after, state = [dict(group) for group in one.param_groups], dict(one.state)
        one.param_groups, old, one.state = before[name]
        for group, new in zip(old, after):
            group.update(new)
        one.state.clear()
        one.state.update(state)


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
