"""How a weight's gradients of single samples are made, from x, which the weight read, and g = dL/dy.

    y = W x, one position a sample    sum over s of |g_o x_i|^p = (|g|^p)^T |x|^p
    y = W x, more positions           g_s^T x_s, a product for each sample
    a convolution                     the same, x_s being the windows that the kernel sees, one for each position of y
    ... in groups of channels         the weight gradient of a convolution in groups, whose groups are the samples
    rows that are looked up           g, summed over the positions that looked a row up
    y = w n + b, element by element   sum over positions of g n, and of g
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .axes import Axis, apart, rows, summed
from .rules import Axes, Use, operator_of
from .watch import swapped

CHUNK = 1 << 21  # elements of what samples are taken together for: it stays in the cache


class Place(NamedTuple):
    """How many samples there are, and where they are in what is read and made; nowhere, if there is but one."""

    samples: int
    x: Axis | None
    y: Axis | None

    def known(self, reads: bool) -> bool:
        return self.samples == 1 or (self.y is not None and (self.x is not None or not reads))


class Way(NamedTuple):
    """What to keep for the backward pass, and the function of that and of g = dL/dy, in float32 at least: the sum over samples of
    |dL_s/dw|^power."""

    kept: Tensor
    sums: Callable[[Tensor, Tensor], Tensor]


def way_of(
    use: Use, place: Place, power: int, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Way | None:  # fmt: skip
    """How it goes for the weight of this call; None where there is no way."""
    weight, x, name = use.weight, use.x, operator_of(func)
    assert weight is not None  # it is wanted
    if name in CONVOLUTIONS and x is not None:
        geometry = CONVOLUTIONS[name](*args, **kwargs)
        fits = geometry is not None and x.dim() == weight.dim() and (place.x is None or place.x.axis == 0)
        return Way(x, lambda x, g: of_convolution(x, g, weight, geometry, place, power)) if fits and geometry is not None else None
    if name == "embedding":
        return Way(args[1], lambda indices, g: of_rows(indices, g if use.live is None else g * use.live, weight, place, power))
    if x is not None:
        return Way(x, lambda x, g: of_matrix(x, g, use, place, power)) if weight.dim() == 2 else None
    others = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor) and v is not weight and v is not use.bias]
    if use.sign != 1 or not others:
        return None

    def sums(x: Tensor, g: Tensor) -> Tensor:
        """y = w n + b is linear in w: n is what it makes with w = 1 and b = 0."""
        ones = {id(weight): torch.ones_like(weight), id(use.bias): None if use.bias is None else torch.zeros_like(use.bias)}
        instead = {key: value.detach() for key, value in ones.items() if value is not None}
        some_args, some_kwargs = swapped({**instead, id(others[0]): x}, args, kwargs)
        return powers(of_elements(func(*some_args, **some_kwargs).to(g.dtype) * g, weight, use.makes, place), power)

    return Way(others[0], sums)


def powers(gradients: Tensor, power: int) -> Tensor:
    """The sum over samples, the first dimension, of |gradient|^power."""
    return (gradients.square() if power == 2 else gradients.abs()).sum(0)


def together(*sizes: int) -> int:
    """How many samples are taken together, where one needs so many elements."""
    return max(1, CHUNK // max(sizes))


def of_elements(gradients: Tensor, value: Tensor, axes: Axes, place: Place) -> Tensor:
    """Gradients of the elements of what is made, summed over those that share an element of the parameter: (samples, *value.shape)."""
    kept = [axis for dim, axis in sorted(axes.items()) if value.shape[dim] > 1]
    return summed(gradients, place.y, place.samples, kept).reshape(place.samples, *value.shape)


def of_matrix(x: Tensor, g: Tensor, use: Use, place: Place, power: int) -> Tensor:
    """g_s^T x_s; of one position a sample, |g_o x_i|^power = |g_o|^power |x_i|^power."""
    (x_axis,), ((dim, y_axis),) = use.reads.values(), use.makes.items()
    x, g = rows(x.to(g.dtype), place.x, place.samples, x_axis), rows(g, place.y, place.samples, y_axis)
    if x.shape[1] == 1:
        total = (g[:, 0].abs() ** power).T @ (x[:, 0].abs() ** power)
    else:
        (total,) = of_products(x, g, power, as_it_is, x.shape[2])
    return total if dim == 0 else total.T


Read = Callable[[Tensor], Iterable[Tensor]]


def as_it_is(some: int) -> Read:
    return lambda x: [x]


def of_products(x: Tensor, g: Tensor, power: int, reader: Callable[[int], Read], inputs: int) -> list[Tensor]:
    """The sum over samples of |g_s^T v_s|^power, (outputs, inputs), for every v that is read of x.

    x: (samples, ...). g: (samples, positions, outputs). reader: how many samples come together, to what reads them, one v after the other:
    (samples, positions, inputs).
    """
    samples, positions, outputs = g.shape
    some = min(samples, together(outputs * inputs, positions * inputs, positions * outputs, x[0].numel()))
    read, gradients, ones = reader(some), g.new_empty(some, outputs, inputs), g.new_ones(some)  # once for all: fresh memory is slow
    totals: dict[int, Tensor] = defaultdict(lambda: g.new_zeros(outputs * inputs))
    for a, b in zip(torch.split(x, some), torch.split(g, some)):
        for number, seen in enumerate(read(a)):
            made = torch.bmm(b.mT, seen, out=gradients[: len(a)]).flatten(1)
            totals[number].addmv_((made.square_() if power == 2 else made.abs_()).T, ones[: len(a)])
    return [total.view(outputs, inputs) for total in totals.values()]


def of_rows(indices: Tensor, g: Tensor, weight: Tensor, place: Place, power: int) -> Tensor:
    """Each sample's sum over the positions that looked up the same row."""
    number, width = weight.shape
    g = rows(g, place.y, place.samples, -1)
    looked = apart(indices, place.y, place.samples).flatten(1) + number * torch.arange(place.samples, device=g.device)[:, None]
    which, back = torch.unique(looked, return_inverse=True)
    gradients = g.new_zeros(len(which), width).index_add_(0, back.flatten(), g.flatten(0, 1))
    return g.new_zeros(number, width).index_add_(0, which % number, gradients.abs() ** power)


