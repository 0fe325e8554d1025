"""Least squares: what is left of a weight is fitted anew, so that what it makes stays what it was in the dense model.

    min over W, b of  sum over samples and positions of |u W + b - y|^2  +  lambda |W - W_0|^2

    W = W_0 + (C_uu + lambda I)^-1 (C_uy - C_uu W_0),  b = mean(y) - mean(u) W        C: sums of products of deviations from the mean

    u: what the weight reads in the pruned model, a row for each position (of a convolution, the window that the kernel sees). y: what the
    dense model makes there. W_0: the weight as it is. Where it has no bias, but a batch norm behind it, that one's running mean takes b.

No label is needed. Weights are fitted in the order in which the model calls them, each on what the fitted ones before it make, so it also
makes up for what those left (He et al., 2017, "Channel pruning", eq. 5: there from dense features, layer by layer). lambda is chosen from a
grid by the error on a fifth of the samples, which the fit does not see. "As it is" is one of the choices: nothing is changed for the worse
there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..plan import Plan
from ..surgery import mask, masks
from ..task import Task, no_labels
from ..tree import Tree
from .reading import Reached, Reading, Readings, Until, matrix_of, weight_of

HELD = 5  # of so many samples of a batch, the last one is held out
GRID = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # lambda, in mean eigenvalues of C_uu


@dataclass
class Sums:
    """Sums of products over rows, in float64: of (u, 1) with itself and with y, (groups, inputs + 1, ...), and of y with itself."""

    gram: Tensor
    cross: Tensor
    square: Tensor

    @staticmethod
    def none(w: Tensor) -> Sums:
        groups, inputs, outputs = w.shape
        zeros: Callable[..., Tensor] = lambda *shape: torch.zeros(shape, dtype=torch.float64, device=w.device)  # noqa: E731
        return Sums(zeros(groups, inputs + 1, inputs + 1), zeros(groups, inputs + 1, outputs), zeros(groups, outputs))

    def add(self, u: Tensor, y: Tensor) -> None:
        one = torch.cat([u, torch.ones_like(u[..., :1])], -1)
        self.gram += (one.mT @ one).double()
        self.cross += (one.mT @ y).double()
        self.square += y.double().square().sum(1)

    def __add__(self, other: Sums) -> Sums:
        return Sums(self.gram + other.gram, self.cross + other.cross, self.square + other.square)

    def error(self, w: Tensor) -> float:
        """sum of |(u, 1) w - y|^2."""
        return float((w * (self.gram @ w - 2 * self.cross)).sum() + self.square.sum())

    def deviations(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """C_uu, C_uy and the means of u and y."""
        number = self.gram[:, -1:, -1:]
        u, y = self.gram[:, -1:, :-1] / number, self.cross[:, -1:] / number
        return self.gram[:, :-1, :-1] - number * u.mT @ u, self.cross[:, :-1] - number * u.mT @ y, u, y


def fitted(train: Sums, held: Sums, w: Tensor, shifts: bool) -> Tensor:
    """(W, b) of the least error on `held`, among w, w with another b and the fits on `train`; then with that lambda on both."""

    def at(sums: Sums, share: float | None) -> Tensor:
        uu, uy, u, y = sums.deviations() if shifts else (sums.gram[:, :-1, :-1], sums.cross[:, :-1], torch.zeros(()), torch.zeros(()))
        new = w[:, :-1]
        if share is not None:
            scale = share * uu.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
            new = new + torch.linalg.solve(uu + scale * torch.eye(uu.shape[1], dtype=uu.dtype, device=uu.device), uy - uu @ new)
        return torch.cat([new, y - u @ new if shifts else w[:, -1:]], 1)

    choices: list[float | None] = [None, *(GRID if train.gram[:, :-1, :-1].any() else ())]
    errors = [held.error(at(train, share)) for share in choices]
    best = min(range(len(choices)), key=errors.__getitem__)
    return at(train + held, choices[best]) if errors[best] < held.error(w) else w


def least_squares(model: nn.Module, plan: Plan, data: Iterable[object], progress: Callable[[int, int | None], None] | None = None) -> Tree:
    """New values, at the old size, of the parameters and running statistics of `model` that read what the plan removes.

    data: batches of (inputs, targets) or dicts; targets are not looked at.
    """
    pruned = mask(model, plan)
    dense, task = Task(model, data, no_labels), Task(pruned, data, no_labels)
    values = dict([*pruned.named_parameters(), *pruned.named_buffers()])
    lost, found = masks(plan), Readings({name: {d for d, index in enumerate(kept) if index is not None} for name, kept in plan.kept.items()})
    with torch.no_grad():
        inputs, _ = next(iter(task.batches()))
        task.run_on(inputs, 0, found.on)
        readings, changed = found.once(), {}
        for number, reading in enumerate(readings):
            weight = values[reading.weight]
            kept = lost[reading.weight] if reading.weight in lost else torch.ones_like(weight, dtype=torch.bool)
            outputs = matrix_of(kept.to(weight.device), reading).any(1, keepdim=True)
            w = matrix_of(weight.detach().double(), reading)
            old = torch.zeros_like(w[:, :1]) if reading.bias is None else values[reading.bias].double().view_as(w[:, :1])
            w = torch.cat([w, old], 1)
            train, held = Sums.none(w[:, :-1]), Sums.none(w[:, :-1])
            for inputs, _ in task.batches():
                u, y = seen(task, reading, inputs).u, seen(dense, reading, inputs).y * outputs
                cut = max(1, u.shape[1] * (HELD - 1) // HELD)
                train.add(u[:, :cut], y[:, :cut])
                held.add(u[:, cut:], y[:, cut:])
            shifts = reading.bias is not None or reading.mean in values
            new = fitted(train, held, w, shifts)
            weight.copy_(weight_of(new[:, :-1], weight, reading) * kept.to(weight.device))
            changed[reading.weight] = weight
            if reading.bias is not None:
                changed[reading.bias] = values[reading.bias].copy_(new[:, -1].flatten() * outputs.flatten())
            elif shifts and reading.mean is not None:
                changed[reading.mean] = values[reading.mean].sub_((new[:, -1] * outputs[:, 0]).flatten())
            if progress:
                progress(number + 1, len(readings))
    return {name: value.detach() for name, value in changed.items()}


def seen(task: Task, reading: Reading, inputs: object) -> Until:
    until = Until(reading.call)
    with suppress(Reached):
        task.run_on(inputs, 0, until.on)
    return until
