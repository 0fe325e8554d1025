"""Watching a model run: every operator that a parameter enters directly is handed to whoever looks on."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from functools import cache
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..tree import Tree
from .axes import Axis, along
from .rules import FLOWS, Axes, Use

Line = tuple[str, int]  # a parameter and one of its dimensions
Lines = dict[Line, Tensor]


class Call(NamedTuple):
    """The how manyth call that a parameter enters, of which operator; and which side of it: "x" or "y"."""

    name: str
    number: int
    operator: str
    side: str = "y"


class Watch(TorchFunctionMode):
    """Hands every call that a leaf enters directly, and that has a rule, to `meets`."""

    def __init__(self) -> None:
        super().__init__()
        self.names: dict[int, str] = {}
        self.calls = Counter[str]()

    def on(self, leaves: Tree) -> Watch:
        self.names = {id(value): name for name, value in leaves.items()}
        return self

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:  # fmt: skip
        kwargs = kwargs or {}
        if not any(id(value) in self.names for value in (*args, *kwargs.values())):
            return func(*args, **kwargs)
        if isinstance(func, FunctionType) and func.__module__ == "torch.nn.functional":
            with self:
                return seen_through(func)(*args, **kwargs)
        rule = FLOWS.get(func.__name__) if kwargs.get("out") is None else None
        use = None if rule is None else rule(*args, **kwargs)
        name = None if use is None else self.name(use.weight) or self.name(use.bias)
        if use is None or name is None:
            return func(*args, **kwargs)
        self.calls[name] += 1
        return self.meets(use, Call(name, self.calls[name], func.__name__), func, args, kwargs)

    def name(self, value: Tensor | None) -> str | None:
        return None if value is None else self.names.get(id(value))

    def meets(self, use: Use, call: Call, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        raise NotImplementedError


@cache
def seen_through(func: FunctionType) -> FunctionType:
    """A function of PyTorch's that is written in Python, without its question whether somebody watches: what it calls is seen."""
    unwatched = {name: lambda *_: False for name in func.__globals__ if name.startswith("has_torch_function")}
    twin = FunctionType(func.__code__, {**func.__globals__, **unwatched}, func.__name__, func.__defaults__, func.__closure__)
    twin.__kwdefaults__ = func.__kwdefaults__
    return twin