# convolutions ---------------------------------------------------------------------------------------------------------------------------


class Geometry(NamedTuple):
    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    transposed: bool
    output_padding: Sequence[int]
    groups: int


Sizes = int | Sequence[int]


def geometry(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Sizes = 1, padding: Sizes | str = 0, dilation: Sizes = 1,
    groups: int = 1,
) -> Geometry | None:  # fmt: skip
    n = weight.dim() - 2
    if isinstance(padding, str):
        whole = [d * (k - 1) if padding == "same" else 0 for d, k in zip(every(dilation, n), weight.shape[2:])]
        if any(size % 2 for size in whole):
            return None  # more on one side than on the other
        padding = [size // 2 for size in whole]
    return Geometry(every(stride, n), every(padding, n), every(dilation, n), False, [0] * n, groups)


def transposed(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Sizes = 1, padding: Sizes = 0, output_padding: Sizes = 0,
    groups: int = 1, dilation: Sizes = 1,
) -> Geometry:  # fmt: skip
    n = weight.dim() - 2
    return Geometry(every(stride, n), every(padding, n), every(dilation, n), True, every(output_padding, n), groups)


def every(size: Sizes, n: int) -> Sequence[int]:
    """One number for every spatial dimension, or the same for all."""
    return [size] * n if isinstance(size, int) else list(size) * (n if len(size) == 1 else 1)


CONVOLUTIONS: dict[str, Callable[..., Geometry | None]] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), geometry),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), transposed),
}


