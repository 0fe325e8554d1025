"""Calls that are one step of a run, whatever operators they are made of: functions of PyTorch's, and classes that have a rule."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .rules import OPAQUE, RULES, name_of

ATEN = torch.ops.aten
WHOLE: dict[Any, Any] = {  # calls that are one step: which operators they run depends on strides and on sizes that are one
    **dict.fromkeys((torch.nn.functional.linear, ATEN.linear.default), ATEN.linear.default),
    **dict.fromkeys((torch.matmul, Tensor.matmul, Tensor.__matmul__, ATEN.matmul.default), ATEN.matmul.default),
    **dict.fromkeys((torch.einsum, ATEN.einsum.default), ATEN.einsum.default),
    **dict.fromkeys((torch.nn.functional.rms_norm, torch.rms_norm, ATEN.rms_norm.default), ATEN.rms_norm.default),
    **dict.fromkeys(
        (torch.nn.functional.scaled_dot_product_attention, ATEN.scaled_dot_product_attention.default),
        ATEN.scaled_dot_product_attention.default,
    ),
}


class Whole(TorchFunctionMode):
    """Hands the calls that are one step to `step(operator, args, kwargs)`."""

    def __init__(self, step: Callable[[Any, tuple[Any, ...], dict[str, Any]], object]) -> None:
        super().__init__()
        self.step = step

    def __torch_function__(
        self, func: Callable[..., object], types: object, args: tuple[object, ...] = (), kwargs: dict[str, object] | None = None
    ) -> object:
        one = WHOLE.get(func) if not kwargs or kwargs.get("out") is None else None
        if one is ATEN.einsum.default and not isinstance(args[-1], (tuple, list)):
            args = (args[0], args[1:])
        return func(*args, **(kwargs or {})) if one is None else self.step(one, *in_order(one, args, kwargs or {}))


def in_order(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments given by name in their places, as far as all before them are given. What aten calls `self` is `input` in Python."""
    if "input" in kwargs and op._schema.arguments[0].name == "self":
        kwargs = {"self": kwargs["input"], **{name: value for name, value in kwargs.items() if name != "input"}}
    for argument in op._schema.arguments[len(args) :] if kwargs else ():
        if argument.kwarg_only or argument.name not in kwargs:
            break
        args = (*args, kwargs[argument.name])
    return args, {name: value for name, value in kwargs.items() if name not in [a.name for a in op._schema.arguments[: len(args)]]}


@dataclass(frozen=True)
class Opaque:
    """A module or an autograd function as one operator."""

    name: str
    function: Callable[..., object]

    def __call__(self, *args: object, **kwargs: object) -> object:
        return self.function(*args, **kwargs)

    def __str__(self) -> str:
        return self.name


@contextmanager
def opaque_as_steps(model: nn.Module, step: Callable[[Any, tuple[Any, ...], dict[str, Any]], object]) -> Iterator[None]:
    """While the model runs, modules and autograd functions whose classes have a rule are handed to `step` whole."""
    undo: list[tuple[object, str]] = []
    for name, kind in OPAQUE.items():
        if name in RULES and issubclass(kind, torch.autograd.Function):
            one = Opaque(name, kind.apply)
            setattr(kind, "apply", lambda *args, one=one: step(one, args, {}))  # noqa: B010 (mypy)
            undo.append((kind, "apply"))
    for module in model.modules() if OPAQUE else ():
        name = name_of(type(module))
        if name in OPAQUE and name in RULES:
            one = Opaque(name, lambda module, *args, **kwargs: type(module).forward(module, *args, **kwargs))
            module.__dict__["forward"] = lambda *args, one=one, module=module, **kwargs: step(one, (module, *args), kwargs)
            undo.append((module, "forward"))
    try:
        yield
    finally:
        for where, attribute in undo:
            delattr(where, attribute)


@contextmanager
def wrapped(model: nn.Module, wrap: Callable[[str, Callable[..., object]], Callable[..., object]]) -> Iterator[None]:
    """While the model runs, the forward methods of modules that check their sizes, or may, are `wrap(path, forward)`: all but PyTorch's."""
    undo = []
    for path, module in model.named_modules():
        own = not type(module).__module__.startswith("torch.nn.") or isinstance(module, nn.MultiheadAttention)
        if path and own and "forward" not in module.__dict__:
            module.__dict__["forward"] = wrap(path, module.forward)
            undo.append(module)
    try:
        yield
    finally:
        for module in undo:
            del module.__dict__["forward"]
