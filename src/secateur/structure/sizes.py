"""Sizes that a model's Python code keeps (`groups`, `num_heads`, `normalized_shape`, a width for a `view`): which attribute reaches a call.

The integers of a copy's modules (and of the configurations that they hold) are replaced by an `int` that remembers its attribute. It
calculates like any other; products and whole quotients remember what they were made of. Where it arrives as an argument of a torch
function, the attribute is known to set that size, and can follow when the size changes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor, nn

from .cut import modules_in
from .rules import flat

Attribute: TypeAlias = "tuple[str, int | None]"  # ("blocks.0.norm.normalized_shape", 0): the first number of that tuple

# arguments that are sizes of labelled dimensions, by the name of the function; of functions not listed here, all integers
SIZE_ARGUMENTS: dict[str, tuple[int | str, ...]] = {
    **{f"conv{n}d": (6, "groups") for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": (6, "groups") for n in (1, 2, 3)},
    **{f"{kind}_pool{n}d": () for kind in ("max", "avg", "lp") for n in (1, 2, 3)},
    "layer_norm": (1, "normalized_shape"),
    "rms_norm": (1, "normalized_shape"),
    "group_norm": (1, "num_groups"),
    **{kind: () for kind in ("lstm", "gru", "rnn_tanh", "rnn_relu", "softmax")},
    **{kind: () for kind in ("cat", "stack", "transpose", "permute", "unbind", "squeeze")},
    **{kind: (1, "split_size_or_sections") for kind in ("split", "split_with_sizes", "chunk")},
    "unflatten": (2, "sizes"),
    "slice": (2, 3),
    "select": (2,),
    "narrow": (2, 3, "start", "length"),
    **{kind: (1, "pad") for kind in ("pad", "constant_pad_nd")},
}


class Remembered(int):
    """An integer that knows the attribute that it came from, or the two numbers that it is the product or the whole quotient of."""

    attribute: Attribute | None
    made: tuple[str, int, int] | None

    def __new__(cls, value: int, attribute: Attribute | None = None, made: tuple[str, int, int] | None = None) -> Remembered:
        new = super().__new__(cls, value)
        new.attribute, new.made = attribute, made
        return new

    def __mul__(self, other: int) -> int:
        product = int.__mul__(self, other)
        return Remembered(product, made=("*", self, other)) if isinstance(other, int) else product

    __rmul__ = __mul__

    def __floordiv__(self, other: int) -> int:
        quotient = int.__floordiv__(self, other)
        return Remembered(quotient, made=("//", self, other)) if isinstance(other, int) and self % other == 0 else quotient

    def key(self) -> object:
        """Equal for integers that will always be equal."""
        return self.attribute or (self.made and (self.made[0], *(x.key() if isinstance(x, Remembered) else x for x in self.made[1:])))

    def __deepcopy__(self, memo: object) -> Remembered:
        return self

    def __reduce__(self) -> tuple[type[int], tuple[int]]:
        return int, (int(self),)


@dataclass
class Origin:
    """An argument of the call at work that is (made of) an attribute; spent once a dimension has claimed it."""

    value: Remembered
    position: int  # among the call's integers
    spent: bool = False


def remember(model: nn.Module) -> None:
    """Replace the modules' integers (and tuples and lists of them) by remembering ones, in place."""
    seen: set[int] = set()
    for path, module in modules_in(model):
        for name, value in list(vars(module).items()):
            if name.startswith("_") or name == "training":
                continue
            where = f"{path}.{name}" if path else name
            if configuration(value):
                if id(value) not in seen:
                    seen.add(id(value))
                    for key, item in list(vars(value).items()):
                        if not key.startswith("_"):
                            vars(value)[key] = remembering(item, f"{where}.{key}")
            else:
                module.__dict__[name] = remembering(value, where)


def remembering(value: object, where: str) -> object:
    if type(value) is int and value > 1:
        return Remembered(value, (where, None))
    if type(value) in (tuple, list) and value and all(type(item) is int for item in value):  # type: ignore[attr-defined]
        return type(value)(Remembered(item, (where, i)) for i, item in enumerate(value))  # type: ignore[call-arg, arg-type, var-annotated]
    return value


def configuration(value: object) -> bool:
    """A plain object that holds settings: neither a module, nor a tensor, nor something of Python or PyTorch themselves."""
    kind = type(value)
    return (
        hasattr(value, "__dict__")
        and not isinstance(value, (nn.Module, Tensor, type))
        and not callable(value)
        and kind.__module__.split(".")[0] not in ("builtins", "torch", "numpy", "collections", "functools", "weakref")
    )


def origins_of(func: Callable[..., object], args: tuple[object, ...], kwargs: dict[str, object]) -> list[Origin]:
    """The attributes among the arguments of a torch function, in their order."""
    positions = SIZE_ARGUMENTS.get(getattr(func, "__name__", "").split(".")[0])
    if positions is None:
        values = [*args, *kwargs.values()]
    else:
        values = [value for at, value in [*enumerate(args), *kwargs.items()] if at in positions]
    integers = [leaf for value in values for leaf in leaves(value) if isinstance(leaf, int) and not isinstance(leaf, bool)]
    return [Origin(leaf, at) for at, leaf in enumerate(integers) if isinstance(leaf, Remembered)]


def leaves(value: object) -> list[object]:
    if isinstance(value, slice):
        return [value.start, value.stop]
    if isinstance(value, (tuple, list)):
        return [leaf for item in value for leaf in leaves(item)]
    return flat(value) if isinstance(value, dict) else [value]
