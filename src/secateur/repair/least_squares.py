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

from ..errors import BadInput
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
        shapes = (groups, inputs + 1, inputs + 1), (groups, inputs + 1, outputs), (groups, outputs)
        return Sums(*(torch.zeros(shape, dtype=torch.float64, device=w.device) for shape in shapes))

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
            size = uu.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
            damped = uu + share * torch.where(size > 0, size, 1) * torch.eye(uu.shape[1], dtype=uu.dtype, device=uu.device)
            new = new + torch.linalg.solve(damped, uy - uu @ new)
        return torch.cat([new, y - u @ new if shifts else w[:, -1:]], 1)

    choices: list[float | None] = [None, *(GRID if train.gram[:, :-1, :-1].any() else ())]
    errors = [held.error(at(train, share)) for share in choices]
    best = min(range(len(choices)), key=errors.__getitem__)
    return at(train + held, choices[best]) if errors[best] < held.error(w) else w


def least_squares(model: nn.Module, plan: Plan, data: Iterable[object], progress: Callable[[int, int | None], None] | None = None) -> Tree:
    """New values of the weights of `model` that read what the plan removes, and of biases and running means: `with_values` takes them.

    Fitted are the weights of linear layers, of matrix products and of convolutions (in groups, too), each called once in a run. Others
    stay: depthwise and transposed convolutions, recurrent layers, and weights that read in several places.
    data: batches of (inputs, targets) or dicts; targets are not looked at. It is run through both models for every fitted weight, up to it.
    progress: called with (weights fitted, weights in all). Raises BadInput for plans of connections, and where there is no data.
    """
    if plan.structure != "channels":
        what = f"this is a plan of {plan.structure}"
        raise BadInput(f"Least squares fits what reads a removed channel, but {what}. Choose repair='statistics'.")
    pruned = mask(model, plan)
    dense, task = Task(model, data, no_labels), Task(pruned, data, no_labels)
    values = dict([*pruned.named_parameters(), *pruned.named_buffers()])
    kept, changed = masks(plan), {}
    with torch.no_grad():
        readings = read_by(task, {name: {d for d, index in enumerate(dims) if index is not None} for name, dims in plan.kept.items()})
        for number, reading in enumerate(readings, 1):
            for name, value in refit(reading, task, dense, values, kept[reading.weight]).items():
                changed[name] = values[name].copy_(value)
            if progress:
                progress(number, len(readings))
    return {name: value.detach() for name, value in changed.items()}


def read_by(task: Task, losing: dict[str, set[int]]) -> list[Reading]:
    """The calls whose weights lose inputs, in the order of a run."""
    found = Readings(losing)
    for inputs, _ in task.batches():
        task.run_on(inputs, 0, found.on)
        break
    return found.once()


def refit(reading: Reading, task: Task, dense: Task, values: Tree, kept: Tensor) -> Tree:
    """New values of the weight of this call, and of its bias or of the running mean behind it; what is removed stays zero."""
    weight, kept = values[reading.weight], kept.to(values[reading.weight].device)
    outputs = matrix_of(kept, reading).any(1, keepdim=True)
    w = matrix_of(weight.double(), reading)
    bias = torch.zeros_like(w[:, :1]) if reading.bias is None else values[reading.bias].double().view_as(w[:, :1])
    train, held = Sums.none(w), Sums.none(w)
    for inputs, _ in task.batches():
        u, y = rows_at(reading, task, inputs, made=False), rows_at(reading, dense, inputs, made=True) * outputs
        cut = max(1, u.shape[1] * (HELD - 1) // HELD)
        train.add(u[:, :cut], y[:, :cut])
        held.add(u[:, cut:], y[:, cut:])
    shifts = reading.bias is not None or reading.mean in values
    new = fitted(train, held, torch.cat([w, bias], 1), shifts)
    shift = (new[:, -1:] * outputs).flatten()
    found = {reading.weight: weight_of(new[:, :-1], weight, reading) * kept}
    if reading.bias is not None:
        found[reading.bias] = shift
    elif shifts and reading.mean is not None:
        found[reading.mean] = values[reading.mean] - shift
    return found


def rows_at(reading: Reading, task: Task, inputs: object, made: bool) -> Tensor:
    """What is read in this call, or made. Raises BadInput where the model does not come to it."""
    until = Until(reading, made)
    with suppress(Reached):
        task.run_on(inputs, 0, until.on)
        raise BadInput(f"The model calls {reading.weight} for some inputs only, so it cannot be fitted. Choose repair='statistics'.")
    return until.rows
