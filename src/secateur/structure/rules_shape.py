"""Rules of operators that move indices about: views, permutations, concatenation, slices, padding, shuffles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .labels import inert, join, merge
from .rules import Dims, broadcast, reshape, rule

if TYPE_CHECKING:
    from .trace import Trace


@rule("view", "reshape", "_unsafe_view", "flatten", "_reshape_alias", "_reshape_copy", "squeeze", "unsqueeze", "view_copy")
def view(t: Trace, out: Tensor, x: Tensor, *args: object, **kwargs: object) -> Dims:
    dims = reshape(t, t[x], out.shape)
    for at, dim in enumerate(dims):
        t.size(dim, at=at)
    return dims


@rule(
    "detach",
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
    """A new tensor: inert, but for a dimension whose size is an attribute of a module and can follow."""
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
    return broadcast(t, out, [x])


@rule("repeat")
def repeat(t: Trace, out: Tensor, x: Tensor, times: Sequence[int]) -> Dims:
    dims = (inert(1),) * (len(times) - x.dim()) + t[x]
    return tuple(dim if n == 1 else merge(inert(n), dim) for n, dim in zip(times, dims))


@rule("repeat_interleave")
def repeat_interleave(t: Trace, out: Tensor, x: Tensor, n: int, dim: int = 0, **kwargs: object) -> Dims:
    return replaced(t[x], dim, merge(t[x][dim], inert(n)))


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
    """Parts of equal size follow the dimension only if they lose the same indices."""
    dim %= x.dim()
    ends = np.cumsum([part.shape[dim] for part in out]).tolist()
    parts = np.split(t[x][dim], ends[:-1], axis=1)
    if not t.apart(ends):
        for part in parts[1:]:
            if part.shape == parts[0].shape:
                t.unite(parts[0], part)
    for part in parts:
        t.size(part)
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
    t.freeze(t[x][dim], "picked from by number")
    return replaced(t[x], dim, inert(out.shape[dim]))


@rule("index")
def index(t: Trace, out: Tensor, x: Tensor, indices: Sequence[Tensor | None]) -> Dims:
    """Indexed dimensions are frozen, the others pass. What the indices make stands in their place, or first if they stood apart."""
    at = [d for d, value in enumerate(indices) if value is not None]
    if any(value is not None and value.dtype in (torch.bool, torch.uint8) for value in indices):
        raise ValueError("a mask of values, whose size no label predicts")
    for d in at:
        t.freeze(t[x][d], "picked from by number")
    rest = [dim for d, dim in enumerate(t[x]) if d not in at]
    first = at[0] if at == list(range(at[0], at[-1] + 1)) else 0
    made = [inert(size) for size in out.shape[first : first + out.dim() - len(rest)]]
    return (*rest[:first], *made, *rest[first:])


@rule("slice")
def slice_(t: Trace, out: Tensor, x: Tensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> Dims:
    dim %= x.dim()
    part = t[x][dim][:, slice(start, end, step)]
    t.size(part)
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
    """Indices that padding adds are inert; only constant padding reaches a labelled dimension."""
    dims = list(t[x])
    for back in range(len(padding) // 2):
        before, after = padding[2 * back], padding[2 * back + 1]
        dim = dims[-1 - back]
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


@rule("roll")
def roll(t: Trace, out: Tensor, x: Tensor, shifts: Sequence[int], dims: Sequence[int] = ()) -> Dims:
    for d in dims if dims else range(x.dim()):
        t.freeze(t[x][d], "rolled")
    return t[x]


def replaced(dims: Dims, at: int, dim: np.ndarray) -> Dims:
    at %= len(dims)
    return (*dims[:at], dim, *dims[at + 1 :])
