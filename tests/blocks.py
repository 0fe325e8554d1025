"""Blocks of random nets. A block is a function of a stream and of plain values; it returns a module and the stream that this makes.

`BLOCKS` holds for each the values that it may be given (BODY: a list of blocks) and the kinds of stream that it takes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from cases import Excite, Net
from wires import APPROXIMATE, FROZEN, UNSURE, Stream, tie

BODY = "a list of blocks"
WIDTHS = (2, 4, 6, 8)
NORMS = ("none", "batch", "layer", "group", "rms", "instance")
ACTS = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid, "gelu": nn.GELU, "none": nn.Identity, "hardswish": nn.Hardswish}
Built = tuple[nn.Module, Stream]
Building = Callable[..., Built]
Option = Sequence[object] | str


@dataclass(frozen=True)
class Block:
    build: Building
    options: tuple[Option, ...]
    kinds: tuple[str, ...]
    place: str  # "inside": keeps kind and side, so that it may lie in a body; "between": changes the side; a kind: turns into that


BLOCKS: dict[str, Block] = {}

library = torch.library.Library("walk", "FRAGMENT")
library.define("mystery(Tensor x) -> Tensor")
library.impl("mystery", lambda x: x + 1, "CompositeExplicitAutograd")  # no rule says what it does
library.impl("mystery", torch.library.fallthrough_kernel, "Autograd")


def block(*options: Option, kinds: str = "image series vector", place: str = "inside") -> Callable[[Building], Building]:
    def register(function: Building) -> Building:
        BLOCKS[function.__name__] = Block(function, options, tuple(kinds.split()), place)
        return function

    return register


def sequence(body: Sequence[tuple], x: Stream) -> Built:
    modules = []
    for name, *values in body:
        module, x = BLOCKS[name].build(x, *values)
        modules.append(module)
    return nn.Sequential(*modules), x


# parts of blocks --------------------------------------------------------------------------------------------------------------------------


def reading(x: Stream, width: int, k: int = 1) -> nn.Module:
    """A layer with a weight that reads these channels."""
    layer = nn.Conv2d(x.width, width, k, padding=k // 2) if x.kind == "image" else nn.Linear(x.width, width)
    x.read_by(layer.weight, 1)
    return layer


def mapping(x: Stream, width: int, k: int = 1) -> Built:
    """A layer from these channels to new ones."""
    layer = reading(x, width, k)
    return layer, x.made(width, (layer.weight, 0), (layer.bias, 0))


def matching(x: Stream, like: Stream) -> Built:
    """A layer from these channels to the wires of another stream."""
    layer = reading(x, like.width)
    return layer, like.read_by(layer.weight, 0).read_by(layer.bias, 0)


def first(x: Stream, module: nn.Module) -> nn.Module:
    """A module whose channels are dimension 1."""
    return module if x.axis == 1 else Net(lambda n, v: n.inner(v.transpose(1, -1)).transpose(1, -1), inner=module)


def last(x: Stream, module: nn.Module) -> nn.Module:
    """A module whose channels are the last dimension."""
    return module if x.axis == -1 else Net(lambda n, v: n.inner(v.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), inner=module)


def pooled(x: Stream, v: Tensor) -> Tensor:
    return v if x.kind == "vector" else v.mean((2, 3) if x.kind == "image" else 1)


def spread(x: Stream, v: Tensor) -> Tensor:
    return v[:, :, None, None] if x.kind == "image" else v[:, None] if x.kind == "series" else v


def normed(x: Stream, norm: str) -> nn.Module:
    if norm == "none" or (norm == "instance" and x.kind == "vector"):
        return nn.Identity()
    if norm in ("layer", "rms"):
        module = nn.LayerNorm(x.width) if norm == "layer" else nn.RMSNorm(x.width)
        x.at_most(APPROXIMATE)
    elif norm == "group":
        module = nn.GroupNorm(math.gcd(x.width, 2), x.width)
        x.split(math.gcd(x.width, 2)).at_most(APPROXIMATE)
    else:
        kinds = {"batch": {"image": nn.BatchNorm2d}, "instance": {"image": nn.InstanceNorm2d, "series": nn.InstanceNorm1d}}[norm]
        module = kinds.get(x.kind, nn.BatchNorm1d)(x.width, affine=True)
    for value in module.parameters():
        x.read_by(value, 0)
    return last(x, module) if norm in ("layer", "rms") else first(x, module)


# blocks of all kinds ----------------------------------------------------------------------------------------------------------------------


@block(WIDTHS, NORMS, tuple(ACTS))
def layer(x: Stream, width: int, norm: str, act: str) -> Built:
    f, y = mapping(x, width, 3)
    return nn.Sequential(f, normed(y, norm), ACTS[act]()), y


@block(BODY)
def residual(x: Stream, body: Sequence[tuple]) -> Built:
    f, y = sequence(body, x)
    g, z = matching(y, x)
    return Net(lambda n, v: v + n.g(n.f(v)), f=f, g=g), z


@block(BODY)
def plain_residual(x: Stream, body: Sequence[tuple]) -> Built:
    """The body's own channels are added, where they are as many."""
    f, y = sequence(body, x)
    g, z = (nn.Identity(), tie(x, y)) if y.width == x.width else matching(y, x)
    return Net(lambda n, v: n.g(n.f(v)) + v, f=f, g=g), z


