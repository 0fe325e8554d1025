"""Sizes that a model's Python code keeps (`groups`, `num_heads`, `normalized_shape`, a width for a `view`): which attribute reaches a call.

The integers of a copy's modules are replaced by an `int` that remembers its attribute. It calculates like any other; where it arrives
unchanged as an argument of a torch function, the attribute is known to set that size, and can follow when the size changes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from torch import nn

from .rules import flat

Attribute: TypeAlias = "tuple[str, int | None]"  # ("blocks.0.norm.normalized_shape", 0): the first number of that tuple

# arguments that are sizes of labelled dimensions, by the name of the function; of functions not listed here, all integers
SIZE_ARGUMENTS = {
    **{f"conv{n}d": (6, "groups") for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": (6, "groups") for n in (1, 2, 3)},
    **{f"{kind}_pool{n}d": () for kind in ("max", "avg", "lp") for n in (1, 2, 3)},
    "layer_norm": (1, "normalized_shape"),
    "group_norm": (1, "num_groups"),
    **{kind: () for kind in ("lstm", "gru", "rnn_tanh", "rnn_relu", "softmax")},
}


class Remembered(int):
    """An integer that knows the attribute that it came from."""

    attribute: Attribute

    def __new__(cls, value: int, attribute: Attribute) -> Remembered:
        new = super().__new__(cls, value)
        new.attribute = attribute
        return new

    def __deepcopy__(self, memo: object) -> Remembered:
        return self

    def __reduce__(self) -> tuple[type[int], tuple[int]]:
        return int, (int(self),)


@dataclass
class Origin:
    """An argument of the call at work that is an attribute; spent once a dimension has claimed it."""

    value: int
    attribute: Attribute
    position: int  # among the call's integers
    spent: bool = False


def remember(model: nn.Module) -> None:
    """Replace the modules' integers (and tuples of them) by remembering ones, in place."""
    for path, module in model.named_modules():
        for name, value in list(vars(module).items()):
            if name.startswith("_") or name == "training":
                continue
            where = f"{path}.{name}" if path else name
            if type(value) is int and value > 1:
                module.__dict__[name] = Remembered(value, (where, None))
            elif type(value) is tuple and value and all(type(item) is int for item in value):
                module.__dict__[name] = tuple(Remembered(item, (where, i)) for i, item in enumerate(value))


def origins_of(func: Callable[..., object], args: tuple[object, ...], kwargs: dict[str, object]) -> list[Origin]:
    """The attributes among the arguments of a torch function, in their order."""
    positions = SIZE_ARGUMENTS.get(getattr(func, "__name__", ""))
    if positions is None:
        values = [*args, *kwargs.values()]
    else:
        values = [value for at, value in [*enumerate(args), *kwargs.items()] if at in positions]
    integers = [leaf for value in values for leaf in leaves(value) if isinstance(leaf, int) and not isinstance(leaf, bool)]
    return [Origin(int(leaf), leaf.attribute, at) for at, leaf in enumerate(integers) if isinstance(leaf, Remembered)]


def leaves(value: object) -> list[object]:
    if isinstance(value, slice):
        return [value.start, value.stop]
    if isinstance(value, (tuple, list)):
        return [leaf for item in value for leaf in leaves(item)]
    return flat(value) if isinstance(value, dict) else [value]
