"""Mean and variance of every output as they were, where no batch norm is there to be re-estimated.

    W_o <- W_o sd(dense y_o) / sd(y_o),    b_o <- b_o + mean(dense y_o) - mean(y_o), the mean being that of the scaled output

The shift alone is bias correction (Nagel et al., 2019, "Data-free quantization", section 4.2, there for quantised weights); the scale does
for a weight what re-estimation does for a batch norm. Weight after weight, as in `least_squares`, but two numbers for each output, so few
samples will do. The squared error may grow by it, which it never does by `least_squares`.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ..flows.reading import matrix_of
from ..plan import Plan
from ..tree import Tree
from .side_by_side import MEMORY, STILL, Met, Progress, Sums, change_by, check_plan, in_lockstep, kept_matrix

ROUNDING = 1e-6  # a variance this small beside the other one: the output stands still


def match_moments(
    model: nn.Module, plan: Plan, data: Iterable[object], memory: int = MEMORY, progress: Progress | None = None
) -> Tree:  # fmt: skip
    """New values of weights and biases of `model` after this plan, so that each output has the mean and the variance that it had.

    Where a weight has no bias, the running mean of a batch norm behind it takes the shift; where there is neither, it is only scaled.
    data, memory, progress and errors: as of `least_squares`; `with_values` takes what comes back. Where nothing leaves, nothing moves.
    """
    check_plan(plan)
    wanted: dict[str, set[int] | None] = {name: None for name, _ in model.named_parameters()}
    return in_lockstep(model, plan, data, wanted, matched, memory, progress, in_front=False)


def matched(values: Tree, kept: Tree, met: Met) -> set[str]:
    """Change the weight of this call, and its bias or the running mean behind it; their names."""
    reading, sums = met.reading, met.train + met.held
    weight = values[reading.weight]
    w = matrix_of(weight.detach().double(), reading)
    scale, shift = scale_and_shift(w, sums)
    alive = kept_matrix(kept, weight, reading).any(1, keepdim=True)
    return change_by(torch.cat([w * (scale - 1), shift * alive], 1), values, reading)


def scale_and_shift(w: Tensor, sums: Sums) -> tuple[Tensor, Tensor]:
    """Of what is made, u w: the factor, and what is added afterwards, (groups, 1, outputs). w: (groups, inputs, outputs)."""
    number = sums.number
    uu, ur, u, r = sums.deviations(True)
    var = (w * (uu @ w)).sum(1, keepdim=True)
    dense = var + 2 * (w * ur).sum(1, keepdim=True) + sums.square[:, None] - number * r.square()
    least = torch.maximum(ROUNDING * torch.maximum(var, dense), STILL * number * (u @ w + r).square())
    still = (var <= least) | (dense <= least)
    scale = torch.where(still, 1, (dense / torch.where(still, 1, var)).sqrt())
    return scale, r + (1 - scale) * (u @ w)