@block(BODY)
def concatenated(x: Stream, body: Sequence[tuple]) -> Built:
    f, y = sequence(body, x)
    return Net(lambda n, v: torch.cat([v, n.f(v)], x.axis), f=f), x.beside(y)


JOINS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "mul": torch.mul,
    "stack": lambda a, b: torch.stack([a, b], 1).sum(1),
    "most": lambda a, b: torch.stack([a, b]).amax(0),
    "where": lambda a, b: torch.where(a > 0, a, b),
    "in place": lambda a, b: (a * 1).add_(b),
    "copied": lambda a, b: torch.zeros_like(a).copy_(a) - b,
}


@block(tuple(JOINS), BODY, BODY)
def fork(x: Stream, how: str, one: Sequence[tuple], other: Sequence[tuple]) -> Built:
    f, y = sequence(one, x)
    g, z = sequence(other, x)
    h, z = matching(z, y)
    return Net(lambda n, v: JOINS[how](n.f(v), n.h(n.g(v))), f=f, g=g, h=h), z


@block(WIDTHS, ("glu", "chunk", "split", "slices"))
def gated(x: Stream, width: int, how: str) -> Built:
    f = reading(x, 2 * width)

    def halves(n: Net, v: Tensor) -> tuple[Tensor, ...]:
        if how == "slices":
            return (v[:, : n.half], v[:, n.half :]) if x.axis == 1 else (v[..., : n.half], v[..., n.half :])
        return v.chunk(2, x.axis) if how == "chunk" else v.split(n.half, x.axis)

    def forward(n: Net, v: Tensor) -> Tensor:
        if how == "glu":
            return F.glu(n.f(v), x.axis)
        a, b = halves(n, n.f(v))
        return a * b.sigmoid()

    return Net(forward, f=f, half=width), x.made(width, (f.weight, 0), (f.bias, 0))


@block(WIDTHS, WIDTHS, WIDTHS)
def parted(x: Stream, one: int, other: int, width: int) -> Built:
    """A split into parts whose sizes are attributes, each with a reader of its own."""
    f = reading(x, one + other)
    a, b = x.made(one), x.made(other)
    a.beside(b).read_by(f.weight, 0).read_by(f.bias, 0)
    g, y = mapping(a, width)
    h, z = matching(b, y)

    def forward(n: Net, v: Tensor) -> Tensor:
        p, q = n.f(v).split([n.one, n.other], x.axis)
        return n.g(p) + n.h(q)

    return Net(forward, f=f, g=g, h=h, one=one, other=other), z


@block(WIDTHS)
def excited(x: Stream, inner: int) -> Built:
    """Squeeze and excitation."""
    gate = Excite(x.width, inner)
    x.read_by(gate.down.weight, 1).read_by(gate.up.weight, 0).read_by(gate.up.bias, 0)
    x.made(inner, (gate.down.weight, 0), (gate.down.bias, 0), (gate.up.weight, 1))
    return Net(lambda n, v: v * spread(x, n.gate.up(n.gate.down(pooled(x, v)).relu()).sigmoid()), gate=gate), x


@block()
def scaled(x: Stream) -> Built:
    """A bare parameter and a buffer, both indexed by channel."""
    shape = (x.width, 1, 1) if x.axis == 1 else (x.width,)
    module = Net(lambda n, v: v * n.gain + n.shift, gain=nn.Parameter(torch.rand(shape)))
    module.register_buffer("shift", torch.rand(1, *shape))
    x.read_by(module.gain, 0).read_by(module.shift, 1)
    return module, x


@block(WIDTHS)
def called_twice(x: Stream, width: int) -> Built:
    f, y = mapping(x, width)
    g, z = mapping(y, width)
    return Net(lambda n, v: n.g(n.g(n.f(v)).relu()), f=f, g=g), tie(y, z)


@block(WIDTHS)
def tied(x: Stream, width: int) -> Built:
    """Two layers of one weight."""
    f, y = mapping(x, width)
    g, z = mapping(y, width)
    h = type(g)(width, width, 1) if x.kind == "image" else nn.Linear(width, width)
    h.weight = g.weight
    y.read_by(h.bias, 0)
    return Net(lambda n, v: n.h(n.g(n.f(v)).sigmoid()), f=f, g=g, h=h), tie(y, z)


@block(WIDTHS)
def in_place(x: Stream, width: int) -> Built:
    f, y = mapping(x, width)
    g, z = matching(x, y)
    return Net(lambda n, v: n.f(v).relu_().mul_(2).add_(n.g(v)).clamp_(min=-1), f=f, g=g), z


