"""Which weights read, in the order in which the model calls them; what they read, as rows of a matrix product; where they are fitted.

    y = u W + b,    u: (groups, rows, inputs), W: (groups, inputs, outputs), a row for each sample and position

A weight is fitted where its output is first known to matter: at its call; or, where that output is added to something else with nothing
between but a factor and a shift for every output (a batch norm in evaluation, a layer's scale), in front of that sum. There what the other
summand lacks can be made up for, too.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .rules import Use, operator_of
from .watch import Call, Watch
from .ways import CONVOLUTIONS, Geometry

SUMS = {"add", "add_", "__add__", "__iadd__", "__radd__"}
ROWS = 2**16  # of positions that a matrix is fitted on, drawn: neighbours say the same
FACTORS = {"mul", "__mul__", "__rmul__", "multiply"}


@dataclass(frozen=True)
class Reading:
    """A call whose weight reads what is looked for.

    weight, bias: the parameters; None where there is no bias.
    reads: the dimension of the weight that is read along. groups: of a convolution.
    mean: the running mean of the batch norm behind it, which takes up a shift; norm: a parameter of that one.
    summed: it is fitted in front of the sum behind it.
    """

    call: Call
    weight: str
    bias: str | None
    reads: int
    groups: int
    mean: str | None = None
    norm: str | None = None
    summed: bool = False


@dataclass(eq=False)
class Made:
    """What a call made, followed to where it is added to something else.

    func, args, kwargs: the call. out: what has become of its output, by `links`, the calls since. other: what is added to it. version:
    that of what it reads. stands: that of `out`; once something is written into it, it is not what the links made.
    """

    reading: Reading
    use: Use
    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Tensor
    version: int
    links: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)
    other: Tensor | None = None
    stands: int = field(init=False)

    def __post_init__(self) -> None:
        self.follow(self.out)

    def follow(self, out: Tensor) -> None:
        self.out, self.stands = out, out._version

    @property
    def total(self) -> Tensor:
        return self.out if self.other is None else self.out + self.other

    @property
    def positions(self) -> int:
        """How many there are to choose from: of a convolution those of one image, else all rows."""
        shape = self.out.shape
        return math.prod(shape[2:]) if self.reading.call.operator in CONVOLUTIONS else shape.numel() // shape[self.axis]

    @property
    def axis(self) -> int:
        ((_, axis),) = self.use.makes.items()
        return axis

    def drawn(self, rows: int, seed: int) -> Tensor | None:
        """Positions that make up about so many rows, or twice as many as there are inputs; None: all."""
        shape, weight = self.out.shape, self.use.weight
        assert weight is not None
        of_each = max(1, shape.numel() // max(1, shape[self.axis] * self.positions))  # rows that a position has
        wanted = max(rows, 2 * weight.numel() // shape[self.axis]) // of_each + 1
        if wanted >= self.positions:
            return None
        chosen = torch.randperm(self.positions, generator=torch.Generator().manual_seed(seed))[:wanted]
        return chosen.sort().values.to(self.out.device)

    def read(self, some: Tensor | None = None) -> Tensor:
        """u, at some of the positions only."""
        rows = matrix_read(self.use, self.reading.call, self.args, self.kwargs, some)
        assert rows is not None  # it was, when the call was found
        return rows

    def rows(self, y: Tensor, some: Tensor | None = None) -> Tensor:
        """A tensor like the output, as (groups, rows, outputs), at some of the positions only."""
        return rows_of(y, self.reading, self.axis, some)

    def along(self, y: Tensor) -> Tensor:
        for func, args, kwargs in self.links:
            y = func(y, *args[1:], **kwargs)
        return y

    def again(self) -> Tensor:
        """`out`, made by the weight as it is now."""
        return self.along(self.func(*self.args, **self.kwargs))

    def factor(self) -> Tensor:
        """What the links multiply by: (groups, 1, outputs)."""
        dims = self.out.dim()
        like = self.out.new_empty([size if axis == self.axis % dims else 1 for axis, size in enumerate(self.out.shape)])
        return self.rows(self.along(torch.ones_like(like)) - self.along(torch.zeros_like(like)))[:, :1]


class Following(Watch):
    """Follows what some calls make, `pending`, to the sum that it enters.

    sure: of a factor that may be another one for every sample, since there is only one, whether it is taken for one that is not.
    """

    sure = True

    def __init__(self) -> None:
        super().__init__()
        self.pending: list[Made] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:  # fmt: skip
        kwargs = kwargs or {}
        self.pending = [made for made in self.pending if made.out._version == made.stands]
        mine = [made for made in self.pending if any(value is made.out for value in (*args, *kwargs.values()))]
        if mine and operator_of(func) in SUMS and self.adds(mine, args, kwargs):
            self.pending = [made for made in self.pending if made not in mine]
        result = super().__torch_function__(func, types, args, kwargs)
        for made in mine:
            if makes_another(result, made.out) and made in self.pending:
                linked = isinstance(result, Tensor) and result.shape == made.out.shape
                if linked and links(made, operator_of(func), args, kwargs, self.sure):
                    made.links.append((func, args, kwargs))
                    made.follow(result)
                else:
                    self.pending.remove(made)
        return result

    def adds(self, mine: list[Made], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        if kwargs or len(args) != 2 or not all(isinstance(value, Tensor) for value in args) or args[0].shape != args[1].shape:
            return False
        last = mine[-1]
        last.other = args[1] if args[0] is last.out else args[0]
        if last.use.x is not None and last.use.x._version == last.version and last.other is not last.out:
            self.sums(last)
        return True

    def sums(self, made: Made) -> None:
        raise NotImplementedError


def makes_another(result: object, out: Tensor) -> bool:
    """Whether this is a tensor, or holds some, and is not what went in."""
    parts = result if isinstance(result, (tuple, list)) else (result,)
    return result is not out and any(isinstance(part, Tensor) for part in parts)


def links(made: Made, operator: str, args: tuple[Any, ...], kwargs: dict[str, Any], sure: bool) -> bool:
    """Whether this only multiplies by a factor for every output, the same for all samples, and shifts."""
    if not args or args[0] is not made.out:
        return False
    if operator == "batch_norm":
        return not kwargs.get("training", args[5] if len(args) > 5 else False)
    if operator not in FACTORS or len(args) != 2 or kwargs:
        return False
    if not isinstance(args[1], Tensor):
        return isinstance(args[1], (int, float))
    dims = made.out.dim()
    if not sure and args[1].dim() == dims and len(made.out) == 1:
        return False
    return all(size == 1 or (place - args[1].dim()) % dims == made.axis % dims for place, size in enumerate(args[1].shape))


class Readings(Following):
    """Finds the calls of these weights, each with the dimension that is read along: None, whichever it is."""

    sure = False

    def __init__(self, wanted: Mapping[str, set[int] | None]) -> None:
        super().__init__()
        self.wanted = wanted
        self.found: dict[Call, Reading] = {}
        self.met: Counter[str] = Counter()  # calls of each weight; of each bias and each batch norm, too
        self.largest = 1  # bytes that a call reads and makes

    def meets(self, use: Use, call: Call, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if call.operator == "batch_norm":
            self.behind(use, args[0])
        y = func(*args, **kwargs)
        name = self.name(use.weight)
        self.met.update(one for one in (name, self.name(use.bias)) if one is not None)
        if name is None:
            return y
        self.largest = max(self.largest, sum(value.numel() * value.element_size() for value in (use.x, y) if value is not None))
        along = self.wanted.get(name, set())
        reads = set(use.reads) if along is None else along & use.reads.keys()
        matrix = matrix_read(use, call, args, kwargs) if reads else None
        if matrix is not None and use.x is not None:
            self.found[call] = Reading(call, name, self.name(use.bias), reads.pop(), len(matrix))
            self.reads(Made(self.found[call], use, func, args, kwargs, y, use.x._version))
        return y

    def reads(self, made: Made) -> None:
        """A call that was looked for."""
        self.pending.append(made)

    def behind(self, use: Use, x: Tensor) -> None:
        name = self.name(use.weight) or self.name(use.bias)
        for made in self.pending:
            if made.out is x and not made.links and name is not None:
                call = made.reading.call
                self.found[call] = replace(self.found[call], mean=f"{name.rpartition('.')[0]}.running_mean", norm=name)

    def sums(self, made: Made) -> None:
        call = made.reading.call
        self.found[call] = replace(self.found[call], summed=True)

    def once(self) -> dict[Call, Reading]:
        """Those whose weight is called once; a bias or a batch norm that is called again, behind another one, takes no shift."""
        return {
            call: replace(
                reading,
                bias=reading.bias if reading.bias is not None and self.met[reading.bias] == 1 else None,
                mean=reading.mean if reading.norm is not None and self.met[reading.norm] == 1 else None,
            )
            for call, reading in self.found.items()
            if self.met[reading.weight] == 1
        }


class Halting(Following):
    """Halts where these are fitted, and goes on with what the weight makes then."""

    def __init__(self, readings: Mapping[Call, Reading], halt: Callable[[Made], None]) -> None:
        super().__init__()
        self.readings, self.halt = readings, halt

    def meets(self, use: Use, call: Call, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        y = func(*args, **kwargs)
        reading = self.readings.get(call)
        if reading is None or use.x is None:
            return y
        made = Made(reading, use, func, args, kwargs, y, use.x._version)
        if reading.summed:
            self.pending.append(made)
            return y
        self.halt(made)
        return made.again()

    def sums(self, made: Made) -> None:
        self.halt(made)
        made.out.copy_(made.again())


def rows_of(y: Tensor, reading: Reading, axis: int, some: Tensor | None = None) -> Tensor:
    """See `Made.rows`. axis: that of the outputs."""
    if reading.call.operator in CONVOLUTIONS:
        y = y.flatten(2)
        y = (y if some is None else y[:, :, some]).movedim(1, -1).flatten(0, -2)
    else:
        y = y.movedim(axis, -1).reshape(-1, y.shape[axis])
        y = y if some is None else y[some]
    return torch.unflatten(y, 1, (reading.groups, -1)).movedim(1, 0)


def matrix_read(use: Use, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any], some: Tensor | None = None) -> Tensor | None:
    """u, or None where there is no way to make it."""
    weight, x = use.weight, use.x
    if weight is None or x is None or len(use.makes) != 1 or len(use.reads) != 1:
        return None
    ((dim, axis),) = use.reads.items()
    if call.operator in CONVOLUTIONS:
        how = CONVOLUTIONS[call.operator](*args, **kwargs)
        if how is None or x.dim() != weight.dim():
            return None
        return unfolded(*(spaced(x, weight, how) if how.transposed else (x, weight, how)), some)
    if weight.dim() != 2 or x.shape[axis] != weight.shape[dim]:
        return None
    rows = x.movedim(axis, -1).reshape(-1, x.shape[axis])
    return (rows if some is None else rows[some])[None]


def unfolded(x: Tensor, weight: Tensor, how: Geometry, some: Tensor | None = None) -> Tensor:
    """The windows that the kernel sees: (groups, samples x positions, places of the kernel x channels of a group)."""
    sizes = weight.shape[2:]
    view = F.pad(x, [p for padding in reversed(how.padding) for p in (padding, padding)])
    for axis, (size, stride, dilation) in enumerate(zip(sizes, how.stride, how.dilation), 2):
        view = view.unfold(axis, dilation * (size - 1) + 1, stride)[..., ::dilation]
    view = view.movedim(1, -1)  # (samples, *positions, *places, channels)
    positions = view.shape[1 : 1 + len(sizes)]
    where = torch.arange(math.prod(positions), device=x.device) if some is None else some
    index: tuple[slice | Tensor, ...] = (slice(None), *torch.unravel_index(where, positions))
    view = view[index]
    return torch.unflatten(view, -1, (how.groups, -1)).movedim(-2, 0).flatten(3).flatten(1, 2)


def spaced(x: Tensor, weight: Tensor, how: Geometry) -> tuple[Tensor, Tensor, Geometry]:
    """A transposed convolution as the convolution that it is: of x with zeros between its positions, by the kernel turned round."""
    shape = [(size - 1) * stride + 1 for size, stride in zip(x.shape[2:], how.stride)]
    wide = x.new_zeros(*x.shape[:2], *shape)
    index: tuple[slice, ...] = (slice(None), slice(None), *(slice(None, None, stride) for stride in how.stride))
    wide[index] = x
    sizes = zip(weight.shape[2:], how.dilation, how.padding, how.output_padding)
    ends = [(d * (k - 1) - p, d * (k - 1) - p + more) for k, d, p, more in sizes]
    n = len(shape)
    return F.pad(wide, [end for pair in reversed(ends) for end in pair]), weight, how._replace(stride=[1] * n, padding=[0] * n)


def matrix_of(weight: Tensor, reading: Reading) -> Tensor:
    """A weight as (groups, inputs, outputs)."""
    if weight.dim() == 2:
        return weight.movedim(reading.reads, 0)[None]
    if reading.reads == 0:  # transposed
        turned = torch.unflatten(weight.flip(*range(2, weight.dim())), 0, (reading.groups, -1))
        return turned.movedim((1, 2), (-2, -1)).flatten(1, -2)
    return torch.unflatten(weight, 0, (reading.groups, -1)).movedim(2, -1).flatten(2).mT


def weight_of(matrix: Tensor, like: Tensor, reading: Reading) -> Tensor:
    """The inverse of `matrix_of`."""
    if like.dim() == 2:
        return matrix[0].movedim(0, reading.reads)
    if reading.reads == 0:
        turned = torch.unflatten(matrix, 1, (*like.shape[2:], like.shape[0] // reading.groups)).movedim((-2, -1), (1, 2))
        return turned.flatten(0, 1).flip(*range(2, like.dim()))
    return torch.unflatten(matrix.mT, 2, (*like.shape[2:], like.shape[1])).movedim(-1, 2).flatten(0, 1)
