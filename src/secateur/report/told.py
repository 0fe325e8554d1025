"""JSON values as the dataclasses that they were written from, each value of the type that is declared."""

from __future__ import annotations

import math
from dataclasses import is_dataclass
from types import NoneType, UnionType
from typing import Protocol, get_args, get_origin, get_type_hints


class Made(Protocol):
    """What makes a value of a type from JSON."""

    def __call__(self, told: object, at: str) -> object: ...


def as_declared(hint: object, told: object, at: str, own: dict[object, Made]) -> object:
    """The value of the type `hint`; own: how types that have a way of their own are read.

    Raises ValueError, naming the place, for another type and for a number that is not finite.
    """
    origin, inner = get_origin(hint), get_args(hint)
    if hint in own:
        return own[hint](told, at)
    if origin is UnionType and NoneType in inner:
        return None if told is None else as_declared(next(one for one in inner if one is not NoneType), told, at, own)
    if isinstance(hint, type) and is_dataclass(hint) and isinstance(told, dict):
        types, make = get_type_hints(hint), hint
        if unknown := [name for name in told if name not in types]:
            raise ValueError(f"{at} has {unknown[0]!r}, which is not told there")
        return make(**{name: as_declared(types[name], value, f"{at}.{name}", own) for name, value in told.items()})
    if origin is dict and isinstance(told, dict):
        return {name: as_declared(inner[1], value, f"{at}.{name}", own) for name, value in told.items()}
    if origin is tuple and isinstance(told, list):
        hints = [inner[0]] * len(told) if inner[-1] is Ellipsis else inner
        return tuple(as_declared(one, value, f"{at}[{place}]", own) for place, (one, value) in enumerate(zip(hints, told, strict=True)))
    if hint is float and isinstance(told, (int, float)) and not isinstance(told, bool) and math.isfinite(told):
        return told
    if hint in (int, str, bool) and type(told) is hint:
        return told
    raise ValueError(f"{at} is {str(told)[:40]!r}, not of type {getattr(hint, '__name__', hint)}")
