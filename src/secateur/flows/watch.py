"""Watching a model run: every operator that a parameter enters directly is handed to whoever looks on."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from functools import cache
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import disable_saved_tensors_hooks
from torch.overrides import TorchFunctionMode

from ..tree import Tree
from .rules import FLOWS, Use, operator_of

Line = tuple[str, int]  # a parameter and one of its dimensions
Lines = dict[Line, Tensor]
See = Callable[[Any, Tensor], None]  # what was kept, and the gradient


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
        operator = operator_of(func)
        rule = FLOWS.get(operator) if kwargs.get("out") is None else None
        use = None if rule is None else rule(*args, **kwargs)
        name = None if use is None else self.name(use.weight) or self.name(use.bias)
        if use is None or name is None:
            return func(*args, **kwargs)
        self.calls[name] += 1
        return self.meets(use, Call(name, self.calls[name], operator), func, args, kwargs)

    def flows(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether something with a gradient enters that is no leaf."""
        return any(isinstance(v, Tensor) and v.requires_grad and id(v) not in self.names for v in (*args, *kwargs.values()))

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


class Tap(torch.autograd.Function):
    """Hands on a value. When its gradient comes back, shows it to `see`, together with another tensor that was kept.

    start: a leaf, so that there is a gradient even where nothing else has one.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, kept: Tensor | None, start: Tensor, see: See) -> Tensor:
        ctx.save_for_backward(kept)
        ctx.see = see
        return value.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        ctx.see(ctx.saved_tensors[0], gradient)
        return gradient, None, None, None


def tap(value: Tensor, kept: Tensor | None, start: Tensor, see: See) -> Tensor:
    shown: Tensor = Tap.apply(value, kept, start, see)  # type: ignore[no-untyped-call]
    return shown


def can_tap() -> bool:
    """Whether a gradient is made from what is saved here. Where others save it in their own way (activation checkpointing, which runs the
    code again, without whoever looks on), a tap would be missed, or given what is not its own.
    """
    try:
        with disable_saved_tensors_hooks("asked only"):  # raises where there are any
            return torch.is_grad_enabled()
    except RuntimeError:
        return False


def swapped(instead: dict[int, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with some tensors, by their id, replaced."""
    return tuple(instead.get(id(v), v) for v in args), {key: instead.get(id(v), v) for key, v in kwargs.items()}
