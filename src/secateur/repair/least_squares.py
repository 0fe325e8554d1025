"""Least squares: what is left of a weight is fitted anew, so that what it makes becomes what it was in the dense model.

    min over D, d of  sum over samples and positions of |u D + d - r|^2  +  lambda |D|^2,    W <- W + D / s,  b <- b + d / s

    D = (C_uu + lambda I)^-1 C_ur,  d = mean(r) - mean(u) D          C: sums of products of deviations from the mean

    u: what the weight reads in the pruned model, a row for each position (of a convolution, the window that the kernel sees). r: what is
    missing there, of the dense model's output. Where the output is added to something else (a residual sum), r is what is missing of the
    sum, and s is the factor between the two (of a batch norm, a scale); else s = 1. Where the weight has no bias, but a batch norm behind
    it, that one's running mean takes d. D is zero where the weight is removed; where outputs keep different inputs, each is solved alone.

No label is needed. Weights are fitted in the order in which the model calls them, each on what the fitted ones before it make, so it also
makes up for what those left (He et al., 2017, "Channel pruning", eq. 5: there from dense features, layer by layer). lambda is chosen from a
grid by the error on a fifth of the samples, which the fit does not see; "as it is" is one of the choices. Then all samples are fitted
with it, on which the error of this weight's output (or of the sum) is never larger than it was. What the model gives back is nearly always
nearer, too; with some dozens of rows it need not be.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ..criteria.removal import damped
from ..plan import Plan
from ..surgery import masks
from ..tree import Tree
from .side_by_side import MEMORY, Met, Progress, Sums, change_by, check_plan, in_lockstep, kept_matrix, taker

GRID = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # lambda, in mean eigenvalues of C_uu
SOME = 8  # outputs that lambda is chosen by, where each is solved for itself
STILL = 1e-6  # an output of so small a factor, beside the largest, is left alone
SYSTEMS = 2**28  # bytes of systems that are solved at once


def fitted(train: Sums, held: Sums, kept: Tensor, shifts: bool) -> Tensor:
    """(D, d) of the least error on `held`, among nothing, a shift and the fits on `train`; then with that lambda on both.

    kept: (groups, inputs, outputs), where D may differ from zero. shifts: whether there is a bias to take d.
    """

    def at(sums: Sums, kept: Tensor, share: float | None) -> Tensor:
        uu, ur, u, r = sums.deviations(shifts)
        change = torch.zeros_like(ur)
        if share is not None:
            change = solved(damped(uu, share), ur, kept)
        return torch.cat([change, (r - u @ change) * kept.any(1, keepdim=True) if shifts else change[:, :1] * 0], 1)

    some = torch.arange(kept.shape[2], device=kept.device)
    if not alike(kept):
        some = some[:: -(-len(some) // SOME)]
    seen, unseen, tried = train.of(some), held.of(some), kept[..., some]
    best: tuple[float | None] | None = None
    least = unseen.error(torch.zeros_like(seen.cross))
    for share in (None, *(GRID if train.gram[:, :-1, :-1].any() else ())):
        change = at(seen, tried, share)
        if (error := unseen.error(change)) < least:
            least, best = error, (share,)
    return torch.zeros_like(train.cross) if best is None else at(train + held, kept, *best)


def alike(kept: Tensor) -> bool:
    """Whether all outputs that keep any input keep the same ones."""
    return bool((kept == kept.any(2, keepdim=True) & kept.any(1, keepdim=True)).all())


def solved(a: Tensor, b: Tensor, kept: Tensor) -> Tensor:
    """A^-1 b over the inputs that each output keeps; zero elsewhere. a: (groups, inputs, inputs), b, kept: (groups, inputs, outputs)."""
    if alike(kept):
        return one_system(a, b, kept.any(2)) * kept
    some = max(1, SYSTEMS // (8 * a.numel()))
    fewest = kept.sum((0, 1)).argsort()  # those that keep as many are solved together
    systems = zip(torch.split(b.movedim(2, 0)[fewest], some), torch.split(kept.movedim(2, 0)[fewest], some))
    found = torch.cat([one_system(a, values[..., None], part)[..., 0] for values, part in systems])
    return found[fewest.argsort()].movedim(0, 2)


def one_system(a: Tensor, b: Tensor, kept: Tensor) -> Tensor:
    """By the Cholesky factor of what is kept. a: (groups, inputs, inputs), b: (..., inputs, outputs), kept: (..., inputs)."""
    most = int(kept.sum(-1).max())
    index = kept.int().argsort(dim=-1, descending=True, stable=True)[..., :most]
    mine = kept.gather(-1, index)
    part = a[torch.arange(len(a), device=a.device)[:, None, None], index[..., None], index[..., None, :]]
    part = torch.where(mine[..., None] & mine[..., None, :], part, torch.diag_embed((~mine).to(a.dtype)))
    index = index[..., None].expand(*index.shape, b.shape[-1])
    right = b.gather(-2, index) * mine[..., None]
    return torch.zeros_like(b).scatter(-2, index, torch.cholesky_solve(right, torch.linalg.cholesky(part)))


def least_squares(
    model: nn.Module,
    plan: Plan,
    data: Iterable[object],
    every: bool = True,
    sequential: bool = True,
    memory: int = MEMORY,
    progress: Progress | None = None,
) -> Tree:
    """New values of the weights of `model` after this plan, and of biases and running means: `with_values` takes them.

    Fitted are the weights of linear layers, of matrix products and of convolutions (in groups, too, and transposed), each called once in
    a run. Others stay: embeddings, recurrent layers, bilinear ones, weights that are called several times, or computed in the run (weight
    norm, x @ w.t(), an einsum), and convolutions of an image without a batch or of `padding="same"` around an even kernel.
    data: batches of (inputs, targets) or dicts; targets are not looked at. Both models are run on all batches at once, side by side, so
    of a large data set only the first ones are looked at: as many as have activations of about `memory` bytes, and one at least.
    sequential: fit on what the pruned model makes, weight after weight; else each by itself, on what the dense model makes (as He et al.
        do), those only that lose what they read, as if what leaves were zero.
    every: of the sequential fit, all weights, so that they make up for what those before them left; else only those that lose what they
        read.
    progress: called with (weights fitted, weights in all). Raises BadInput where there is no data, or some is run through other calls.
    """
    check_plan(plan)
    wanted: dict[str, set[int] | None]
    if every and sequential:
        wanted = {name: None for name, _ in model.named_parameters()}
    elif plan.kept:
        wanted = {name: {d for d, index in enumerate(dims) if index is not None} for name, dims in plan.kept.items()}
    else:
        wanted = dict.fromkeys(masks(plan))
    return in_lockstep(model, plan, data, wanted, refit, memory, progress, sequential)


def refit(values: Tree, kept: Tree, met: Met) -> set[str]:
    """Change the weight of this call, and its bias or the running mean behind it; their names."""
    reading, factor = met.reading, met.factor
    heard = factor.abs() > STILL * factor.abs().max()
    left = kept_matrix(kept, values[reading.weight], reading) & heard
    change = fitted(met.train, met.held, left, taker(reading, values) is not None) / torch.where(heard, factor, 1)
    return change_by(change, values, reading)
