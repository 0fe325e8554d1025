"""Sharpness-aware minimisation in the three forms in which users have it, and the loop that they are to be equal to."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


class Halves(Optimizer):
    """Two steps, around an optimizer of its own with which it shares its groups (as in davda54/sam)."""

    def __init__(self, parameters: Iterable[nn.Parameter], rho: float = 0.05, **options: float) -> None:
        super().__init__(parameters, {"rho": rho, **options})
        self.inner = torch.optim.SGD(self.param_groups, **options)
        self.param_groups = self.inner.param_groups

    @torch.no_grad()
    def first_step(self, zero_grad: bool = False) -> None:
        norm = torch.stack([p.grad.norm() for group in self.param_groups for p in group["params"] if p.grad is not None]).norm()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.state[p]["old"] = p.clone()
                    p.add_(p.grad * group["rho"] / (norm + 1e-12))
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def second_step(self, zero_grad: bool = False) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.copy_(self.state[p]["old"])
        self.inner.step()
        if zero_grad:
            self.zero_grad()

    def step(self, closure: Callable[[], Tensor] | None = None) -> None:
        raise AssertionError("it is stepped in halves")


class Closed(Halves):
    """In one call, by a closure."""

    first_step = second_step = None  # type: ignore[assignment]

    def step(self, closure: Callable[[], Tensor]) -> Tensor:  # type: ignore[override]
        value = closure()
        Halves.first_step(self)
        closure()
        Halves.second_step(self)
        return value


def by_hand(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], loss: Callable[[Tensor, Tensor], Tensor], rho: float, lr: float,
    momentum: float, rate: Callable[[int], float], masks: dict[str, Tensor],
) -> list[float]:  # fmt: skip
    """The equations, w <- w - lr v, v <- momentum v + g(w + rho g / |g|), on masked weights; buffers move in the first pass only."""
    speed = {name: torch.zeros_like(value) for name, value in model.named_parameters()}
    losses = []

    def gradient(x: Tensor, y: Tensor) -> tuple[float, dict[str, Tensor]]:
        value = loss(model(x), y)
        grads = torch.autograd.grad(value, list(model.parameters()))
        return value.item(), {n: g * masks[n] if n in masks else g for (n, _), g in zip(model.named_parameters(), grads)}

    for number, (x, y) in enumerate(batches):
        value, g = gradient(x, y)
        losses.append(value)
        norm = torch.stack([each.norm() for each in g.values()]).norm()
        with torch.no_grad():
            before = {name: each.clone() for name, each in model.named_parameters()}
            buffers = {name: each.clone() for name, each in model.named_buffers()}
            for name, each in model.named_parameters():
                each.add_(rho * g[name] / (norm + 1e-12))
        _, g = gradient(x, y)
        with torch.no_grad():
            for name, each in model.named_buffers():
                each.copy_(buffers[name])
            for name, each in model.named_parameters():
                speed[name] = momentum * speed[name] + g[name]
                each.copy_(before[name] - lr * rate(number) * speed[name])
    return losses
