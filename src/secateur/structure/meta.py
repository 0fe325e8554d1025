"""Shapes of the most frequent operators, told at once: on the `meta` device PyTorch computes them in Python, up to a millisecond each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .rules import name_of

ALIKE = {  # element by element, and of the type of the first operand
    "relu", "gelu", "silu", "sigmoid", "tanh", "hardswish", "hardsigmoid", "hardtanh", "leaky_relu", "elu", "softplus", "mish", "clamp",
    "add", "sub", "mul", "div", "neg", "exp", "sqrt", "rsqrt", "pow", "sin", "cos", "dropout",
    "threshold_backward", "gelu_backward", "silu_backward", "sigmoid_backward", "tanh_backward", "hardswish_backward",
    "hardsigmoid_backward", "hardtanh_backward", "leaky_relu_backward", "elu_backward",
}  # fmt: skip
CAT = torch.ops.aten.cat.default


def quick(func: Any, args: tuple[Any, ...]) -> Any:
    """What the operator makes, if that is plain to see; else None."""
    if not args:
        return None
    x = args[0]
    if not isinstance(x, Tensor):
        return cat(*args) if func is CAT else None
    if not x.is_meta:
        return None
    name = name_of(func).removeprefix("aten::")
    if name[:-1] in ALIKE and name[-1] == "_":
        return x if widest(args) is x else None
    if name in ALIKE and "out" not in func._overloadname:
        y = widest(args)
        return None if y is None else like(y)
    known = KNOWN.get(name)
    return None if known is None else known(*args)


def widest(args: tuple[Any, ...]) -> Tensor | None:
    """The first operand to which all others broadcast, if they are of its type, or numbers."""
    tensors = [y for y in args if isinstance(y, Tensor)]
    x = tensors[0] if len(tensors) == 1 else max(tensors, key=lambda y: (y.dim(), y.numel()))
    if not x.is_floating_point() or any(isinstance(y, complex) for y in args):
        return None
    if any(y.dtype != x.dtype or not y.is_meta or not (y is x or fits(y, x)) for y in tensors):
        return None
    return x if x is args[0] or all(y.is_contiguous() for y in tensors) else None  # the first decides on the order of memory


def fits(y: Tensor, x: Tensor) -> bool:
    """Whether y broadcasts to x and leaves x's order of memory."""
    if y.shape == x.shape:
        return y.stride() == x.stride()
    return y.dim() <= x.dim() and all(a in (1, b) for a, b in zip(reversed(y.shape), reversed(x.shape)))


def like(x: Tensor) -> Tensor | None:
    """Strides and all; only for dense memory."""
    size = 1
    for stride, n in sorted(zip(x.stride(), x.shape)):
        if n != 1 and stride != size:
            return None
        size *= n
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")


def empty(x: Tensor, shape: Sequence[int]) -> Tensor:
    return torch.empty(shape, dtype=x.dtype, device="meta")


def batch_norm(x: Tensor, w: object, b: object, mean: object, var: object, training: object = False, *_: object) -> Any:
    if any(isinstance(value, Tensor) and value.shape != x.shape[1:2] for value in (w, b, mean, var)):
        return None
    if training is True or mean is None or x.numel() == 0 or (y := like(x)) is None:
        return None
    return y, empty(x, (0,)), empty(x, (0,))


def batch_norm_backward(g: Tensor, x: Tensor, w: Tensor | None, *args: Any) -> Any:
    y = like(x)
    return None if y is None else (y, empty(x, x.shape[1:2]), empty(x, x.shape[1:2]))


