"""Operator rules: what an operator does to the labels of the dimensions that it reads and makes.

A rule is `rule(t, out, *args, **kwargs) -> labels of out`: `t[x]` are the labels of tensor x (one `Dim` a dimension), `t.unite(a, b)`,
`t.freeze(dim, why)` and `t.split(dim, n, m)` change them. `out` is what the operator returned; for a tuple of tensors a tuple is returned.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from .labels import Dim, inert, merge

if TYPE_CHECKING:
    from .trace import Trace

Dims: TypeAlias = "tuple[Dim, ...]"
Rule = Callable[..., Any]

RULES: dict[str, Rule] = {}
OPAQUE: dict[str, type] = {}  # classes of modules and autograd functions that are one step, by their names


def name_of(op: object) -> str:
    """ "aten::add" for torch.ops.aten.add, torch.ops.aten.add.Tensor and "aten::add"."""
    if isinstance(op, torch._ops.OpOverload):
        return op._overloadpacket._qualified_op_name
    if isinstance(op, type):
        return f"{op.__module__}::{op.__qualname__}"
    if isinstance(op, torch._ops.OpOverloadPacket):
        return op._qualified_op_name
    return str(op) if "::" in str(op) else f"aten::{op}"


def rule(*ops: object) -> Callable[[Rule], Rule]:
    """Register the decorated function as the rule of these operators.

    ops: torch.ops objects, names like "aten::add" or "mine::op", a class of modules (its rule is given the module, then its arguments) or a
    subclass of torch.autograd.Function. What runs inside a class that has a rule is not looked at.
    """

    def register(function: Rule) -> Rule:
        for op in ops:
            RULES[name_of(op)] = function
            if isinstance(op, type):
                OPAQUE[name_of(op)] = op
        return function

    return register


def pointwise(t: Trace, out: Any, *args: object, **kwargs: object) -> object:
    """Every operator that PyTorch tags pointwise: operands line up from the right, and equal indices leave together."""
    operands = [value for value in flat((args, kwargs)) if isinstance(value, Tensor)]
    if isinstance(out, Tensor):
        return broadcast(t, out, operands)
    dims = broadcast(t, out[0], operands)
    return tuple(dims if part.shape == out[0].shape else tuple(inert(size) for size in part.shape) for part in out)


for untagged in (
    "hardswish",
    "log_sigmoid_forward",
    "rrelu_with_noise",
    "fill",
    "zero",
    "masked_fill",
    "bernoulli",
    "native_dropout",
    "normal",
    "uniform",
    "complex",
    "polar",
):
    RULES[f"aten::{untagged}"] = RULES[f"aten::{untagged}_"] = pointwise  # as element-wise as the tagged ones


def broadcast(t: Trace, out: Tensor, operands: Sequence[Tensor]) -> Dims:
    dims = []
    for back in range(out.dim(), 0, -1):
        size = out.shape[-back]
        here = [t[x][-back] for x in operands if x.dim() >= back and x.shape[-back] == size]
        if here:
            for other in here[1:]:
                t.unite(here[0], other)
        dims.append(here[0] if here else inert(size))
    return tuple(dims)


def outer(t: Trace, a: Dims, b: Dims) -> Dims:
    """Two runs of dimensions broadcast against each other."""
    n = max(len(a), len(b))
    dims = []
    for x, y in zip((inert(1),) * (n - len(a)) + a, (inert(1),) * (n - len(b)) + b):
        if x.shape[1] == y.shape[1]:
            t.unite(x, y)
        dims.append(y if x.shape[1] == 1 else x)
    return tuple(dims)


def reshape(t: Trace, dims: Dims, sizes: Sequence[int]) -> Dims:
    """Labels under a change of shape: the smallest runs of dimensions with equal products are merged, then split again."""
    source, result = list(dims), []
    wanted = [int(size) for size in sizes]
    while source or wanted:
        if not source or not wanted:  # what is left over are ones
            result += [inert(1) for _ in wanted]
            break
        have = source.pop(0)
        want = wanted.pop(0)
        if want == 1 and have.shape[1] != 1:
            source.insert(0, have)
            result.append(inert(1))
        elif have.shape[1] == 1 and want != 1:
            wanted.insert(0, want)
        elif have.shape[1] == want:
            result.append(have)
        elif have.shape[1] > want and have.shape[1] % want == 0:
            outer, inner = t.split(have, want, have.shape[1] // want)
            result.append(outer)
            source.insert(0, inner)
        elif source:
            source.insert(0, merge(have, source.pop(0)))
            wanted.insert(0, want)
        else:
            raise ValueError(f"cannot view {[dim.shape[1] for dim in dims]} as {list(sizes)}")
    return tuple(result)


LEAVES = frozenset({Tensor, torch.nn.Parameter, int, float, bool, str, type(None), torch.dtype, torch.device})


def flat(value: object) -> list[object]:
    """The leaves of nested tuples, lists, dicts, dataclasses and other plain objects."""
    found: list[object] = []
    gather(value, found)
    return found


def gather(value: object, found: list[object]) -> None:
    kind = type(value)
    if kind in LEAVES:
        found.append(value)
    elif isinstance(value, (tuple, list)):
        for item in value:
            gather(item, found)
    elif isinstance(value, dict):
        for item in value.values():
            gather(item, found)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            gather(getattr(value, field.name), found)
    elif hasattr(value, "__dict__") and not isinstance(value, (Tensor, torch.nn.Module, type)) and not callable(value):
        for item in vars(value).values():
            gather(item, found)
    else:
        found.append(value)
