"""Rules of flows: where the dimensions of a parameter lie in what its operator reads and makes.

A rule is `rule(*args, **kwargs) -> Use | None`, with the operator's own arguments, registered by its name; None where it does not apply.
The operator of an exported graph has the name of the function that it comes from: torch.ops.aten.linear.default is a "linear".
What has no rule is measured by one backward pass a sample: a rule makes that faster and changes no result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

Axes = Mapping[int, int]  # dimension of the parameter -> axis of the activation


@dataclass(frozen=True)
class Use:
    """One call y = w x + b, linear in the weight and in the bias. Either may be computed instead of a parameter, or not be there.

    x, reads: what the weight is multiplied with, and the one dimension of the weight that runs along an axis of it. A weight that does not
        read (of a norm, or of a product element by element) has none.
    makes, shifts: the dimensions of the weight and of the bias that run along an axis of y.
    An axis that is longer than the weight's dimension holds several runs of it, one behind the other (a convolution in groups).
    sign: -1 where y is proportional to 1 / w.
    live: 0 where no gradient reaches the weight, as autograd has it.
    """

    weight: Tensor | None = None
    bias: Tensor | None = None
    x: Tensor | None = None
    reads: Axes = field(default_factory=dict)
    makes: Axes = field(default_factory=dict)
    shifts: Axes = field(default_factory=lambda: {0: -1})
    sign: int = 1
    live: Tensor | None = None


Rule = Callable[..., "Use | None"]
FLOWS: dict[str, Rule] = {}


def operator_of(func: Callable[..., object]) -> str:
    """The name that its rule has; "" for an operator of someone else's, whatever it is called."""
    if isinstance(func, torch._ops.OpOverload):
        return func.overloadpacket.__name__ if func.namespace == "aten" else ""
    return func.__name__


def flow(*operators: str) -> Callable[[Rule], Rule]:
    """Register the decorated function as the rule of the built-in functions and tensor methods of these names."""

    def register(rule: Rule) -> Rule:
        FLOWS.update(dict.fromkeys(operators, rule))
        return rule

    return register


@flow("linear")
def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Use:
    return Use(weight, bias, input, {1: -1}, {0: -1})


@flow("conv1d", "conv2d", "conv3d")
def convolution(input: Tensor, weight: Tensor, bias: Tensor | None = None, *args: object, **kwargs: object) -> Use:
    """x (n, groups * i, ...), w (groups * o, i, ...)."""
    axis = 1 - weight.dim()
    return Use(weight, bias, input, {1: axis}, {0: axis}, {0: axis})


@flow("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def transposed(input: Tensor, weight: Tensor, bias: Tensor | None = None, *args: object, **kwargs: object) -> Use:
    """x (n, groups * i, ...), w (groups * i, o, ...)."""
    axis = 1 - weight.dim()
    return Use(weight, bias, input, {0: axis}, {1: axis}, {0: axis})


@flow("mm", "matmul", "__matmul__", "bmm")
def product(input: Tensor, other: Tensor, *args: object) -> Use | None:
    """x (..., k) times w (k, m), or w (m, k) times x (k, n)."""
    return times(input, other)


@flow("__rmatmul__")
def product_from_the_right(input: Tensor, other: Tensor) -> Use | None:
    return times(other, input)


def times(a: Tensor, b: Tensor) -> Use | None:
    if a.dim() < 2 or b.dim() < 2:
        return None
    if not a.requires_grad or not a.is_leaf:
        return Use(b, None, a, {b.dim() - 2: -1}, {b.dim() - 1: -1}) if b.dim() == 2 else None
    return Use(a, None, b, {a.dim() - 1: -2}, {a.dim() - 2: -2}) if a.dim() == 2 else None


@flow("addmm")
def added_product(input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: float = 1, alpha: float = 1) -> Use | None:
    """b + x w, with w (k, m)."""
    return Use(mat2, input, mat1, {0: -1}, {1: -1}, aligned(input)) if beta == 1 else None


@flow("batch_norm", "instance_norm")
def batch_norm(input: Tensor, weight: Tensor | None, bias: Tensor | None, *args: object) -> Use:
    axis = 1 - input.dim()
    return Use(weight, bias, makes={0: axis}, shifts={0: axis})


@flow("group_norm")
def group_norm(
    input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, *args: object, **kwargs: object
) -> Use:  # fmt: skip
    axis = 1 - input.dim()
    return Use(weight, bias, makes={0: axis}, shifts={0: axis})


@flow("layer_norm")
def layer_norm(
    input: Tensor, shape: Sequence[int], weight: Tensor | None = None, bias: Tensor | None = None, *args: object, **kwargs: object
) -> Use:  # fmt: skip
    axes = {d: d - len(shape) for d in range(len(shape))}
    return Use(weight, bias, makes=axes, shifts=axes)


@flow("rms_norm")
def rms_norm(input: Tensor, shape: Sequence[int], weight: Tensor | None = None, *args: object, **kwargs: object) -> Use:
    return Use(weight, makes={d: d - len(shape) for d in range(len(shape))})


@flow("embedding")
def embedding(weight: Tensor, indices: Tensor, padding_idx: int = -1, scale_grad_by_freq: bool = False, sparse: bool = False) -> Use | None:
    """The rows that are looked up. Along them, the columns; which row it is depends on the index."""
    live = (indices != padding_idx).unsqueeze(-1) if padding_idx >= 0 else None
    return None if scale_grad_by_freq else Use(weight, makes={1: -1}, live=live)


@flow("mul", "__mul__", "__rmul__", "multiply")
def multiplied(input: Tensor, other: object) -> Use | None:
    return element_by_element(input, other)


@flow("div", "__truediv__", "true_divide", "divide")
def divided(input: Tensor, other: object, *, rounding_mode: str | None = None) -> Use | None:
    if rounding_mode is not None:
        return None
    if isinstance(other, Tensor) and is_parameter(other) and not is_parameter(input):
        return Use(other, makes=aligned(other), sign=-1)
    return Use(input, makes=aligned(input)) if is_parameter(input) and not (isinstance(other, Tensor) and is_parameter(other)) else None


@flow("add", "__add__", "__radd__")
def shifted(input: Tensor, other: object, *, alpha: float = 1) -> Use | None:
    found = element_by_element(input, other) if alpha == 1 else None
    return found and Use(bias=found.weight, shifts=found.makes)


def element_by_element(input: Tensor, other: object) -> Use | None:
    """One of the two is a parameter; if both are, what they make depends on no sample."""
    mine = [value for value in (input, other) if isinstance(value, Tensor) and is_parameter(value)]
    return Use(mine[0], makes=aligned(mine[0])) if len(mine) == 1 else None


def is_parameter(value: Tensor) -> bool:
    return value.requires_grad and value.is_leaf


def aligned(value: Tensor) -> Axes:
    """Dimensions line up from the right. One of size one is summed over, whatever it meets."""
    return {d: d - value.dim() for d in range(value.dim())}
