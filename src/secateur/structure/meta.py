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


def quick(func: Any, args: tuple[Any, ...]) -> Any:
    """What the operator makes, if that is plain to see; else None."""
    if not args or not isinstance(args[0], Tensor) or not args[0].is_meta:
        return None
    name = name_of(func).removeprefix("aten::")
    if name[:-1] in ALIKE and name[-1] == "_":
        return args[0] if alike(args) is not None and not args[0].requires_grad else None
    if name in ALIKE and "out" not in func._overloadname:
        return alike(args)
    known = KNOWN.get(name)
    return None if known is None else known(*args)


def alike(args: tuple[Any, ...]) -> Tensor | None:
    """A tensor like the first operand, if the others are numbers, or tensors of its type that broadcast to it."""
    x = args[0]
    if not x.is_floating_point():
        return None
    for y in args[1:]:
        if isinstance(y, Tensor):
            if y.dtype != x.dtype or not y.is_meta or not fits(y, x):
                return None
        elif isinstance(y, complex):
            return None
    return like(x)


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
    "native_layer_norm_backward": layer_norm_backward,
}


class Quick(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """For a backward pass on `meta`."""

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, object] | None = None
    ) -> object:
        made = quick(func, args) if not kwargs else None
        return func(*args, **(kwargs or {})) if made is None else made
