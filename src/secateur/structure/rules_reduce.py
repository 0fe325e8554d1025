"""Rules of operators that sum dimensions up or sample them: means, pooling, interpolation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from .labels import inert
from .rules import Dims, rule

if TYPE_CHECKING:
    from .trace import Trace


@rule(
    "mean", "sum", "nansum", "prod", "amax", "amin", "aminmax", "max", "min", "median", "mode", "all", "any", "count_nonzero", "logsumexp",
    "argmax", "argmin", "var", "std", "var_mean", "std_mean", "norm", "linalg_vector_norm",
)  # fmt: skip
def reduction(t: Trace, out: object, x: Tensor, *args: object, **kwargs: object) -> object:
    """A statistic over a removed dimension is then taken over what is left of it."""
    position = 1 if t.op in ("aten::norm", "aten::linalg_vector_norm") else 0  # these take the order of the norm first
    dim = kwargs.get("dim", args[position] if len(args) > position else None)
    every = range(x.dim())
    axes = {
        d % x.dim()
        for d in ([dim] if isinstance(dim, int) and not isinstance(dim, bool) else dim if isinstance(dim, Sequence) and dim else every)
    }
    pairs = t.op in ("aten::max", "aten::min", "aten::median", "aten::mode") and not isinstance(out, Tensor)  # (values, indices)
    positions = pairs or t.op in ("aten::argmax", "aten::argmin")  # an index would shift
    for d in axes:
        if positions and len(axes) == 1:
            t.point(out[1] if pairs else out, t[x][d])  # type: ignore[index, arg-type]
        elif positions:
            t.freeze(t[x][d], "positions in it are asked for")
        if t.op.removeprefix("aten::").startswith(("var", "std")):
            t.labels.needs(t[x][d], 2)  # the variance of one number is none
        t.approximates(t[x][d], f"{t.op.removeprefix('aten::')} runs over it")
    one = out if isinstance(out, Tensor) else out[0]  # type: ignore[index]
    kept = one.dim() == x.dim()
    dims = tuple(inert(1) if d in axes else dim for d, dim in enumerate(t[x]) if kept or d not in axes)
    return dims if isinstance(out, Tensor) else tuple(dims for _ in out)  # type: ignore[attr-defined]


@rule("_adaptive_avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "avg_pool2d", "max_pool2d", "max_pool2d_with_indices")
def pool2d(t: Trace, out: object, x: Tensor, *args: object, **kwargs: object) -> object:
    return spatial(t, out, x, 2)


@rule("_adaptive_avg_pool3d", "adaptive_avg_pool3d", "adaptive_max_pool3d", "avg_pool3d", "max_pool3d", "max_pool3d_with_indices")
def pool3d(t: Trace, out: object, x: Tensor, *args: object, **kwargs: object) -> object:
    return spatial(t, out, x, 3)


@rule("upsample_nearest1d", "upsample_linear1d", "_upsample_nearest_exact1d")
def upsample1d(t: Trace, out: Tensor, x: Tensor, *args: object, **kwargs: object) -> object:
    return spatial(t, out, x, 1)


@rule(
    "upsample_nearest2d",
    "upsample_bilinear2d",
    "upsample_bicubic2d",
    "_upsample_nearest_exact2d",
    "_upsample_bilinear2d_aa",
    "_upsample_bicubic2d_aa",
)
def upsample2d(t: Trace, out: Tensor, x: Tensor, *args: object, **kwargs: object) -> object:
    return spatial(t, out, x, 2)


@rule("upsample_nearest3d", "upsample_trilinear3d", "_upsample_nearest_exact3d")
def upsample3d(t: Trace, out: Tensor, x: Tensor, *args: object, **kwargs: object) -> object:
    return spatial(t, out, x, 3)


@rule("grid_sampler", "grid_sampler_2d", "grid_sampler_3d", "cudnn_grid_sampler")
def grid_sampler(t: Trace, out: Tensor, x: Tensor, grid: Tensor, *args: object) -> Dims:
    for dim in (*t[x][2:], *t[grid][1:]):
        t.freeze(dim, "sampled along")
    t.unite(t[x][0], t[grid][0])
    return (*t[x][:2], *(inert(size) for size in out.shape[2:]))


@rule("affine_grid_generator")
def affine_grid(t: Trace, out: Tensor, theta: Tensor, *args: object) -> Dims:
    for dim in t[theta][1:]:
        t.freeze(dim, "a transformation of space")
    return (t[theta][0], *(inert(size) for size in out.shape[1:]))


@rule("max_unpool2d", "max_unpool3d")
def max_unpool(t: Trace, out: Tensor, x: Tensor, index: Tensor, *args: object) -> Dims:
    last = 2 if t.op.endswith("2d") else 3
    for a, b in zip(t[x][:-last], t[index][:-last]):
        t.unite(a, b)
    return spatial(t, out, x, last)  # type: ignore[return-value]


def spatial(t: Trace, out: object, x: Tensor, last: int) -> object:
    """The last dimensions are sampled anew, the others pass."""
    for dim in t[x][-last:]:
        t.freeze(dim, "sampled along")
    one = out if isinstance(out, Tensor) else out[0]  # type: ignore[index]
    dims: Dims = t[x][:-last] + tuple(inert(size) for size in one.shape[-last:])
    return dims if isinstance(out, Tensor) else tuple(dims for _ in out)  # type: ignore[attr-defined]
