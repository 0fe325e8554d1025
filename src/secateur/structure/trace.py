"""One run of a model in which every index of every tensor carries a label; operators' rules unite the labels that must leave together."""

from __future__ import annotations

import functools
import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ..errors import BadInput
from ..task import call, each
from . import rules_layers, rules_reduce, rules_shape
from .axes import Axes, turned
from .calls import Whole
from .graph import Graph
from .labels import CHANNEL, Dim, Labels, inert, merge
from .meta import quick
from .rules import RULES, Dims, flat, name_of, pointwise
from .rules_layers import sizes_by_letter
from .sizes import Attribute, Origin, Remembered, origins_of

assert rules_layers and rules_reduce and rules_shape  # importing them registers their rules

PICKS = {
    f"aten::{op}"
    for op in ("index", "index_select", "gather", "scatter", "scatter_", "embedding", "scatter_add_", "scatter_add", "eq")
}  # fmt: skip
MOVES = {
    f"aten::{op}"
    for op in (
        "view", "_unsafe_view", "reshape", "expand", "transpose", "permute", "t", "squeeze", "unsqueeze", "slice", "select", "clone",
        "detach", "alias", "_to_copy", "split", "unbind", "contiguous",
    )
}  # fmt: skip
HERE = os.path.dirname(os.path.abspath(__file__))
TORCH = os.path.dirname(os.path.abspath(torch.__file__))
RUNS_A_MODULE = nn.Module._call_impl.__code__
SILENT = {"aten::detach", "aten::alias", "aten::clone"}  # no steps: whether they run depends on who is watching, or on strides


@dataclass(frozen=True)
class Step:
    """One operator of the run: its name, the user's line, the labels of what it read and of what it made."""

    op: str
    place: str
    read: tuple[Dim, ...]
    made: tuple[Dims, ...]
    attributes: tuple[Attribute, ...]
    types: tuple[torch.dtype, ...]
    strides: tuple[tuple[int, ...], ...]
    numbers: tuple[float, ...]  # what the operator calculates with

    @property
    def name(self) -> str:
        return f"{self.op.removeprefix('aten::')} at {self.place}"


@dataclass(frozen=True)
class Made:
    """Stands for a tensor in the result of a call."""

    dims: Dims
    dtype: torch.dtype
    strides: tuple[int, ...]
    device: torch.device


@dataclass
class Span:
    """The call of a module: its steps, the number of the call after those inside it, what it gave back (None: not told)."""

    path: str
    start: int
    end: int = 0
    then: int = 0
    out: object = None


