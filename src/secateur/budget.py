"""What a plan has to meet: fractions to remove, and sizes to come down to, of one cost or of several at once."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from .cost import Cost, named
from .errors import BadInput
from .structure import Structure

ROUNDING = 1e-12  # of the total cost: (1 - 0.9) * 10 is a little less than 1
Amount = float | Mapping[str, float]
Of = str | Cost | Mapping[str, Cost]
Budget = str | Mapping[str, float | str]

COUNTS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9, "t": 1e12}
BYTES = {"b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12, "kib": 2.0**10, "mib": 2.0**20, "gib": 2.0**30, "tib": 2.0**40}
TIMES = {"s": 1e3, "ms": 1.0, "us": 1e-3, "µs": 1e-3}  # in milliseconds
WORDS = {
    "parameters": "parameters", "params": "parameters", "param": "parameters", "macs": "macs", "mac": "macs", "units": "units",
    "connections": "units", "bytes": "bytes",
}  # fmt: skip
TOGETHER = re.compile(rf"([kmgbt]?)({'|'.join(WORDS)})")  # "GMACs"
QUANTITY = re.compile(r"\s*([0-9][0-9_,]*(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)\s*([a-zA-Zµ]*)\s*([a-zA-Z]*)\s*")


@dataclass(frozen=True)
class Target:
    """A cost of the plan, and the most it may be. amount: the fraction removed that was asked for, or None for an absolute target.

    limits: the options (least, most, keep) that say what stays.
    """

    name: str
    cost: Cost
    most: float
    whole: float
    amount: float | None = None
    limits: tuple[str, ...] = ()

    def met(self, value: float) -> bool:
        return value <= self.most

    def out_of_reach(self, least: float) -> str:
        """A sentence. least: the cost where all that may leave has left; of one that is measured it may be more than the whole model's."""
        options = " and ".join(f"{name}=" for name in self.limits)
        why = f"since {options} let no more leave" if options else "since every group keeps something"
        if least > self.whole:
            why += f" ({least:,.6g} are left then, {self.whole:,.6g} now)"
        relaxed = f", or relax {options}" if options else ""
        if self.amount is None:
            return f"A budget of {self.most:,.6g} {self.name} is out of reach: {least:,.6g} stay at least, {why}. Ask for more{relaxed}."
        reachable = max(0.0, math.floor((1 - least / self.whole) * 10_000) / 10_000) if self.whole else 0.0
        return (
            f"An amount of {self.amount:g} is out of reach: at most {reachable:g} of {self.name} can be removed here, {why}. "
            f"Ask for less{relaxed}."
        )


def targets(
    amount: Amount | None,
    budget: Budget | None,
    of: Of,
    structure: Structure,
    whole: Mapping[str, Tensor],
    limits: Iterable[str] = (),
) -> list[Target]:
    """All that the plan has to meet, the costs that are counted before those that run the model.

    amount: fractions to remove, of the cost `of` or by the names of costs. budget: the most that may stay, by the names of costs.
    of: also gives the costs that have no name of their own, by name. `whole`: all units. limits: the options that say what stays.
    """
    stay = tuple(limits)
    own = of if isinstance(of, Mapping) else dict([named(of)])

    def found(name: str) -> tuple[str, Cost]:
        return (name, own[name]) if name in own else named(name)

    if amount is None or isinstance(amount, Mapping):
        shares = [(*found(name), fraction(share)) for name, share in (amount or {}).items()]
    elif len(own) == 1:
        shares = [(*next(iter(own.items())), fraction(amount))]
    else:
        raise BadInput("One amount was given for several costs. Give a fraction for each: amount={'macs': 0.5, ...}.")
    asked = []
    for name, cost, share in shares:
        total = cost(structure, whole)
        asked.append(Target(name, cost, (1 - share + ROUNDING) * total, total, share, stay))
    for name, most in absolute(budget).items():
        cost = found(name)[1]
        asked.append(Target(name, cost, most * (1 + ROUNDING), cost(structure, whole), limits=stay))
    return sorted(asked, key=lambda target: target.name in own and not isinstance(of, str))


def absolute(budget: Budget | None) -> dict[str, float]:
    """ "7 MB" and {"bytes": "7 MB"} -> {"bytes": 7e6}; also "macs=30 M, 5 ms". Raises BadInput for what is no quantity, and for none."""
    if isinstance(budget, str):
        pairs: list[tuple[str | None, float | str]] = [
            (name.strip(), value) if sign else (None, name) for name, sign, value in (part.partition("=") for part in parts_of(budget))
        ]
    else:
        pairs = [*(budget or {}).items()]
    if budget is not None and not pairs:
        raise BadInput(f"The budget is empty ({budget!r}), so it asks for nothing. Say what may be left: '7 MB', 'macs=30 M', '5 ms'.")
    meant: dict[str, float] = {}
    for name, value in pairs:
        unit, number = quantity(value)
        if name is not None and unit is not None and name != unit:
            raise BadInput(f"The budget of {name} is {value!r}, which is a quantity of {unit}. Name one of the two.")
        if (where := name or unit) is None:
            raise BadInput(f"The budget {value!r} does not say of what. Write bytes, parameters, MACs or ms: '7 MB', 'macs=30 M', '5 ms'.")
        meant[where] = number
    return meant


def parts_of(budget: str) -> list[str]:
    """At every comma that stands in no number."""
    return [part for part in re.split(r"[;,](?!\d{3}\b)", budget) if part.strip()]


def quantity(value: float | str) -> tuple[str | None, float]:
    """ "7 MB" -> ("bytes", 7e6), "3 M parameters" -> ("parameters", 3e6), "0.3 GMACs" -> ("macs", 3e8), "30M" -> (None, 3e7), "5 ms" ->
    ("latency", 5.0)."""
    if isinstance(value, str) and (match := QUANTITY.fullmatch(value)):
        number, unit, word = float(match[1].replace(",", "").replace("_", "")), match[2], match[3].lower()
        if not word and (together := TOGETHER.fullmatch(unit.lower())):
            unit, word = together[1], together[2]
        if not word and unit in TIMES:
            return "latency", number * TIMES[unit]
        if not word and unit.lower() in BYTES and unit != "b":
            return "bytes", number * BYTES[unit.lower()]
        if unit.lower() in COUNTS and (not word or word in WORDS):
            return WORDS.get(word), number * COUNTS[unit.lower()]
    elif not isinstance(value, (str, bool)) and isinstance(value, (int, float)) and math.isfinite(value) and value >= 0:
        return None, float(value)
    raise BadInput(f"A budget is a number or a text like '7 MB', '3 M parameters', '0.3 GMACs', '30M' or '5 ms', but it is {value!r}.")


def fraction(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise BadInput(f"The amount is the fraction to remove, in 0..1, but it is {value!r}. Try amount=0.5.")
    return float(value)