def of_convolution(x: Tensor, g: Tensor, weight: Tensor, how: Geometry, place: Place, power: int) -> Tensor:
    x, g = side(x.to(g.dtype), place.x, place.samples), side(g, place.y, place.samples)
    if how.groups > 1:
        return of_groups(x, g, weight, how, power)
    if how.transposed:  # it is the other way round: y is what has windows, one for each position of x
        x, g = g, x
    x, sizes, inputs = x.movedim(2, -1), weight.shape[2:], weight[0].numel() // weight.shape[2]
    g, positions = g.movedim(2, -1).flatten(1, -2), g.shape[3:]
    if {*sizes, *how.stride} == {1} and not any((*how.padding, *how.output_padding)):
        totals = of_products(x.flatten(1, -2), g, power, as_it_is, inputs)
    else:
        totals = of_products(x, g, power, lambda some: windows(x[:some], sizes, positions, how), inputs)
    return torch.stack(totals, 1).view(weight.shape[0], *sizes, weight.shape[1]).movedim(-1, 1)


def windows(like: Tensor, sizes: Sequence[int], positions: Sequence[int], how: Geometry) -> Read:
    """Reads what a kernel sees of (samples, images, ..., channels): for each place in the kernel's first dimension,
    (samples, positions, places in its other dimensions x channels).

    From place to place that is the same but for a shift of whole rows, so it is copied once for them all (unless the kernel jumps), and
    always to the same memory.
    """
    n = len(sizes)
    spatial = [size + 2 * p for size, p in zip(like.shape[2:-1], how.padding)]
    view = inner = like.new_zeros(*like.shape[:2], *spatial, like.shape[-1])
    for axis, p in enumerate(how.padding, 2):
        inner = inner.narrow(axis, p, like.shape[axis])
    for axis in range(1, n):
        span = how.dilation[axis] * (sizes[axis] - 1) + 1
        view = view.unfold(2 + axis, span, how.stride[axis])[..., :: how.dilation[axis]].narrow(2 + axis, 0, positions[axis])
    view = view.movedim(2 + n, -1)
    copied = view.new_empty(view.shape)
    starts = [place * how.dilation[0] for place in range(sizes[0])]
    rows = [slice(start, start + (positions[0] - 1) * how.stride[0] + 1, how.stride[0]) for start in starts]

    def read(x: Tensor) -> Iterator[Tensor]:
        inner[: len(x)], copied[: len(x)] = x, view[: len(x)]
        for some in rows:
            yield copied[: len(x), :, some].flatten(2 + n).flatten(1, -2)

    return read


def of_groups(x: Tensor, g: Tensor, weight: Tensor, how: Geometry, power: int) -> Tensor:
    """The samples side by side as groups of channels: the gradient of such a convolution's weight has each sample's gradient for itself."""
    some = together(weight.numel(), x[0].numel(), g[0].numel())

    def part(a: Tensor, b: Tensor) -> Tensor:
        n = len(a)
        shape = b.new_empty(()).expand(n * weight.shape[0], *weight.shape[1:])  # its numbers are not looked at
        a, b = (value.transpose(0, 1).flatten(1, 2) for value in (a, b))
        _, gradients, _ = torch.ops.aten.convolution_backward(
            b, a, shape, None, how.stride, how.padding, how.dilation, how.transposed, how.output_padding, n * how.groups,
            (False, True, False),
        )  # fmt: skip
        return powers(gradients.view(n, *weight.shape), power)

    return sum_of(part(a, b) for a, b in zip(torch.split(x, some), torch.split(g, some)))


def side(x: Tensor, samples: Axis | None, count: int) -> Tensor:
    """(samples, images of one sample, channels, ...)."""
    y = apart(x, samples, count)
    return y if y.dim() > x.dim() else y.unsqueeze(1)


def sum_of(parts: Iterable[Tensor]) -> Tensor:
    return functools.reduce(Tensor.add_, parts)
