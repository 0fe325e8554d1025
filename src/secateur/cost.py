"""What a keep costs, counted on the whole plan: a connection lies in a row unit and in a column unit, so unit costs do not add up.

A cost is a function of a structure and of what is kept. Those with a name are counted from the parameters alone; what has to run the
model is a function of that form, too, made with the model and an example (`Activations`, `Latency`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from .errors import BadInput
from .structure import Structure

Cost = Callable[[Structure, Mapping[str, Tensor]], float]


def units(structure: Structure, keep: Mapping[str, Tensor]) -> float:
    """Kept units."""
    return float(sum(int(mask.count_nonzero()) for mask in keep.values()))


def parameters(structure: Structure, keep: Mapping[str, Tensor]) -> float:
    """Kept elements of all parameters, those that no unit reaches included."""
    return priced(structure.count(keep), prices(structure, "parameters"))


def macs(structure: Structure, keep: Mapping[str, Tensor]) -> float:
    """Multiply-accumulates for one sample: kept elements x how often each is used."""
    return priced(structure.count(keep), prices(structure, "macs"))


def bytes_(structure: Structure, keep: Mapping[str, Tensor]) -> float:
    """Bytes of the kept elements in the parameters' own types."""
    return priced(structure.count(keep), prices(structure, "bytes"))


MEASURES: dict[str, Cost] = {
    "units": units,
    "parameters": parameters,
    "macs": macs,
    "bytes": bytes_,
}
COSTS = tuple(MEASURES)
PRICED = ("parameters", "macs", "bytes")  # the sum, over the kept elements of all parameters, of what one of them costs


def prices(structure: Structure, of: str) -> dict[str, float]:
    """What one element of every parameter costs, for those of PRICED."""
    if of == "macs" and not structure.uses:
        raise BadInput("MACs cannot be counted without a run of the model. Make the structure with an example of its inputs: example=.")
    each: Callable[[str], float] = {
        "parameters": lambda name: 1.0,
        "macs": lambda name: structure.uses.get(name, 0.0),
        "bytes": lambda name: float(structure.itemsize[name]),
    }[of]
    return {name: each(name) for name in structure.numel}


def priced(counts: Mapping[str, int], price: Mapping[str, float]) -> float:
    """So many elements of every parameter, at the price of each."""
    return float(sum(number * price[name] for name, number in counts.items()))


def cost(structure: Structure, keep: Mapping[str, Tensor], of: str | Cost) -> float:
    """The cost of keeping exactly these units. Raises BadInput where it is unknown or cannot be counted."""
    return named(of)[1](structure, keep)


def costs(structure: Structure, keep: Mapping[str, Tensor]) -> dict[str, float]:
    """Every cost that can be counted: without an example there are no MACs."""
    return {of: cost(structure, keep, of) for of in COSTS if of != "macs" or structure.uses}


def named(of: str | Cost) -> tuple[str, Cost]:
    """A cost's name and function: one of COSTS by its name; of a function its `name` or `__name__`. Raises BadInput where there is none."""
    if not isinstance(of, str):
        return str(getattr(of, "name", None) or getattr(of, "__name__", type(of).__name__)), of
    if of not in MEASURES:
        raise BadInput(
            f"There is no cost {of!r}. Choose {', '.join(COSTS)}, or give a function of the structure and what is kept "
            "(secateur.Latency and secateur.Activations make one of a model and an example)."
        )
    return of, MEASURES[of]
