"""The structure in which of every m consecutive connections n stay: 2:4 is what sparse tensor cores of GPUs take."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import BadInput
from .axes import Axes
from .structure import Group, Run
from .weights import Weights, connections, of_tensors


def n_of_m(model: nn.Module, n: int = 2, m: int = 4, example: object = None) -> Weights:
    """Connections as units, of which the n best of every m stay that follow each other along the inputs of a weight tensor.

    Along the inputs: of a linear layer w[o, i : i + m]; of a convolution along the input channels at one place of the kernel, w[o, i : i +
    m, h, w], since the product is taken in the order (h, w, i) (Mishra et al., 2021, "Accelerating sparse deep neural networks", section
    4: 2:4 of a convolution). The structure itself says how much goes, so `select(scores, structure)` takes no amount.
    Left alone, with the reason in `frozen`, are weights whose inputs (those of a group, of a grouped convolution) are no multiple of m,
    and, with an example, those that multiply nothing in a run (embeddings, positions). Axes are found as in `blocks`.
    Raises BadInput for numbers that are none, NothingToPrune where no parameter has two dimensions.
    """
    if type(n) is not int or type(m) is not int or not 1 <= n < m < 10**6:
        raise BadInput(f"Of every m connections n stay, whole numbers with 1 <= n < m, but they are n={n!r} and m={m!r}. Try n=2, m=4.")

    def group(name: str, shape: tuple[int, ...], axes: Axes, used: bool) -> Group:
        one, inputs = connections(name, shape), shape[axes.inputs] // axes.groups
        why = "" if used else "it multiplies nothing in the run"
        why = why or ("" if inputs % m == 0 else f"its {inputs} inputs are no multiple of {m}")
        run = None if why else Run(n, m, axes.inputs)
        return Group(name, shape, one.kind, one.members, frozen=why, run=run)

    return of_tensors(model, example, f"{n}:{m}", group)


def best_of(scores: Tensor, run: Run) -> Tensor:
    """Which n of every m stay; of equal scores those that come later."""
    inputs_last = scores.movedim(run.dim, -1)
    lines = inputs_last.reshape(*inputs_last.shape[:-1], -1, run.m)
    gone = lines.argsort(stable=True)[..., : run.m - run.n]
    keep = torch.ones_like(lines, dtype=torch.bool).scatter_(-1, gone, False)
    return keep.flatten(-2).movedim(-1, run.dim).contiguous()
