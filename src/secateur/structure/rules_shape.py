"""Rules of operators that move indices about: views, permutations, concatenation, slices, padding, shuffles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .labels import EXPERT, OUTER, Dim, inert, join, merge
from .rules import Dims, broadcast, outer, reshape, rule

if TYPE_CHECKING:
    from .trace import Trace


@rule("view", "reshape", "_unsafe_view", "flatten", "_reshape_alias", "_reshape_copy", "unsqueeze", "view_copy")
def view(t: Trace, out: Tensor, x: Tensor, *args: object, **kwargs: object) -> Dims:
    dims = reshape(t, t[x], out.shape)
    for at, dim in enumerate(dims):
        t.size(dim, at=None if t.called == "unflatten" else at)
    return dims


@rule("squeeze")
def squeeze(t: Trace, out: Tensor, x: Tensor, *dims: object) -> Dims:
    """Were one index left of a dimension, it would vanish."""
    asked = [d for dim in dims for d in (dim if isinstance(dim, (tuple, list)) else [dim])] if dims else [*range(x.dim())]
    for d in asked:
        if t[x][d].any():  # type: ignore[index]
            t.labels.needs(t[x][d], 2)  # type: ignore[index]
    return view(t, out, x)


@rule(
    "detach",
    "lift_fresh_copy",
    "clone",
    "alias",
    "_to_copy",
    "contiguous",
    "lift_fresh",
    "zeros_like",
    "ones_like",
    "empty_like",
    "full_like",
    "rand_like",
    "randn_like",
    "dropout",
    "_conj",
    "_neg_view",
    "real",
    "imag",
)
def same(t: Trace, out: Tensor, x: Tensor, *args: object, **kwargs: object) -> Dims:
    return t[x]


@rule("as_strided", "as_strided_")
def as_strided(t: Trace, out: Tensor, x: Tensor, size: Sequence[int], *args: object) -> Dims:
    """Only a change of memory layout is understood."""
    if tuple(size) == tuple(dim.shape[1] for dim in t[x]):
        return t[x]
    for dim in t[x]:
        t.freeze(dim, "memory is read anew")
    return tuple(inert(n) for n in size)


@rule("copy_")
def copy_(t: Trace, out: Tensor, x: Tensor, source: Tensor, *args: object) -> Dims:
    return broadcast(t, out, [x, source])


@rule("zeros", "ones", "empty", "full", "rand", "randn", "new_zeros", "new_ones", "new_empty", "new_full")
def made(t: Trace, out: Tensor, *args: object, **kwargs: object) -> Dims:
    """A new tensor of one value, or of noise: its indices are all alike."""
    return tuple(t.made(size, at) for at, size in enumerate(out.shape))


@rule("t", "transpose", "numpy_T")
def transpose(t: Trace, out: Tensor, x: Tensor, a: int = 0, b: int = 1) -> Dims:
    dims = list(t[x])
    if len(dims) > 1:
        dims[a], dims[b] = dims[b], dims[a]
    return tuple(dims)


@rule("permute")
def permute(t: Trace, out: Tensor, x: Tensor, order: Sequence[int]) -> Dims:
    return tuple(t[x][d] for d in order)


@rule("expand")
def expand(t: Trace, out: Tensor, x: Tensor, *args: object, **kwargs: object) -> Dims:
    """The indices that an expansion adds are all alike."""
    old = (inert(1),) * (out.dim() - x.dim()) + t[x]
    named = t.called != "repeat_interleave"  # whose integers are others
    sizes = enumerate(zip(old, out.shape))
    dims = [dim if dim.shape[1] == size else t.made(size, at if named else None, OUTER) for at, (dim, size) in sizes]
    for at, dim in enumerate(dims if named else ()):
        t.size(dim, at=at)
    return tuple(dims)


@rule("repeat")
def repeat(t: Trace, out: Tensor, x: Tensor, times: Sequence[int]) -> Dims:
    dims = (inert(1),) * (len(times) - x.dim()) + t[x]
    return tuple(dim if n == 1 else merge(t.made(n, at, OUTER), dim) for at, (n, dim) in enumerate(zip(times, dims)))


@rule("cat", "concat")
def cat(t: Trace, out: Tensor, tensors: Sequence[Tensor], dim: int = 0) -> Dims:
    tensors = [x for x in tensors if x.dim() == out.dim()]  # old-style empty tensors are passed over
    dim %= out.dim()
    for x in tensors[1:]:
        for d in range(out.dim()):
            if d != dim:
                t.unite(t[tensors[0]][d], t[x][d])
    return replaced(t[tensors[0]], dim, join([t[x][dim] for x in tensors]))


@rule("stack")
def stack(t: Trace, out: Tensor, tensors: Sequence[Tensor], dim: int = 0) -> Dims:
    dims = list(broadcast(t, tensors[0], tensors))
    dims.insert(dim % out.dim(), inert(len(tensors)))
    return tuple(dims)


@rule("split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes", "chunk")
def split(t: Trace, out: Sequence[Tensor], x: Tensor, sizes: object, dim: int = 0) -> tuple[Dims, ...]:
    """Parts follow the dimension only if those whose sizes are one number lose the same indices."""
    dim %= x.dim()
    ends = np.cumsum([part.shape[dim] for part in out]).tolist()
    parts = np.split(t[x][dim], ends[:-1], axis=1)
    listed = isinstance(sizes, (tuple, list))
    first: dict[object, Dim] = {}
    for at, part in enumerate(parts):
        t.unite(first.setdefault(t.key(part.shape[1], at if listed else 0), part), part)
        t.size(part, at=at if listed else 0)
    return tuple(replaced(t[x], dim, part) for part in parts)


@rule("unbind")
def unbind(t: Trace, out: Sequence[Tensor], x: Tensor, dim: int = 0) -> tuple[Dims, ...]:
    dim %= x.dim()
    t.freeze(t[x][dim], "taken apart index by index")
    return tuple(t[x][:dim] + t[x][dim + 1 :] for _ in out)


@rule("select")
def select(t: Trace, out: Tensor, x: Tensor, dim: int, index: int) -> Dims:
    dim %= x.dim()
    t.freeze(t[x][dim], "one index of it is selected")
    return t[x][:dim] + t[x][dim + 1 :]


@rule("index_select")
def index_select(t: Trace, out: Tensor, x: Tensor, dim: int, index: Tensor) -> Dims:
    t.picked(t[x][dim], index)
    return replaced(t[x], dim, t[index][0] if index.dim() else inert(1))


@rule("index")
def index(t: Trace, out: Tensor, x: Tensor, indices: Sequence[Tensor | None]) -> Dims:
    """Indexed dimensions are frozen, the others pass. What the indices make stands in their place, or first if they stood apart."""
    at = [d for d, value in enumerate(indices) if value is not None]
    if any(value is not None and value.dtype in (torch.bool, torch.uint8) for value in indices):
        raise ValueError("a mask of values, whose size no label predicts")
    for d in at:
        t.picked(t[x][d], indices[d])
    rest = [dim for d, dim in enumerate(t[x]) if d not in at]
    first = at[0] if at == list(range(at[0], at[-1] + 1)) else 0
    made: Dims = ()
    for d in at:
        made = outer(t, made, t[indices[d]])  # type: ignore[index]
    return (*rest[:first], *made, *rest[first:])


@rule("slice")
def slice_(t: Trace, out: Tensor, x: Tensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> Dims:
    dim %= x.dim()
    whole = t[x][dim]
    part = whole[:, slice(start, end, step)]
    if part.shape != whole.shape:
        n = x.shape[dim]
        bounds = [bound for bound in (start, end) if bound is not None and bound % n and -n < bound < n]
        if step != 1:
            t.freeze(whole, "every so many of it are taken")
        elif id(x) not in t.active and not all(t.origin_of(bound) for bound in bounds):
            t.freeze(whole, "a part of it is taken, for a longer input another one")
        for bound in bounds:
            if bound > 0:
                t.size(whole[:, :bound])
    return replaced(t[x], dim, part)


@rule("flip")
def flip(t: Trace, out: Tensor, x: Tensor, dims: Sequence[int]) -> Dims:
    axes = {d % x.dim() for d in dims}
    return tuple(dim[:, ::-1] if d in axes else dim for d, dim in enumerate(t[x]))


@rule(
    "constant_pad_nd",
    "reflection_pad1d",
    "reflection_pad2d",
    "reflection_pad3d",
    "replication_pad1d",
    "replication_pad2d",
    "replication_pad3d",
    "pad",
)
def pad(t: Trace, out: Tensor, x: Tensor, padding: Sequence[int], *args: object) -> Dims:
    """Indices that padding adds are all alike; only constant padding reaches a labelled dimension."""
    dims = list(t[x])
    for back in range(len(padding) // 2):
        before, after = padding[2 * back], padding[2 * back + 1]
        dim = dims[-1 - back]
        if before > 0 and after > 0 and t.op == "aten::constant_pad_nd" and dim.any():
            dims[-1 - back] = join([t.made(before, 2 * back), dim, t.made(after, 2 * back + 1)])
            continue
        if min(before, after) < 0:
            dim = dim[:, max(0, -before) : dim.shape[1] - max(0, -after)]
        if (before or after) and t.op != "aten::constant_pad_nd":
            t.freeze(dim, "padded with its own values")
        dims[-1 - back] = np.pad(dim, ((0, 0), (max(before, 0), max(after, 0))))
    return tuple(dims)


@rule("pixel_shuffle")
def pixel_shuffle(t: Trace, out: Tensor, x: Tensor, factor: int) -> Dims:
    *before, channels, height, width = t[x]
    c, square = t.split(channels, out.shape[-3], factor * factor)
    t.freeze(square, "spread over pixels")
    return (*before, c, merge(height, inert(factor)), merge(width, inert(factor)))


@rule("pixel_unshuffle")
def pixel_unshuffle(t: Trace, out: Tensor, x: Tensor, factor: int) -> Dims:
    *before, channels, height, width = t[x]
    t.freeze(height, "taken apart into channels")
    t.freeze(width, "taken apart into channels")
    return (*before, merge(channels, inert(factor * factor)), inert(out.shape[-2]), inert(out.shape[-1]))


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(t: Trace, out: Tensor, x: Tensor, groups: int) -> Dims:
    outer, inner = t.split(t[x][1], groups, x.shape[1] // groups)
    t.size(outer, groups)
    return replaced(t[x], 1, merge(inner, outer))


@rule("topk")
def topk(t: Trace, out: Sequence[Tensor], x: Tensor, k: int, dim: int = -1, *args: object, **kwargs: object) -> tuple[Dims, ...]:
    """The largest of what is left. Their positions may pick from what has the same indices (experts from a router)."""
    t.approximates(t[x][dim], "the largest along it are taken")
    t.labels.plays(t[x][dim], EXPERT)
    t.labels.needs(t[x][dim], k)
    t.point(out[1], t[x][dim])
    dims = replaced(t[x], dim, inert(k))
    return dims, dims


@rule("cumsum", "cumprod", "cummax", "cummin", "logcumsumexp", "sort", "kthvalue", "msort", "renorm")
def along(t: Trace, out: object, x: Tensor, *args: object, **kwargs: object) -> object:
    """Works along one dimension, the others pass."""
    last = -1 if t.op in ("aten::sort", "aten::kthvalue") else 0
    numbers = [a for a in args[t.op == "aten::kthvalue" :] if isinstance(a, int) and not isinstance(a, bool)]
    d = kwargs.get("dim", numbers[0] if numbers else last)
    assert isinstance(d, int)
    t.freeze(t[x][d], "the order along it counts")
    one = out if isinstance(out, Tensor) else out[0]  # type: ignore[index]
    dims = t[x] if one.dim() != x.dim() else replaced(t[x], d, inert(one.shape[d]))
    if one.dim() != x.dim():
        dims = tuple(dim for at, dim in enumerate(t[x]) if at != d % x.dim())
    return dims if isinstance(out, Tensor) else tuple(dims for _ in out)  # type: ignore[attr-defined]


@rule("gather")
def gather(t: Trace, out: Tensor, x: Tensor, dim: int, index: Tensor, **kwargs: object) -> Dims:
    return lined_up(t, x, dim, index)


@rule("scatter", "scatter_", "scatter_add", "scatter_add_", "scatter_reduce", "scatter_reduce_")
def scatter(t: Trace, out: Tensor, x: Tensor, dim: int, index: Tensor, src: object = None, *args: object, **kwargs: object) -> Dims:
    lined_up(t, x, dim, index)
    if isinstance(src, Tensor) and src.dim():
        lined_up(t, src, dim, index)
    return t[x]


def lined_up(t: Trace, x: Tensor, dim: int, index: Tensor) -> Dims:
    """Picked from by number along one dimension; along the others, index i of `index` is index i of x."""
    dim %= x.dim()
    t.picked(t[x][dim], index)
    for d, mine in enumerate(t[index]):
        if d != dim:
            t.unite(t[x][d][:, : mine.shape[1]], mine)
    return tuple(mine if d == dim else t[x][d][:, : mine.shape[1]] for d, mine in enumerate(t[index]))


@rule("index_add", "index_add_", "index_copy", "index_copy_", "index_fill", "index_fill_")
def index_add(t: Trace, out: Tensor, x: Tensor, dim: int, index: Tensor, source: object = None, **kwargs: object) -> Dims:
    dim %= x.dim()
    t.freeze(t[x][dim], "written to by number")
    for d in range(x.dim()):
        if d != dim and isinstance(source, Tensor) and source.dim():
            t.unite(t[x][d], t[source][d])
    return t[x]


@rule("index_put", "index_put_", "_index_put_impl_")
def index_put(t: Trace, out: Tensor, x: Tensor, indices: Sequence[Tensor | None], values: Tensor, *args: object) -> Dims:
    """As if x[indices] were united with the values."""
    at = [d for d, value in enumerate(indices) if value is not None]
    for d in at:
        t.freeze(t[x][d], "written to by number")
    for value in (indices[d] for d in at):
        if value is not None and value.dtype in (torch.bool, torch.uint8) and value.dim() > 1:
            raise ValueError("a mask of several dimensions")
    rest = [dim for d, dim in enumerate(t[x]) if d not in at]
    last = rest if at == list(range(len(at))) else []
    for dim, mine in zip(reversed(last), reversed(t[values])):
        if dim.shape == mine.shape or dim.shape[1] == mine.shape[1]:
            t.unite(dim, mine)
    if last != rest:
        for dim in rest:
            t.freeze(dim, "written to by number")
    return t[x]


@rule("_fft_r2c", "_fft_c2c", "_fft_c2r")
def fft(t: Trace, out: Tensor, x: Tensor, dim: Sequence[int], *args: object) -> Dims:
    axes = {d % x.dim() for d in dim}
    for d in axes:
        t.freeze(t[x][d], "Fourier-transformed along")
    return tuple(inert(out.shape[d]) if d in axes else mine for d, mine in enumerate(t[x]))


@rule("im2col")
def im2col(t: Trace, out: Tensor, x: Tensor, *args: object) -> Dims:
    *before, channel, height, width = t[x]
    for dim in (height, width):
        t.freeze(dim, "taken apart into windows")
    return (*before, merge(channel, inert(out.shape[-2] // channel.shape[1])), inert(out.shape[-1]))


@rule("col2im")
def col2im(t: Trace, out: Tensor, x: Tensor, *args: object) -> Dims:
    *before, columns, windows = t[x]
    t.freeze(windows, "put together from windows")
    channel, square = t.split(columns, out.shape[-3], columns.shape[1] // out.shape[-3])
    t.freeze(square, "put together from windows")
    return (*before, channel, inert(out.shape[-2]), inert(out.shape[-1]))


@rule("unfold")
def unfold(t: Trace, out: Tensor, x: Tensor, dim: int, size: int, step: int) -> Dims:
    t.freeze(t[x][dim], "taken apart into windows")
    return (*replaced(t[x], dim, inert(out.shape[dim % x.dim()])), inert(size))


@rule("view_as_complex")
def view_as_complex(t: Trace, out: Tensor, x: Tensor) -> Dims:
    t.freeze(t[x][-1], "a complex number's two parts")
    return t[x][:-1]


@rule("view_as_real")
def view_as_real(t: Trace, out: Tensor, x: Tensor) -> Dims:
    return (*t[x], inert(2))


@rule("tril", "triu")
def triangle(t: Trace, out: Tensor, x: Tensor, *args: object) -> Dims:
    for dim in t[x][-2:]:
        t.freeze(dim, "a triangle of it is cut out")
    return t[x]


@rule("roll")
def roll(t: Trace, out: Tensor, x: Tensor, shifts: Sequence[int], dims: Sequence[int] = ()) -> Dims:
    for d in dims if dims else range(x.dim()):
        t.freeze(t[x][d], "rolled")
    return t[x]


def replaced(dims: Dims, at: int, dim: np.ndarray) -> Dims:
    at %= len(dims)
    return (*dims[:at], dim, *dims[at + 1 :])


@rule("arange")
def arange(t: Trace, out: Tensor, *args: object, **kwargs: object) -> Dims:
    """What is counted has no labels, but for the classes of `one_hot`."""
    return (t.made(out.numel(), None) if t.called == "one_hot" else inert(out.numel()),)


@rule("eq")
def eq(t: Trace, out: Tensor, x: Tensor, y: object) -> Dims:
    """Within `one_hot`, positions are compared with 0, 1, 2, ...: what is made has the dimension that they are positions in."""
    dims = broadcast(t, out, [value for value in (x, y) if isinstance(value, Tensor)])
    points = t.points.get(id(x))
    if points is not None and t.called == "one_hot" and dims[-1].shape == points.shape:
        t.unite(dims[-1], points)
        return dims
    for value in (x, y):
        if id(value) in t.points:
            t.freeze(t.points[id(value)], "positions in it are asked for")
    return dims