@dataclass
class Trace(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The labels of all tensors of a run. Rules call `t[x]`, `t.unite`, `t.freeze`, `t.approximates`, `t.split`, `t.size`, `t.made`."""

    labels: Labels = field(default_factory=Labels)

    def __post_init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dims: dict[int, Dims] = {}
        self.alive: list[Tensor] = []  # a tensor that died would give its id to another
        self.steps: list[Step] = []
        self.spans: list[Span] = []
        self.tensors: dict[str, Dims] = {}  # of every parameter and buffer
        self.names: dict[int, str] = {}  # the parameters
        self.active: set[int] = set()  # the inputs and what was computed from them
        self.originals: dict[int, str] = {}  # the parameters of the model that this is a copy of
        self.divided: set[tuple[str, int]] = set()  # (parameter, dimension) divided by its own norm: zeroing it would give 0 / 0
        self.origin: dict[int, str] = {}  # tensor -> the parameter whose elements it holds
        self.macs: dict[str, float] = {}  # parameter -> multiply-accumulates per element
        self.axes: dict[str, Axes] = {}  # parameter whose inputs come first
        self.used: set[int] = set()
        self.idle = False  # whether a parameter has no part in the run: it may have one in training
        self.notes: list[str] = []
        self.values_read: list[str] = []  # places where the run looked at a value, and may have branched on it
        self.attributes: dict[Attribute, Dim] = {}
        self.own: dict[Attribute, Dim | None] = {}  # attributes of PyTorch's own layers: the dimension of their weight that they describe
        self.origins: list[Origin] = []
        self.modules: dict[int, str] = {}  # module -> its path
        self.points: dict[int, Dim] = {}  # tensor -> the dimension that its values are positions in
        self.op = ""
        self.called = ""  # the function of the user's call
        self.within = False  # a call that is one step

    # what rules see ---------------------------------------------------------------------------------------------------------------------

    def __getitem__(self, x: Tensor) -> Dims:
        return self.dims.get(id(x)) or tuple(inert(size) for size in x.shape)

    def unite(self, a: Dim, b: Dim) -> None:
        self.labels.unite(a, b)

    def freeze(self, dim: Dim, why: str) -> None:
        self.labels.freeze(dim, why)

    def approximates(self, dim: Dim, why: str) -> None:
        self.labels.approximates(dim, why)

    def comes_in(self, dim: Dim, multiple: int) -> None:
        """The operator takes multiples only."""
        self.labels.comes_in(dim, multiple)

    def divided_by_norm(self, x: Tensor, d: int) -> None:
        """Along dimension d, x is divided by a norm of its own: the mask leaves it alone, and zeroes what leaves with it."""
        if id(x) in self.names:
            self.divided.add((self.names[id(x)], d))

    def point(self, x: Tensor, dim: Dim) -> None:
        """The values of x are positions in this dimension: what they pick from must lose the same indices."""
        if dim.any():
            self.points[id(x)] = dim

    def picked(self, dim: Dim, index: Tensor | None, why: str = "picked from by number") -> None:
        """Indices of this dimension are picked by the values of `index`."""
        points = self.points.get(id(index))
        if points is not None and points.shape == dim.shape:
            self.unite(points, dim)
        else:
            self.freeze(dim, why)

    def split(self, dim: Dim, n: int, m: int) -> tuple[Dim, Dim]:
        return self.labels.split(dim, n, m)

    def size(self, dim: Dim, value: int | None = None, at: int | None = None) -> None:
        """The size of this dimension was an argument of the call at work: an attribute with that value must follow the dimension.

        at: which of the call's integers it was, where that is known.
        """
        if not dim.any():
            return
        origin = self.origin_of(dim.shape[1] if value is None else value, at)
        if origin is not None:
            origin.spent = True
            self.follow(origin.value, dim)

    def origin_of(self, value: int, at: int | None = None) -> Origin | None:
        fitting = [origin for origin in self.origins if origin.value == value and at in (None, origin.position)]
        return next((o for o in fitting if not o.spent), fitting[-1] if fitting else None)

    def follow(self, size: Remembered, dim: Dim) -> None:
        """The attribute that `size` is, or one of those that it is made of, must follow the dimension."""
        if size.attribute is not None:
            own = self.own.get(size.attribute, dim)
            if own is None:
                self.freeze(dim, "its size is an attribute that means another one:")
            else:
                self.unite(self.attributes.setdefault(size.attribute, own), dim)
        elif size.made is not None:
            how, a, b = size.made
            if how == "//" and isinstance(a, Remembered):
                outer = self.attributes.get(b.attribute) if isinstance(b, Remembered) and b.attribute else inert(b)
                if outer is not None:
                    self.follow(a, merge(outer, dim))
            for x, other in ((a, b), (b, a)) if how == "*" else ():
                if isinstance(x, Remembered) and (part := self.factor(dim, x, other)) is not None:
                    self.follow(x, part)

    def factor(self, dim: Dim, n: int, times: int) -> Dim | None:
        """The n indices of which the dimension is so many repetitions, one after the other or each in turn; None where it is none."""
        rows = self.labels.resolve(dim)
        if (rows.reshape(-1, times, n) == rows.reshape(-1, times, n)[:, :1]).all():
            return rows[:, :n]
        if (rows.reshape(-1, n, times) == rows.reshape(-1, n, times)[:, :, :1]).all():
            return rows[:, ::times]
        return None

    def made(self, size: int, at: int | None, kind: int = CHANNEL) -> Dim:
        """A dimension that is new: its labels are its own, and the attribute that sets its size, if there is one, must follow."""
        if size < 2:
            return inert(size)
        dim = self.labels.fresh(size, kind)
        self.size(dim, at=at)
        return dim

    def key(self, value: int, at: int) -> object:
        """What sets this size: equal for sizes that are always equal; the number itself where it is no attribute's."""
        origin = self.origin_of(value, at)
        return value if origin is None else origin.value.key()

    # the run ----------------------------------------------------------------------------------------------------------------------------

    def put(self, x: Tensor, dims: Dims) -> None:
        if tuple(dim.shape[1] for dim in dims) != tuple(x.shape):
            raise ValueError(f"labels {[d.shape[1] for d in dims]} for a tensor {tuple(x.shape)}")
        self.dims[id(x)] = dims
        self.alive.append(x)

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[object, ...] = (), kwargs: dict[str, object] | None = None
    ) -> object:
        kwargs = kwargs or {}
        out = run(func, args, kwargs)
        if not self.within:
            self.step(func, args, kwargs, out)
        return out

    def whole(self, func: Any, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        """Run a call as one step, whatever operators it is made of."""
        if self.within:
            return func(*args, **kwargs)
        self.within = True
        try:
            out = func(*args, **kwargs)
        finally:
            self.within = False
        self.step(func, args, kwargs, out)
        return out

    def step(self, func: Any, args: tuple[object, ...], kwargs: dict[str, object], out: object) -> None:
        self.op = name_of(func)
        inputs = [value for value in flat((args, kwargs)) if isinstance(value, Tensor)]
        if args and isinstance(args[0], nn.Module):
            inputs += [*args[0].parameters(), *args[0].buffers()]
        outputs = [value for value in flat(out) if isinstance(value, Tensor)]
        self.used.update(map(id, inputs))
        place = self.place()
        if any(id(x) in self.active for x in inputs):
            self.active.update(map(id, outputs))
        for x in inputs:
            if id(x) in self.originals:
                raise BadInput(
                    f"At {place} a function that the model keeps (a wrapped forward, a lambda, a hook) computes with "
                    f"{self.originals[id(x)]} of the model itself, also in a copy. Make it a method, or hand it the module that it uses."
                )
        self.labels.step, self.labels.place = len(self.steps), f"by {self.op.removeprefix('aten::')} at {place}"
        read = tuple(dim for x in inputs for dim in self[x])
        if self.op == "aten::_local_scalar_dense":
            self.values_read.append(place)
        rule, problem = rule_of(func), ""
        if rule is None:
            problem = "no rule for this operator:"
        else:
            try:
                for x, dims in zip(outputs, made_by(rule(self, out, *args, **kwargs), out)):
                    self.put(x, dims)
            except Exception as error:  # whoever wrote the rule: what it cannot do is frozen, like what has none
                problem = f"the operator's rule does not fit this call ({error}):"
        if problem and outputs:
            for dim in read:
                self.labels.freeze(dim, problem)
            for x in outputs:
                self.put(x, tuple(inert(size) for size in x.shape))
        self.carry(inputs, outputs)
        sources = {self.origin[id(x)]: x for x in inputs if id(x) in self.origin}
        if self.op == "aten::convolution":
            self.count((inputs[0] if args[6] else outputs[0]).numel() * inputs[1][0].numel(), sources)
        elif self.op in ("aten::linear", "aten::matmul"):
            self.count(outputs[0].numel() * inputs[0].shape[-1], sources)
        elif self.op == "aten::einsum":
            self.count(math.prod(sizes_by_letter(args[0], inputs).values()), sources)  # type: ignore[arg-type]
        elif getattr(func, "overloadpacket", None) in flop_registry:
            self.count(flop_registry[func.overloadpacket](*args, **kwargs, out_val=out) / 2, sources)
        else:
            self.descend(sources, outputs)
        self.turn(args, inputs)
        attributes = tuple(origin.value.attribute for origin in self.origins if origin.value.attribute)
        if self.op not in SILENT:
            types, strides = tuple(x.dtype for x in outputs), tuple(x.stride() for x in outputs)
            made, numbers = tuple(self[x] for x in outputs), numbers_in(rule, args, kwargs)
            self.steps.append(Step(self.op, place, read, made, attributes, types, strides, numbers))

    def span(self, path: str, forward: Callable[..., object]) -> Callable[..., object]:
        """`forward`, its calls noted."""

        def run(*args: object, **kwargs: object) -> object:
            span = Span(path, len(self.steps))
            self.spans.append(span)
            out = forward(*args, **kwargs)
            span.end, span.then = len(self.steps), len(self.spans)
            if plain(out):
                span.out = each(self.stand_in, out)
            return out

        return run

    def stand_in(self, leaf: object) -> object:
        return Made(self[leaf], leaf.dtype, leaf.stride(), leaf.device) if isinstance(leaf, Tensor) else leaf

    def carry(self, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        """Positions that are only moved about stay positions; where anything else is done with them, none may change."""
        points = [self.points[id(x)] for x in inputs if id(x) in self.points]
        if not points or self.op in PICKS:
            return
        if self.op in MOVES:
            for x in outputs:
                self.points[id(x)] = points[0]
        else:
            for dim in points:
                self.freeze(dim, "positions in it are asked for")

    def count(self, macs: float, sources: dict[str, Tensor]) -> None:
        """Attribute an operator's multiply-accumulates to the parameter that it multiplies by, in equal parts to its elements."""
        weights = {name: x for name, x in sources.items() if x.dim() >= 2}
        if len(weights) == 1:
            ((name, x),) = weights.items()
            self.macs[name] = self.macs.get(name, 0.0) + macs / x.numel()

    def turn(self, args: tuple[object, ...], inputs: list[Tensor]) -> None:
        """Note the parameter that is read along its first dimension: of a transposed convolution, and the matrix in x @ w."""
        if self.op == "aten::convolution" and args[6]:
            weight, axes = inputs[1], turned(int(args[8]))  # type: ignore[call-overload]
        elif self.op in ("aten::matmul", "aten::mm", "aten::addmm") and inputs[-1].dim() == 2 and id(inputs[-1]) in self.names:
            weight, axes = inputs[-1], turned()  # the parameter itself, where a linear layer by hand takes w.T
        else:
            return
        if id(weight) in self.origin:
            self.axes[self.origin[id(weight)]] = axes

    def descend(self, sources: dict[str, Tensor], outputs: list[Tensor]) -> None:
        """A tensor with as many elements as the one parameter it was computed from holds that parameter's elements."""
        for y in outputs:
            whole = [name for name, x in sources.items() if x.numel() == y.numel()]
            if len(whole) == 1:
                self.origin.setdefault(id(y), whole[0])

    def place(self) -> str:
        """The user's line (the nearest frame outside PyTorch and this package) and the module at work (the innermost that has a name)."""
        line = module = ""
        frame: FrameType | None = sys._getframe(2)
        while frame is not None and frame.f_code is not call.__code__ and not (line and module):
            code = frame.f_code
            if code is RUNS_A_MODULE:
                module = module or self.modules.get(id(frame.f_locals["self"]), "")
            elif code is Graph.forward.__code__:
                return frame.f_locals["node"].place
            elif not line and not code.co_filename.startswith((TORCH, HERE, "<frozen")):
                line = f"{os.path.basename(code.co_filename)}:{frame.f_lineno}"
            frame = frame.f_back
        return (f"{line} ({module})" if module else line) if line else module or "the model itself"


def plain(value: object) -> bool:
    """Tensors in tuples, lists and dicts."""
    if type(value) in (tuple, list):
        return all(map(plain, value))  # type: ignore[call-overload]
    return all(map(plain, value.values())) if type(value) is dict else value is None or isinstance(value, Tensor)


def run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The operator's result; without running it where that has no values."""
    made = quick(func, args) if not kwargs else None
    return func(*args, **kwargs) if made is None else made


def numbers_in(rule: Callable[..., Any] | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[float, ...]:
    """The numbers that an operator calculates with: those of a pointwise one, of others those that are not whole: no sizes."""
    kinds = (int, float) if rule is pointwise else float
    return tuple(float(leaf) for leaf in flat((args, kwargs)) if isinstance(leaf, kinds) and not isinstance(leaf, bool))


def made_by(result: Any, out: object) -> list[Dims]:
    """A rule's result, one entry for each tensor of the operator's output."""
    return [result] if isinstance(out, Tensor) else [dims for dims, x in zip(result, flat(out)) if isinstance(x, Tensor)]


def rule_of(func: Any) -> Callable[..., Any] | None:
    """The operator's own rule, that of its out-of-place form, or the pointwise one."""
    name = name_of(func)
    if name in RULES:
        return RULES[name]
    if name.endswith("_") and name[:-1] in RULES and hasattr(getattr(torch.ops, name.partition("::")[0]), name.partition("::")[2][:-1]):
        return RULES[name[:-1]]
    return pointwise if is_pointwise(func) else None


@functools.cache
def is_pointwise(func: Any) -> bool:
    """Whether PyTorch tags the operator, or its out-of-place form, so."""
    namespace, _, base = name_of(func).partition("::")
    packet = getattr(getattr(torch.ops, namespace), base[:-1], None) if base.endswith("_") else None
    forms = [func] if packet is None else [func, *(getattr(packet, overload) for overload in packet.overloads())]
    return any(torch.Tag.pointwise in form.tags for form in forms)


class SizesSeen(Whole):
    """Notes which of a call's integers are attributes of modules, for the operators that the call runs."""

    def __init__(self, trace: Trace) -> None:
        super().__init__(trace.whole)
        self.trace = trace

    def __torch_function__(
        self, func: Callable[..., object], types: object, args: tuple[object, ...] = (), kwargs: dict[str, object] | None = None
    ) -> object:
        self.trace.origins, self.trace.called = origins_of(func, args, kwargs or {}), getattr(func, "__name__", "").split(".")[0]
        try:
            return super().__torch_function__(func, types, args, kwargs)
        finally:
            self.trace.origins = []
