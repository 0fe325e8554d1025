"""The criterion that reads a unit's importance from the scale of its norm."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .. import tree
from ..errors import BadInput
from ..flows import FLOWS, operator_of
from ..structure import Structure
from ..structure.kinds import at_old_size
from ..task import Task
from ..tree import Scores

NORMS = {F.batch_norm, F.instance_norm, F.layer_norm, F.group_norm, F.rms_norm}
NORMS_OF_GRAPHS = {function.__name__ for function in NORMS}
PRODUCTS = {"mul", "multiply", "mul_", "__mul__", "__rmul__", "__imul__"}


def bn_scale(task: Task, structure: Structure) -> Iterator[Scores]:
    """The scale that a norm gives the unit (Liu et al., 2017, "Network Slimming").

    score_u = mean over the scales gamma in u of |gamma|

    Scales are found by one run on the first batch, not by the names of layers: the weight of a norm, and any other parameter with one long
    dimension that is a factor of a product (a layer scale, a norm written by hand). It means most where training had an L1 penalty on them.
    A unit without any scale gets the largest score of those that have one: nothing is known that would let it go.
    Raises BadInput where no unit has one.
    """
    weights = task.parameters()
    inputs, _ = next(iter(task.batches()))
    names = scales(task, inputs)
    number = structure.reduce({name: torch.full_like(value, float(name in names)) for name, value in weights.items()})
    if at_old_size(structure.kind) or not tree.total(number):
        raise BadInput(
            "bn_scale ranks units by the scale of their norm, but no unit here has one. "
            "Choose magnitude or taylor, or, for a model with norms, structure='channels'."
        )
    sums = structure.reduce({name: value.abs() * float(name in names) for name, value in weights.items()})
    means = tree.apply(lambda total, count: total / count.clamp_min(1), sums, number)
    largest = max(float(value.max()) for value in means.values())
    yield tree.apply(lambda mean, count: torch.where(count > 0, mean, largest), means, number)


def scales(task: Task, inputs: object) -> set[str]:
    """The names of the parameters that scale: the weight of a norm, or a factor with one long dimension."""
    seen = Factors()
    with torch.no_grad():
        task.run_on(inputs, around=lambda _: seen)
    long = {name: value for name, value in task.parameters().items() if value.numel() == max(value.shape, default=0)}
    return {name for name, value in long.items() if place(value) in seen.places}


def place(value: Tensor) -> tuple[int, int]:
    """Where its elements lie: a view of all of them has the same."""
    return value.data_ptr(), value.numel()


class Factors(TorchFunctionMode):
    """Remembers which tensors scaled another one."""

    def __init__(self) -> None:
        super().__init__()
        self.places: set[tuple[int, int]] = set()

    def __torch_function__(
        self, func: Callable[..., object], types: object, args: tuple[object, ...] = (), kwargs: dict[str, object] | None = None
    ) -> object:
        kwargs = kwargs or {}
        found: list[object] = []
        if func in NORMS:
            found = [inspect.signature(func).bind(*args, **kwargs).arguments.get("weight")]
        elif isinstance(func, torch._ops.OpOverload) and operator_of(func) in NORMS_OF_GRAPHS:
            use = FLOWS[operator_of(func)](*args, **kwargs)
            found = [use.weight] if use else []
        elif operator_of(func) in PRODUCTS:
            found = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.numel() > 1]
            found = found if len(found) == 2 else []  # by one number, nothing is told apart
        self.places.update(place(value) for value in found if isinstance(value, Tensor))
        return func(*args, **kwargs)
