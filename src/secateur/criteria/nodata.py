"""What is known without data: how much flows through a unit when all is positive, and inputs that the statistics of norms imply."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .. import tree
from ..contexts import leaves, rebuild
from ..errors import BadInput
from ..structure import Structure
from ..task import Task, arguments, derived, describe, device_of, differentiable, evaluating, first_line, seeded
from ..tree import Scores


def synflow(task: Task, structure: Structure) -> Iterator[Scores]:
    """How much of the sum of all paths through the network leads through the unit (Tanaka et al., 2020, eq. 2).

    R = sum of the outputs, with |w| for every weight and buffer, on inputs of ones
    score_u = |dR/dk_u| = |sum over i in u of |w_i| dR/d|w_i||

    In float64, where the product of many layers does not overflow, and in evaluation mode. Of the data, only the shape of the first batch
    is looked at (and its values, where an input is of whole numbers). With positive activations R is the sum over all paths of the
    product of their weights; a softmax, a norm or a tanh makes it something less plain. Removing all at once may cut a network in two:
    the paper measures again and again, in 100 rounds.
    """
    inputs, _ = next(iter(task.batches()))
    ones = rebuild(inputs, [torch.ones(x.shape).to(x.device, torch.float64) if floating(x) else x for x in leaves(inputs)])
    weights = {name: value.double().abs() for name, value in task.parameters().items()}
    state = {name: value.double().abs() if value.is_floating_point() else value.clone() for name, value in task.model.named_buffers()}
    args, kwargs = arguments(ones)
    with torch.enable_grad(), evaluating(task.model), differentiable(task.model, False):
        followed = {name: value.requires_grad_() for name, value in weights.items()}
        try:
            outputs = torch.func.functional_call(task.model, {**state, **followed}, args, kwargs)
        except (IndexError, ValueError, RuntimeError, TypeError) as error:
            raise BadInput(
                f"SynFlow runs the model in float64, which it does not take: {first_line(error)}. "
                "Choose magnitude, which needs no data, either."
            ) from error
        sums = [value.sum() for value in leaves(outputs) if isinstance(value, Tensor) and value.requires_grad]
        if not sums:
            raise BadInput(f"The outputs, {describe(outputs)}, hold no tensor that depends on the weights. Let the model return one.")
        with derived(0):
            gradients = torch.autograd.grad(torch.stack(sums).sum(), list(followed.values()), allow_unused=True, materialize_grads=True)
    yield tree.absolute(structure.reduce({name: (value * g).detach() for (name, value), g in zip(followed.items(), gradients)}))


def inputs_from_statistics(
    model: nn.Module, example: object, count: int = 64, seed: int = 0, steps: int = 200, rate: float = 0.1
) -> list[tuple[object, object]]:
    """One batch of `count` inputs, found by descent from noise, on which the batch norms see what they saw in training.

    minimise over x:  sum over norms, mean over channels of (m(x) - mean)^2 / var + (v(x) / var - 1)^2

    mean, var: the running statistics; m, v: those of the batch (after Yin et al., 2020, "DeepInversion", eq. 4).
    example: inputs of any number of samples, for their shapes. Returns [(inputs, inputs)], data for a Task under a criterion without
    labels.
    Raises BadInput where the model has no running statistics, or an input of whole numbers.
    """
    values = leaves(example)
    if not values or not all(floating(x) for x in values):
        raise BadInput(
            f"Inputs are found by descent, so they must be of floating point, but the example is {describe(example)}. Give real data."
        )
    chance = torch.Generator().manual_seed(seed)
    found = [torch.randn((count, *x.shape[1:]), generator=chance).to(x).requires_grad_() for x in values if floating(x)]
    optimizer = torch.optim.Adam(found, rate)
    state = {name: value.detach() for name, value in model.named_parameters()}
    for _ in range(steps):
        seen = Statistics()
        buffers = {name: value.clone() for name, value in model.named_buffers()}
        args, kwargs = arguments(rebuild(example, found))
        with torch.enable_grad(), evaluating(model), seeded(seed, device_of(model)), seen:
            torch.func.functional_call(model, {**state, **buffers}, args, kwargs)
        if not seen.distances:
            raise BadInput("The model has no batch norm with running statistics, so nothing tells what its inputs were. Give real data.")
        apart = torch.stack(seen.distances).sum()
        for x, gradient in zip(found, torch.autograd.grad(apart, found, allow_unused=True, materialize_grads=True)):
            x.grad = gradient
        optimizer.step()
    inputs = rebuild(example, [x.detach() for x in found])
    return [(inputs, inputs)]


class Statistics(TorchFunctionMode):
    """Collects how far the statistics of what each batch norm is given are from its running ones."""

    def __init__(self) -> None:
        super().__init__()
        self.distances: list[Tensor] = []

    def __torch_function__(
        self, func: Callable[..., object], types: object, args: tuple[object, ...] = (), kwargs: dict[str, object] | None = None
    ) -> object:
        if func is F.batch_norm:
            given = inspect.signature(func).bind(*args, **(kwargs or {})).arguments
            x, mean, var = given["input"], given["running_mean"], given["running_var"]
            if isinstance(mean, Tensor) and isinstance(var, Tensor) and isinstance(x, Tensor):
                dims = [dim for dim in range(x.dim()) if dim != 1]
                safe = var + 1e-5
                apart = (x.mean(dims) - mean).square() / safe + ((x.var(dims, unbiased=False) + 1e-5) / safe - 1).square()
                self.distances.append(apart.mean())
        return func(*args, **(kwargs or {}))


def floating(x: object) -> TypeGuard[Tensor]:
    return isinstance(x, Tensor) and x.is_floating_point()
