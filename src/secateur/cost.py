"""What a keep costs, counted on the whole plan: a connection lies in a row unit and in a column unit, so unit costs do not add up."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from .errors import BadInput
from .structure import Structure


def units(structure: Structure, keep: Mapping[str, Tensor]) -> float:
    """Kept units."""
    return float(sum(int(mask.count_nonzero()) for mask in keep.values()))


def parameters(structure: Structure, keep: Mapping[str, Tensor]) -> float:
    """Kept elements of all parameters, those that no unit reaches included."""
    return float(sum(structure.count(keep).values()))


def macs(structure: Structure, keep: Mapping[str, Tensor]) -> float:
    """Multiply-accumulates for one sample: kept elements x how often each is used."""
    if not structure.uses:
        raise BadInput("MACs cannot be counted without a run of the model. Make the structure with an example of its inputs: example=.")
    return float(sum(number * structure.uses.get(name, 0.0) for name, number in structure.count(keep).items()))


def bytes_(structure: Structure, keep: Mapping[str, Tensor]) -> float:
    """Bytes of the kept elements in the parameters' own types."""
    return float(sum(number * structure.itemsize[name] for name, number in structure.count(keep).items()))


MEASURES: dict[str, Callable[[Structure, Mapping[str, Tensor]], float]] = {
    "units": units,
    "parameters": parameters,
    "macs": macs,
    "bytes": bytes_,
}
COSTS = tuple(MEASURES)


def cost(structure: Structure, keep: Mapping[str, Tensor], of: str) -> float:
    """The cost of keeping exactly these units. Raises BadInput where it is unknown or cannot be counted."""
    if of not in MEASURES:
        raise BadInput(f"There is no cost {of!r}. Choose {', '.join(COSTS)}.")
    return MEASURES[of](structure, keep)


def costs(structure: Structure, keep: Mapping[str, Tensor]) -> dict[str, float]:
    """Every cost that can be counted: without an example there are no MACs."""
    return {of: cost(structure, keep, of) for of in COSTS if of != "macs" or structure.uses}