@block(("softmax", "mean", "amax", "normalise"))
def statistic(x: Stream, how: str) -> Built:
    def forward(n: Net, v: Tensor) -> Tensor:
        if how == "softmax":
            return v * v.softmax(x.axis)
        if how == "normalise":
            return v / (v * v).sum(x.axis, keepdim=True).add(1).sqrt()
        return v - (v.mean(x.axis, keepdim=True) if how != "amax" else v.amax(x.axis, keepdim=True))

    return Net(forward), x.at_most(APPROXIMATE)


@block()
def leaky(x: Stream) -> Built:
    module = nn.PReLU(x.width)
    x.read_by(module.weight, 0)
    return first(x, module), x


@block()
def unknown(x: Stream) -> Built:
    return Net(lambda n, v: torch.ops.walk.mystery(v)), x.at_most(FROZEN).made(x.width, state=FROZEN)


@block(("index_select", "index", "flip twice"))
def picked(x: Stream, how: str) -> Built:
    """Channels by number."""
    if how == "flip twice":
        return Net(lambda n, v: v.flip(x.axis).flip(x.axis)), x
    order = [x.width - 1, *range(x.width - 1)]

    def forward(n: Net, v: Tensor) -> Tensor:
        if how == "index_select":
            return v.index_select(x.axis, torch.tensor(order, device=v.device))
        return v[:, order] if x.axis == 1 else v[..., order]

    return Net(forward), x.at_most(FROZEN).made(x.width, state=FROZEN)


@block()
def padded(x: Stream) -> Built:
    """Zeros on both sides of the channels."""
    zero = x.made(1, state=FROZEN)
    return Net(lambda n, v: F.pad(v, (0, 0, 0, 0, 1, 1) if x.axis == 1 else (1, 1))), zero.beside(x).beside(zero)


@block()
def by_size(x: Stream) -> Built:
    return Net(lambda n, v: v / v.shape[x.axis]), x.at_most(UNSURE)


@block(("written", "kept", "asked"))
def viewed(x: Stream, how: str) -> Built:
    """A view with the number of channels in it: written in the code, kept in an attribute, or asked of the tensor."""
    width = x.width

    def forward(n: Net, v: Tensor) -> Tensor:
        channels = {"written": width, "kept": n.width, "asked": v.shape[x.axis]}[how]
        return v.reshape(-1, channels, x.side, x.side) if x.axis == 1 else v.reshape(*v.shape[:-1], channels)

    return Net(forward, width=width), x.at_most(UNSURE) if how == "written" else x


@block(WIDTHS, ("einsum", "matmul", "transposed"))
def bare(x: Stream, width: int, how: str) -> Built:
    """A product with a bare parameter."""
    shape = (width, x.width) if how == "einsum" else (x.width, width)
    weight = nn.Parameter(torch.randn(shape))
    a = x.axis

    def forward(n: Net, v: Tensor) -> Tensor:
        if how == "einsum":
            return torch.einsum("nihw,oi->nohw" if a == 1 else "...i,oi->...o", v, n.weight)
        if how == "matmul":
            return (v.movedim(a, -1) @ n.weight).movedim(-1, a)
        return F.linear(v.transpose(a, -1), n.weight.t()).transpose(a, -1)

    x.read_by(weight, 1 if how == "einsum" else 0)
    return Net(forward, weight=weight), x.made(width, (weight, 0 if how == "einsum" else 1))


@block()
def repeated(x: Stream) -> Built:
    return Net(lambda n, v: v.repeat(*((1, 2, 1, 1) if x.axis == 1 else (1,) * (v.dim() - 1) + (2,)))), x.beside(x)


@block(WIDTHS)
def weight_normed(x: Stream, width: int) -> Built:
    f = weight_norm(nn.Conv2d(x.width, width, 1) if x.kind == "image" else nn.Linear(x.width, width))
    return f, x.at_most(UNSURE).made(width, (f.bias, 0), state=UNSURE)


@block(WIDTHS)
def permuted(x: Stream, width: int) -> Built:
    """A linear layer over the channels, wherever they stand."""
    f, y = mapping(replace(x, kind="series"), width)
    return last(x, f), replace(y, kind=x.kind)


@block(WIDTHS, (2, 4), kinds="vector")
def outer_product(x: Stream, one: int, other: int) -> Built:
    f, a = mapping(x, one)
    g, b = mapping(x, other)
    h, y = mapping(x, 4)
    out = nn.Linear(one * other, 4)
    a.read_by(out.weight, 1, other)
    b.wires[0].members += a.wires[0].members[-1:]
    tie(y, x.made(4, (out.weight, 0), (out.bias, 0)))
    return Net(lambda n, v: n.h(v) + n.out(torch.einsum("na,nb->nab", n.f(v), n.g(v)).flatten(1)), f=f, g=g, h=h, out=out), y