def convolution(
    x: Tensor, w: Tensor, b: Tensor | None, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], transposed: bool,
    output_padding: Sequence[int], groups: int,
) -> Any:  # fmt: skip
    """Only the plain case: sizes that fit, and memory in the usual order."""
    if transposed or x.dim() != w.dim() or not x.is_contiguous() or not w.is_contiguous() or x.shape[1] != w.shape[1] * groups:
        return None
    if w.shape[0] % groups or (b is not None and b.shape != w.shape[:1]) or 0 in x.shape or x.dtype != w.dtype:
        return None
    n = x.dim() - 2
    steps = [list(value) * (n if len(value) == 1 else 1) for value in (stride, padding, dilation)]
    sizes = [(a + 2 * p - d * (k - 1) - 1) // s + 1 for a, k, s, p, d in zip(x.shape[2:], w.shape[2:], *steps)]
    return empty(x, (x.shape[0], w.shape[0], *sizes)) if min(sizes, default=1) > 0 else None


def layer_norm(x: Tensor, shape: Sequence[int], w: Tensor | None, b: Tensor | None, *_: object) -> Any:
    fitting = all(tuple(value.shape) == tuple(shape) for value in (w, b) if value is not None)
    if not x.is_contiguous() or tuple(x.shape[-len(shape) :]) != tuple(shape) or not fitting:
        return None
    kept = (*x.shape[: -len(shape)], *(1 for _ in shape))
    return empty(x, x.shape), empty(x, kept), empty(x, kept)


def layer_norm_backward(g: Tensor, x: Tensor, shape: Sequence[int], *_: object) -> Any:
    return empty(x, x.shape), empty(x, shape), empty(x, shape)


def linear(x: Tensor, w: Tensor, b: Tensor | None = None) -> Any:
    if any(value.dtype != x.dtype for value in (w, b) if value is not None):
        return None
    if recorded(x, w) or w.dim() != 2 or x.shape[-1:] != w.shape[1:] or (b is not None and b.shape != w.shape[:1]) or x.dtype != w.dtype:
        return None
    return empty(x, (*x.shape[:-1], w.shape[0]))


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *_: object) -> Any:
    """The output is (..., l, f), with l and f next to each other in memory, as the plain kernel makes it."""
    same = q.shape[:-2] == k.shape[:-2] == v.shape[:-2] and q.shape[-1] == k.shape[-1] and k.shape[-2] == v.shape[-2]
    if recorded(q, k, v) or not same or mask is not None or not q.dtype == k.dtype == v.dtype:
        return None
    return empty(q, (*q.shape[:-1], v.shape[-1]))


def mean(x: Tensor, dims: Sequence[int] | None = None, keepdim: bool = False) -> Tensor | None:
    n = x.dim()
    gone = {d % n for d in dims} if dims and n and all(-n <= d < n for d in dims) else set()
    if not gone or len(gone) != len(dims or ()) or not x.is_contiguous() or not x.is_floating_point():
        return None
    return empty(x, [1 if d in gone else size for d, size in enumerate(x.shape) if keepdim or d not in gone])


def mm(a: Tensor, b: Tensor) -> Tensor | None:
    """(..., n, k) times (..., k, m): one matrix each, or as many on both sides."""
    fitting = a.shape[:-2] == b.shape[:-2] and a.shape[-1] == b.shape[-2] and a.dtype == b.dtype and a.is_floating_point() and b.is_meta
    return empty(a, (*a.shape[:-1], b.shape[-1])) if fitting else None


def addmm(bias: Tensor, a: Tensor, b: Tensor) -> Tensor | None:
    fitting = bias.dim() == 1 and bias.shape == b.shape[-1:] and bias.dtype == a.dtype and bias.shape[0] > 1
    return mm(a, b) if fitting else None


def cat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor | None:
    """Of contiguous tensors of one type."""
    x = tensors[0]
    if not x.dim() or not -x.dim() <= dim < x.dim() or not all(y.is_meta and y.is_contiguous() for y in tensors):
        return None
    dim %= x.dim()
    shapes = [(*y.shape[:dim], *y.shape[dim + 1 :]) for y in tensors]
    if any(y.dim() != x.dim() or y.dtype != x.dtype for y in tensors) or any(shape != shapes[0] for shape in shapes):
        return None
    return empty(x, (*x.shape[:dim], sum(y.shape[dim] for y in tensors), *x.shape[dim + 1 :]))


def recorded(*tensors: Tensor) -> bool:
    """Whether autograd watches: a call of several operators must then really run."""
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)


KNOWN: dict[str, Callable[..., Any]] = {
    "convolution": convolution,
    "linear": linear,
    "scaled_dot_product_attention": attention,
    "native_batch_norm": batch_norm,
    "_native_batch_norm_legit_no_training": batch_norm,
    "native_batch_norm_backward": batch_norm_backward,
    "native_layer_norm": layer_norm,
    "mean": mean,
    "mm": mm,
    "bmm": mm,
    "addmm": addmm,
    "native_layer_norm_backward": layer_norm_backward,
}


class Quick(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """For a backward pass on `meta`."""

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, object] | None = None
    ) -> object:
        made = quick(func, args) if not kwargs else None
        return func(*args, **(kwargs or {})) if made is None else made
