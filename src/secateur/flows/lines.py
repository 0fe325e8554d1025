"""Sums of w dL_s/dw along single dimensions of the weights, made of what flows into and out of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from .axes import Axis, summed
from .rules import Axes, Use
from .watch import Call, Line, Lines, See, Watch, can_tap, swapped, tap

Along = dict[Line, int | None]  # the axis that a line lies along; None: a dimension of size one, all is its sum


class Tapped(Watch):
    """Puts taps on what weights read and make, and sums what they show to `lines`. In the graph the weights themselves are constants.

    wanted: the lines that are summed. What no rule can sum is left in the graph.
    axes: where the samples are.
    copied: calls whose tensors are overwritten later.
    start: the leaf that the graph ends in instead of the weights.
    """

    def __init__(
        self, wanted: frozenset[Line], samples: int, axes: Mapping[Call, Axis | None], copied: set[Call], inputs_only: bool
    ) -> None:  # fmt: skip
        super().__init__()
        self.samples, self.axes, self.copied, self.inputs_only = samples, axes, copied, inputs_only
        self.dims: dict[str, set[int]] = defaultdict(set)
        for name, dim in wanted:
            self.dims[name].add(dim)
        self.start = torch.zeros((), requires_grad=True)
        self.lines: Lines = {}
        self.kept: list[tuple[Call, Tensor, int]] = []

    def meets(self, use: Use, call: Call, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        weight, bias, x = use.weight, use.bias, use.x
        reads, makes, shifts = self.chosen(weight, use.reads), self.chosen(weight, use.makes), self.chosen(bias, use.shifts)
        known = self.all_of(weight, {**reads, **makes}) and self.all_of(bias, shifts) and not (makes and self.computed(bias))
        if self.inputs_only:
            makes, shifts = {}, {}
        x_axis, y_axis = self.axes.get(call._replace(side="x")), self.axes.get(call)
        told = self.samples == 1 or not ((reads and x_axis is None) or ((makes or shifts) and y_axis is None))
        if not (known and told and (reads or makes or shifts or self.flows(args, kwargs)) and can_tap()):
            return func(*args, **kwargs)
        instead = {id(value): value.detach() for value in (weight, bias) if value is not None and self.name(value)}
        if reads and x is not None:

            def see_read(x: Tensor, g: Tensor) -> None:
                self.note(reads, weight, self.sums(x * g, x_axis, reads))

            instead[id(x)] = self.tap(x, call._replace(side="x"), see_read)
        args, kwargs = swapped(instead, args, kwargs)
        y: Tensor = func(*args, **kwargs)

        def see_made(y: Tensor, g: Tensor) -> None:
            shifted = {} if bias is None else self.shifted(bias.detach(), use.shifts, g, y_axis, {**makes, **shifts})
            if makes:
                product = y * g if use.live is None else y * g * use.live
                made = self.sums(product, y_axis, makes)
                self.note(makes, weight, {axis: use.sign * value - shifted.get(axis, 0) for axis, value in made.items()})
            self.note(shifts, bias, shifted)

        return self.tap(y, call, see_made) if makes or shifts else y

    def chosen(self, value: Tensor | None, axes: Axes) -> Along:
        name = self.name(value)
        if value is None or name is None:
            return {}
        return {(name, dim): None if value.shape[dim] == 1 else axis for dim, axis in axes.items() if dim in self.dims[name]}

    def all_of(self, value: Tensor | None, found: Along) -> bool:
        name = self.name(value)
        return name is None or self.dims[name] == {dim for _, dim in found}

    def computed(self, value: Tensor | None) -> bool:
        return value is not None and self.name(value) is None

    def tap(self, value: Tensor, call: Call, see: See) -> Tensor:
        if call in self.copied:
            return tap(value, value.clone(), self.start, see)
        self.kept.append((call, value, value._version))
        return tap(value, value, self.start, see)

    def overwritten(self) -> set[Call]:
        """The calls whose tensors were changed in place afterwards: they have to be copied."""
        found = {call for call, value, version in self.kept if value._version != version}
        self.kept.clear()
        return found

    def sums(self, products: Tensor, samples: Axis | None, lines: Along) -> dict[int | None, Tensor]:
        """Axis -> (samples, size of the axis)."""
        samples = None if self.samples == 1 else samples
        return {axis: summed(products, samples, self.samples, () if axis is None else (axis,)) for axis in {*lines.values()}}

    def shifted(self, bias: Tensor, shifts: Axes, g: Tensor, samples: Axis | None, lines: Along) -> dict[int | None, Tensor]:
        """The same of b * g."""
        if bias.dim() == 1 and {*lines.values()} == {*shifts.values()}:  # b can wait until g is summed
            return {axis: value * bias for axis, value in self.sums(g, samples, lines).items()}
        return self.sums(over(bias, shifts, g) * g, samples, lines)

    def note(self, lines: Along, value: Tensor | None, sums: Mapping[int | None, Tensor]) -> None:
        for (name, dim), axis in lines.items():
            assert value is not None  # it has lines
            found = torch.unflatten(sums[axis], -1, (-1, value.shape[dim])) if axis is not None else sums[axis][:, None, None]
            found = found.sum(1)  # groups, one behind the other
            self.lines[name, dim] = self.lines[name, dim] + found if (name, dim) in self.lines else found


def over(bias: Tensor, shifts: Axes, y: Tensor) -> Tensor:
    """The bias, shaped so that it lines up with y."""
    shape = [1] * y.dim()
    for dim, axis in shifts.items():
        shape[axis] = bias.shape[dim]
    return bias.view(shape)
