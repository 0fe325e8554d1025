"""Gradients of every sample and every connection, summed over the samples: sum over s of |dL_s/dw|^p, for each w.

With p = 2 this is the diagonal of the empirical Fisher information. Nothing is kept for every sample: in the place of a weight's gradient,
the backward pass computes its sum, layer by layer and some samples at a time (ways.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ..task import Task, derived, plain
from ..tree import Tree
from .axes import Axis
from .rules import Use
from .samples import batches_of_samples, gradients_of_every_sample, reached
from .watch import Call, Watch, can_tap, swapped, tap
from .ways import Place, of_elements, powers, way_of


def sums(task: Task, names: set[str], power: int = 2) -> Iterator[Tree]:
    """Per batch, the sum over its samples of |dL_s/dw|^power (1 or 2), for these parameters.

    L_s, and what is asked of the model: as for `gates`. A parameter that no rule knows, or that enters several calls, gets one backward
    pass a sample.
    """
    several: set[str] = set()
    for number, batch, samples, axes in batches_of_samples(task):
        watch = Summed(names - several, samples, axes, power)
        loss, leaves = task.loss_on(*batch, number, around=watch.on)
        rest = (reached(loss, leaves) & names) | several
        several |= rest & watch.met
        with derived(number):
            torch.autograd.grad(loss, watch.start, allow_unused=True)
        found = {name: torch.zeros_like(plain(leaves[name])) for name in names}
        del loss, leaves  # the graph of this batch, before the next one's is built
        found |= {name: value * samples**power for name, value in watch.total.items() if name not in rest}
        for gradients in gradients_of_every_sample(task, batch, number, rest) if rest else ():
            for name, gradient in gradients.items():
                found[name] += gradient.abs() ** power
        yield found


class Summed(Watch):
    """Takes what weights read, and the gradient of what they make, and sums a power of every sample's gradient to `total`.

    met: the wanted parameters that were met. One that is met again is left in the graph: powers of its calls do not add up.
    """

    def __init__(self, wanted: set[str], samples: int, axes: Mapping[Call, Axis | None], power: int) -> None:
        super().__init__()
        self.wanted, self.samples, self.axes, self.power = wanted, samples, axes, power
        self.start = torch.zeros((), requires_grad=True)
        self.met: set[str] = set()
        self.total: Tree = {}

    def meets(self, use: Use, call: Call, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        weight, bias = use.weight, use.bias
        mine = {name: value for value in (weight, bias) if value is not None and (name := self.name(value)) is not None}
        wanted = mine.keys() & self.wanted
        places = (self.axes.get(call._replace(side=side)) if self.samples > 1 else None for side in "xy")
        place = Place(self.samples, *places)
        asked = self.name(weight) in wanted
        way = way_of(use, place, self.power, func, args, kwargs) if asked else None
        known = self.met.isdisjoint(wanted) and (not wanted or place.known(asked and use.x is not None)) and (way is not None or not asked)
        self.met |= wanted
        if not (known and (wanted or self.flows(args, kwargs)) and can_tap()):
            return func(*args, **kwargs)
        args, kwargs = swapped({id(value): value.detach() for value in mine.values()}, args, kwargs)
        y: Tensor = func(*args, **kwargs)

        def see(kept: Tensor, g: Tensor) -> None:
            g = plain(g)  # squares in half precision would underflow
            if way is not None and weight is not None:
                self.add(weight, way.sums(kept, g))
            if bias is not None and self.name(bias) in wanted:
                self.add(bias, powers(of_elements(g, bias, use.shifts, place), self.power))

        return tap(y, None if way is None else way.kept, self.start, see) if wanted else y

    def add(self, value: Tensor, sums: Tensor) -> None:
        name = self.names[id(value)]
        self.total[name] = self.total[name] + sums if name in self.total else plain(sums)