class Probe(Watch):
    """Keeps what weights read and make."""

    def __init__(self) -> None:
        super().__init__()
        self.met: dict[Call, Tensor] = {}

    def meets(self, use: Use, call: Call, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if use.x is not None:
            self.met[call._replace(side="x")] = use.x.clone()
        y = func(*args, **kwargs)
        self.met[call] = y.clone()
        return y


class Read(Watch):
    """Keeps what every weight reads, (samples, channels, positions...)."""

    def __init__(self) -> None:
        super().__init__()
        self.read: dict[Line, list[Tensor]] = defaultdict(list)

    def meets(self, use: Use, call: Call, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = self.name(use.weight)
        if name is not None and use.weight is not None and use.x is not None:
            for dim, axis in use.reads.items():
                x = use.x.detach().clone()  # it may be overwritten
                x = (x if x.dim() > 1 else x[None]).movedim(axis, 1)
                size = use.weight.shape[dim]
                if size == 1 < x.shape[1]:  # depthwise: its outputs tell its inputs apart
                    x, dim = x.repeat_interleave(use.weight.shape[0] // x.shape[1], 1), 0
                elif size < x.shape[1]:
                    x = torch.unflatten(x, 1, (-1, size)).flatten(0, 1)
                self.read[name, dim].append(x)
        return func(*args, **kwargs)


class Tapped(Watch):
    """Puts taps on what weights read and make, and sums what they show to `lines`. In the graph the weights themselves are constants.

    wanted: the lines that are summed. What no rule can sum is left in the graph.
    axes: where the samples are.
    copied: calls whose tensors are overwritten later.
    start: the leaf that the graph ends in instead of the weights.
    """

    def __init__(
        self, wanted: frozenset[Line], samples: int, axes: Mapping[Call, Axis | None], copied: set[Call], inputs_only: bool
    ) -> None:  # fmt: skip
        super().__init__()
        self.samples, self.axes, self.copied, self.inputs_only = samples, axes, copied, inputs_only
        self.dims: dict[str | None, set[int]] = defaultdict(set)
        for name, dim in wanted:
            self.dims[name].add(dim)
        self.start = torch.zeros((), requires_grad=True)
        self.lines: Lines = {}
        self.kept: list[tuple[Call, Tensor, int]] = []

    def meets(self, use: Use, call: Call, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        weight, bias, x = use.weight, use.bias, use.x
        reads, makes, shifts = self.chosen(weight, use.reads), self.chosen(weight, use.makes), self.chosen(bias, use.shifts)
        known = self.dims[self.name(weight)] == {d for _, d in (*reads, *makes)} and self.dims[self.name(bias)] == {d for _, d in shifts}
        known = known and not (makes and bias is not None and id(bias) not in self.names)
        if self.inputs_only:
            makes, shifts = {}, {}
        x_axis, y_axis = self.axes.get(call._replace(side="x")), self.axes.get(call)
        told = self.samples == 1 or not ((reads and x_axis is None) or ((makes or shifts) and y_axis is None))
        flows = any(isinstance(v, Tensor) and v.requires_grad and id(v) not in self.names for v in (*args, *kwargs.values()))
        if not (known and told and (flows or reads or makes or shifts) and torch.is_grad_enabled()):
            return func(*args, **kwargs)
        instead = {id(value): value.detach() for value in (weight, bias) if value is not None and id(value) in self.names}
        if reads and x is not None:
            instead[id(x)] = self.tap(x, call._replace(side="x"), lambda x, g: self.note(reads, weight, self.sums(x * g, x_axis, reads)))
        y = func(*(instead.get(id(v), v) for v in args), **{key: instead.get(id(v), v) for key, v in kwargs.items()})
        if not makes and not shifts:
            return y

        def see(y: Tensor, g: Tensor) -> None:
            shifted = {} if bias is None else self.shifted(bias, use.shifts, g, y_axis, {**makes, **shifts})
            if makes:
                made = self.sums(y * g, y_axis, makes)
                self.note(makes, weight, {axis: use.sign * value - shifted.get(axis, 0) for axis, value in made.items()})
            self.note(shifts, bias, shifted)

        return self.tap(y, call, see)

    def chosen(self, value: Tensor | None, axes: Axes) -> dict[Line, int]:
        name = self.name(value)
        return {} if name is None else {(name, dim): axis for dim, axis in axes.items() if dim in self.dims[name]}

    def tap(self, value: Tensor, call: Call, see: Callable[[Tensor, Tensor], None]) -> Tensor:
        if call in self.copied:
            value = value.clone()
        else:
            self.kept.append((call, value, value._version))
        shown: Tensor = Tap.apply(value, self.start, see)  # type: ignore[no-untyped-call]
        return shown.clone() if call in self.copied else shown

    def sums(self, products: Tensor, samples: Axis | None, lines: Mapping[Line, int]) -> dict[int, Tensor]:
        """Axis -> (samples, size of the axis)."""
        return {axis: along(products, samples, self.samples, axis) for axis in set(lines.values())}

    def shifted(self, bias: Tensor, shifts: Axes, g: Tensor, samples: Axis | None, lines: Mapping[Line, int]) -> dict[int, Tensor]:
        """The same of b * g."""
        b = bias.detach()
        if b.dim() == 1 and set(lines.values()) == set(shifts.values()):  # b can wait until g is summed
            return {axis: value * b for axis, value in self.sums(g, samples, lines).items()}
        return self.sums(over(b, shifts, g) * g, samples, lines)

    def note(self, lines: Mapping[Line, int], value: Tensor | None, sums: Mapping[int, Tensor]) -> None:
        for (name, dim), axis in lines.items():
            assert value is not None  # it has lines
            found = sums[axis]
            if found.shape[1] != value.shape[dim]:  # groups, one behind the other
                found = torch.unflatten(found, 1, (-1, value.shape[dim])).sum(1)
            self.lines[name, dim] = self.lines[name, dim] + found if (name, dim) in self.lines else found

    def overwritten(self) -> set[Call]:
        """The calls whose tensors were changed in place afterwards: they have to be copied."""
        found = {call for call, value, version in self.kept if value._version != version}
        self.kept.clear()
        return found


class Tap(torch.autograd.Function):
    """Hands on what it is given, and shows it to `see` together with the gradient that comes back."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, start: Tensor, see: Callable[[Tensor, Tensor], None]) -> Tensor:
        ctx.save_for_backward(value)
        ctx.see = see
        return value.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        ctx.see(ctx.saved_tensors[0], gradient)
        return gradient, None, None


def over(bias: Tensor, shifts: Axes, y: Tensor) -> Tensor:
    """The bias, shaped so that it lines up with y."""
    shape = [1] * y.dim()
    for dim, axis in shifts.items():
        shape[axis] = bias.shape[dim]
    return bias.view(shape)
