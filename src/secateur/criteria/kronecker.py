"""The criterion of Kronecker-factored curvature: what a weight reads, and the gradient of what it makes, taken as independent."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .. import tree
from ..contexts import sliceable
from ..errors import BadInput
from ..flows import Line, Use
from ..flows.gates import lines_of
from ..flows.lines import over
from ..flows.watch import Call, Watch
from ..structure import Structure
from ..structure.kinds import at_old_size
from ..structure.tiles import Block, summed
from ..task import Task, derived, plain
from ..tree import Scores


def kfac(task: Task, structure: Structure) -> Iterator[Scores]:
    """Increase of the loss at a minimum when the unit is removed, by the Kronecker-factored Fisher (Martens & Grosse, 2015, eq. 1).

    F of a layer = A (x) G,    A = E[sum over positions of a a'],    G = E[sum over positions of g g'] / positions
    score_u = w_u' F w_u / 2, summed over the parameters that u lies in;    of a connection w_oi^2 A_ii G_oo / 2

    a is what the weight reads (and a one, for the bias), g the gradient of what it makes; for positions see Grosse & Martens (2016). A unit
    of the rows S of W, where y = W a, has

    w_S' F w_S = sum over o, o' in S of (W A W')_oo' G_oo',    W A W' = E[y y']

    so second moments of y and g are enough; of x and W'g for columns (those of a convolution: over the positions of x). Where a unit lies
    along both dimensions of one weight, what the two have in common is left out. Of blocks of connections all pairs are summed. It is the
    empirical Fisher, as in `fisher`.
    Raises BadInput for a weight whose operator has no rule (of a recurrent layer, say).
    """
    by_weight = at_old_size(structure.kind)
    wanted = frozenset((name, 0) for name in structure.groups) if by_weight else lines_of(structure)
    for number, batch in enumerate(task.batches()):
        samples, seen = sliceable(batch), Seen()
        loss, leaves = task.loss_on(*batch, number, around=seen.on)
        with derived(number):
            torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        del loss
        terms = (term for made in seen.made for term in (of_connections(made, structure) if by_weight else of_lines(made, wanted)))
        found = [(line, value * samples) for line, value in terms]
        if missing := wanted - {line for line, _ in found} - {line for made in seen.made for line in made.within}:
            raise BadInput(
                f"K-FAC needs to see what every weight reads and makes, but of {min(missing)[0]} it does not (a recurrent layer's weight, "
                "one computed from a parameter, or one that is not used). Choose fisher, gate or taylor."
            )
        scores = {name: plain(value) * 0 for name, value in structure.reduce(tree.apply(torch.zeros_like, leaves)).items()}
        for line, value in found:
            for name, part in ({line[0]: value} if by_weight else quadratic(structure, line, value)).items():
                scores[name] = scores[name] + part / 2
        yield scores


@dataclass(frozen=True)
class Made:
    """A call y = w x + b of parameters, and the gradient of the loss by y, once it is there."""

    weight: str | None
    bias: str | None
    operator: str
    use: Use
    run: Callable[[dict[int, Tensor]], Tensor]  # the call again, with other tensors in the place of those of these ids
    y: Tensor
    gradient: list[Tensor] = field(default_factory=list)

    @property
    def within(self) -> list[Line]:
        """The bias's lines, where y has it and the weight's rows."""
        return [(self.bias, dim) for dim in self.use.shifts] if self.weight and self.bias and self.gradient else []


class Seen(Watch):
    """Keeps every call that a parameter enters."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[Made] = []

    def meets(self, use: Use, call: Call, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        y = func(*args, **kwargs)
        if not y.requires_grad:
            return y
        device = y.device.type
        cast, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)  # as it was in the model

        def run(instead: dict[int, Tensor]) -> Tensor:
            with torch.autocast(device, dtype=dtype, enabled=cast):
                value: Tensor = func(*(instead.get(id(v), v) for v in args), **{key: instead.get(id(v), v) for key, v in kwargs.items()})
            return value

        made = Made(self.name(use.weight), self.name(use.bias), call.operator, use, run, y.detach().clone())
        y.register_hook(lambda gradient: made.gradient.append(gradient.detach()))
        self.made.append(made)
        return y


def of_lines(made: Made, wanted: frozenset[Line]) -> Iterator[tuple[Line, Tensor]]:
    """(line, sum y y' * sum g g' / rows) for the rows of the weight, (line, sum x x' * sum (W'g)(W'g)' / rows) for its columns."""
    for g in made.gradient:
        weight, bias, use = made.use.weight, made.use.bias, made.use
        if made.weight is not None and weight is not None:
            for dim, axis in use.makes.items():
                if (made.weight, dim) in wanted:
                    yield (made.weight, dim), moments(made.y, g, axis, weight.shape[dim])
            for dim, axis in use.reads.items():
                if (made.weight, dim) in wanted and use.x is not None:
                    with torch.enable_grad():
                        x = use.x.detach().requires_grad_()
                        (back,) = torch.autograd.grad(made.run({id(use.x): x, id(weight): weight.detach()}), x, g)
                    yield (made.weight, dim), moments(x.detach(), back, axis, weight.shape[dim])
        elif made.bias is not None and bias is not None:
            for dim, axis in use.shifts.items():
                if (made.bias, dim) in wanted:
                    yield (made.bias, dim), moments(over(bias.detach(), use.shifts, made.y).expand_as(made.y), g, axis, bias.shape[dim])


def moments(value: Tensor, gradient: Tensor, axis: int, size: int) -> Tensor:
    value, gradient = (plain(each).movedim(axis, -1).reshape(-1, size) for each in (value, gradient))
    return (value.T @ value) * (gradient.T @ gradient) / len(value)


def of_connections(made: Made, structure: Structure) -> Iterator[tuple[Line, Tensor]]:
    """Of every block, the sum over all pairs of its connections of  w_oi w_o'i' * sum x_i x_i' * sum g_o g_o' / rows.

    Pairs that lie equally far apart are taken together, from the call itself: it is linear in w, so its derivative on x x' has the sums of
    x x'.
    """
    weight, x, use = made.use.weight, made.use.x, made.use
    if made.weight not in structure.groups or weight is None or (x is None and made.operator != "embedding"):  # there, x is a one or a zero
        return
    block = structure.groups[made.weight].block or (1,) * weight.dim()
    check_groups(made, made.weight, block)
    for g in made.gradient:
        kept = [g.dim() + axis for axis in use.makes.values()]
        others = [axis for axis in range(g.dim()) if axis not in kept]
        rows, total = g.numel() / math.prod(g.shape[axis] for axis in kept), torch.zeros_like(plain(weight))
        for shift in shifts(block):
            if any(far and dim not in use.makes and dim not in use.reads for dim, far in enumerate(shift)):
                continue  # of two rows that are looked up, one is a zero
            pairs = plain(g) * moved(plain(g), shift, use.makes)
            sums = pairs.sum(others, keepdim=True) if others else pairs
            with torch.enable_grad():
                w = weight.detach().requires_grad_()
                seen = {} if x is None else {id(x): x.detach() * moved(x.detach(), shift, use.reads)}
                y = made.run({id(weight): w} | seen)
                (products,) = torch.autograd.grad(y, w, sums.to(y).expand_as(y))
            both = plain(weight) * moved(plain(weight), shift, {dim: dim for dim in range(weight.dim())})
            both = both * inside(weight.shape, block, shift).to(both) * (2 if any(shift) else 1)  # as (o, i) meets (o', i'), so it back
            total += plain(products) * both / rows
        yield (made.weight, 0), summed(total, structure.groups[made.weight].block)


def shifts(block: Block) -> Iterator[tuple[int, ...]]:
    """How far apart two elements of a block may lie, each distance in one direction only."""
    for shift in itertools.product(*(range(1 - step, step) for step in block)):
        if shift >= (0,) * len(block):
            yield shift


def moved(value: Tensor, shift: tuple[int, ...], axes: Mapping[int, int]) -> Tensor:
    """At every place what lies `shift` behind it, along the axes of the dimensions."""
    for dim, axis in axes.items():
        value = value.roll(-shift[dim], axis) if dim < len(shift) and shift[dim] else value
    return value


def inside(shape: torch.Size, block: Block, shift: tuple[int, ...]) -> Tensor:
    """Where what lies `shift` behind is in the same block."""
    mask = torch.ones((), dtype=torch.bool)
    for dim, (size, step, far) in enumerate(zip(shape, block, shift)):
        place, other = torch.arange(size), torch.arange(size) + far
        line = (other >= 0) & (other < size) & (place // step == torch.div(other, step, rounding_mode="floor"))
        mask = mask & line.view([-1 if d == dim else 1 for d in range(len(shape))])
    return mask


def check_groups(made: Made, name: str, block: Block) -> None:
    """Raises BadInput for blocks across the groups of a convolution, whose connections read different things."""
    weight, x, use = made.use.weight, made.use.x, made.use
    assert weight is not None
    lengths = [(made.y.shape[axis], dim) for dim, axis in use.makes.items()]
    lengths += [(x.shape[axis], dim) for dim, axis in use.reads.items()] if x is not None else []
    groups = max(length // weight.shape[dim] for length, dim in lengths)
    for length, dim in lengths if groups > 1 else ():
        if length == weight.shape[dim] and block[dim] > 1 and length // groups % block[dim]:
            raise BadInput(
                f"A block of {name} lies across groups of its convolution, which K-FAC takes for one. Choose fisher_sample, gate or taylor."
            )


def quadratic(structure: Structure, line: Line, form: Tensor) -> Scores:
    """Of every unit along the line, the sum of the form's elements over all pairs of its indices."""
    halves = structure.gather({line: form})
    groups = [name for name, group in structure.groups.items() if line in group.members]
    return {name: structure.gather({line: halves[name].T.contiguous()})[name].diagonal() for name in groups}
