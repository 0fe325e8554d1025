"""One training step with any optimizer: plain ones, and those that want the gradient at more weights than one.

A plain optimizer has its gradient and steps. Two kinds ask for more passes over the same batch:

- `first_step` and `second_step` (sharpness-aware minimisation; Foret et al., 2021): g at w, up to w + e(g), g there, down from w by it.
- `step(closure)` that has to be given its closure (LBFGS, and SAM in one call): the closure clears the gradients, computes them at the
  weights as they are, and returns the loss, as PyTorch's do.

All passes of a step see the same batch under the same chance (dropout), and buffers (batch norms' statistics) move in the first one only.
An optimizer that makes `closure` optional is plain: give one that needs it a `step(self, closure)`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from . import checkpoints
from .distill import Objective
from .epochs import samples_of
from .errors import BadInput
from .optimizers import optimizers_in, restore
from .rates import Rate
from .surgery.hold import zeroed
from .task import device_of
from .tree import Tree

if TYPE_CHECKING:
    from accelerate import Accelerator
    from accelerate.optimizer import AcceleratedOptimizer

Gradient = Callable[[], Tensor]  # the loss of the batch at the weights as they are, its derivatives added to .grad


class Collect(Protocol):
    """What gathers sensitivity from training steps: it reads each parameter's weight and gradient (see secateur.sensitivity)."""

    def step(self, model: nn.Module, samples: int) -> None: ...


class Step:
    """One training step at a share (0..1) of the whole run, and what has to be remembered between steps."""

    def __init__(
        self, student: nn.Module, stepper: AcceleratedOptimizer, objective: Objective, accelerator: Accelerator, collect: Collect | None,
        rate: Rate,
    ) -> None:  # fmt: skip
        self.student, self.objective, self.accelerator, self.collect, self.rate = student, objective, accelerator, collect, rate
        self.stepper, self.optimizer = stepper, stepper.optimizer
        self.take = step_of(self.optimizer)
        self.steps: Optimizer = stepper if accelerator.scaler is not None else self.optimizer
        if accelerator.scaler is not None and self.take is not plainly:
            raise BadInput("With precision='fp16' gradients are scaled, and this optimizer asks for several a step. Take 'bf16' or 'no'.")
        groups = {id(group): group for one in optimizers_in(self.optimizer).values() for group in one.param_groups}
        self.groups = [(group, float(group["lr"])) for group in groups.values() if "lr" in group]

    def __call__(self, inputs: object, targets: object, number: int, share: float, length: float) -> float:
        factor = self.rate(share, length)
        for group, rate in self.groups:
            group["lr"] = group["lr"].fill_(rate * factor) if isinstance(group["lr"], Tensor) else rate * factor
        seen = self.collect is None

        def gradient() -> Tensor:
            nonlocal seen
            with torch.enable_grad():
                with self.accelerator.autocast():
                    value = self.objective(self.student, inputs, targets, number)
                self.accelerator.backward(value)
            if self.collect is not None and not seen:
                self.accelerator.unscale_gradients()
                self.collect.step(self.student, samples_of(inputs))
            seen = True
            return value

        value = self.take(self.steps, gradient if self.take is plainly else repeatable(gradient, self.student))
        self.stepper.zero_grad()
        zeroed(self.student)
        return value

    @property
    def lr(self) -> float:
        return max((float(group["lr"]) for group, _ in self.groups), default=0.0)

    def standing(self, best: Tree, history: list[dict[str, float]]) -> checkpoints.Standing:
        scaler = self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else {}
        states = {name: one.state_dict() for name, one in optimizers_in(self.optimizer).items()}
        return checkpoints.Standing(checkpoints.tensors_of(self.student), best, states, history, scaler)

    def resume(self, standing: checkpoints.Standing) -> None:
        checkpoints.fill(self.student, standing.model)
        restore(self.optimizer, standing.optimizers)
        if self.accelerator.scaler is not None and standing.scaler:
            self.accelerator.scaler.load_state_dict(standing.scaler)


# the kinds of optimizers -----------------------------------------------------------------------------------------------------------------


def step_of(optimizer: Optimizer) -> Callable[[Optimizer, Gradient], float]:
    """How this optimizer steps: given it and a batch's gradient, it moves the weights and returns the loss before that."""
    if all(callable(getattr(optimizer, half, None)) for half in ("first_step", "second_step")):
        return in_halves
    _, *asked = inspect.signature(type(optimizer).step).parameters.values()  # the class's: schedulers wrap the object's
    needed = any(one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD for one in asked)
    return closed if needed else plainly


def plainly(optimizer: Optimizer, gradient: Gradient) -> float:
    value = gradient()
    optimizer.step()
    return value.item()


def in_halves(optimizer: Optimizer, gradient: Gradient) -> float:
    value = gradient()
    for half, more in (("first_step", True), ("second_step", False)):
        getattr(optimizer, half)()
        optimizer.zero_grad()
        if more:
            gradient()
    return value.item()


def closed(optimizer: Optimizer, gradient: Gradient) -> float:
    values: list[float] = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        with torch.enable_grad():
            value = gradient()
        values.append(value.item())
        return value.detach()

    step: Callable[[Callable[[], Tensor]], object] = optimizer.step  # type: ignore[assignment]
    step(closure)
    return values[0]


def repeatable(gradient: Gradient, model: nn.Module) -> Gradient:
    """The same batch again: from the second call on with the chance of the first, and with the model's buffers as the first left them."""
    device = device_of(model)
    devices = [device] if device.type == "cuda" else []
    chance: list[Tensor] = []

    def pass_() -> Tensor:
        if not chance:
            chance.extend([torch.get_rng_state(), *(torch.cuda.get_rng_state(each) for each in devices)])
            return gradient()
        buffers = [(value, value.clone()) for value in model.buffers()]
        with torch.random.fork_rng(devices):
            torch.set_rng_state(chance[0])
            for each, state in zip(devices, chance[1:]):
                torch.cuda.set_rng_state(state, each)
            value = gradient()
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
        return value

    return pass_
