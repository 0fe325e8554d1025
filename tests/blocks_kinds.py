"""Blocks of random nets that know what their stream holds: pictures, or series of steps. And those that turn one into another."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blocks import WIDTHS, Built, block, mapping
from cases import Net, Standardised, shuffled
from wires import FREE, UNSURE, Stream

# pictures ---------------------------------------------------------------------------------------------------------------------------------


@block(kinds="image")
def depthwise(x: Stream) -> Built:
    f = nn.Conv2d(x.width, x.width, 3, padding=1, groups=x.width)
    return f, x.read_by(f.weight, 0).read_by(f.bias, 0)


@block(WIDTHS, (2, 4), ("conv", "transposed"), kinds="image")
def grouped(x: Stream, width: int, groups: int, how: str) -> Built:
    """Groups of both sides leave together; within them each side is free."""
    g = math.gcd(groups, x.width)
    width = g * max(2, width // g)
    x.split(g)
    if x.width == g > 1:  # nothing within its groups
        x.at_most(UNSURE)
    kind = nn.Conv2d if how == "conv" else nn.ConvTranspose2d
    f = kind(x.width, width, 3, padding=1, groups=g)
    x.read_by(f.weight, 1 if how == "conv" and g == 1 else 0) if how != "conv" or g == 1 else None
    y = x.made(width, (f.bias, 0), *([(f.weight, 0)] if how == "conv" else []))
    return f, y.split(g)


@block(WIDTHS, (2, 4), ("module", "views"), kinds="image")
def shuffle(x: Stream, width: int, groups: int, how: str) -> Built:
    width = groups * max(2, width // groups)
    f, y = mapping(x, width)
    g = nn.ChannelShuffle(groups) if how == "module" else Net(lambda n, v: shuffled(v, n.groups), groups=groups)
    return nn.Sequential(f, g), replace(y.split(groups), order=f"shuffled by {groups}")


@block(WIDTHS, kinds="image")
def pixel_shuffle(x: Stream, width: int) -> Built:
    f = nn.Conv2d(x.width, 4 * width, 1)
    x.read_by(f.weight, 1)
    return nn.Sequential(f, nn.PixelShuffle(2), nn.AvgPool2d(2)), x.made(width, (f.weight, 0), (f.bias, 0))


@block(WIDTHS, kinds="image")
def pixel_unshuffle(x: Stream, width: int) -> Built:
    f = nn.Conv2d(4 * x.width, width, 1)
    x.read_by(f.weight, 1, 4)
    return nn.Sequential(nn.Upsample(scale_factor=2), nn.PixelUnshuffle(2), f), x.made(width, (f.weight, 0), (f.bias, 0))


@block(WIDTHS, kinds="image")
def standardised(x: Stream, width: int) -> Built:
    f = Standardised(x.width, width, 3)
    x.read_by(f.weight, 1)
    return f, x.made(width, (f.weight, 0), (f.bias, 0))


SPACES = {
    "max": lambda: nn.MaxPool2d(3, 1, 1),
    "average": lambda: nn.AvgPool2d(3, 1, 1),
    "flip": lambda: Net(lambda n, v: v.flip(2)),
    "roll": lambda: Net(lambda n, v: torch.roll(v, (1, 1), (2, 3))),
    "reflect": lambda: Net(lambda n, v: F.pad(v, (1, 1, 1, 1), "reflect")[:, :, 1:-1, 1:-1]),
    "replicate": lambda: nn.Sequential(nn.ReplicationPad2d(1), nn.AvgPool2d(3, 1)),
    "zeros": lambda: nn.Sequential(nn.ZeroPad2d(1), nn.MaxPool2d(3, 1)),
    "picked": lambda: Net(lambda n, v: v.index_select(2, torch.arange(v.shape[2] - 1, -1, -1, device=v.device))),
    "centre": lambda: Net(lambda n, v: v - v.mean((2, 3), keepdim=True).expand_as(v)),
}


@block(tuple(SPACES), kinds="image")
def in_space(x: Stream, how: str) -> Built:
    """Nothing happens to channels."""
    return SPACES[how](), x


RESIZES = {
    "max": (0.5, lambda: nn.MaxPool2d(2)),
    "slice": (0.5, lambda: Net(lambda n, v: v[:, :, ::2, ::2])),
    "adaptive": (0.5, lambda: Net(lambda n, v: F.adaptive_avg_pool2d(v, v.shape[-1] // 2))),
    "nearest": (2, lambda: nn.Upsample(scale_factor=2)),
    "bilinear": (2, lambda: nn.Upsample(scale_factor=2, mode="bilinear")),
}


@block(tuple(RESIZES), kinds="image", place="between")
def resized(x: Stream, how: str) -> Built:
    factor, make = RESIZES[how]
    side = int(x.side * factor)
    return (make(), replace(x, side=side)) if 2 <= side <= 8 and x.side % 2 == 0 else (nn.Identity(), x)


# series -----------------------------------------------------------------------------------------------------------------------------------


class Attention(nn.Module):
    """Fewer key and value heads than query heads, if asked; sizes are attributes."""

    def __init__(self, width: int, heads: int, kv: int, dim: int, how: str, fused: bool, sized: bool) -> None:
        super().__init__()
        self.heads, self.kv, self.dim, self.repeats, self.queries, self.keys = heads, kv, dim, heads // kv, heads * dim, kv * dim
        self.how, self.sized, self.shared = how, sized, kv < heads
        if fused:
            self.qkv = nn.Linear(width, (heads + 2 * kv) * dim)
        else:
            self.q, self.k, self.v = nn.Linear(width, heads * dim), nn.Linear(width, kv * dim), nn.Linear(width, kv * dim)
        self.out = nn.Linear(heads * dim, width)
        self.fused = fused

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        if self.fused:
            q, k, v = self.qkv(x).split([self.queries, self.keys, self.keys], -1)
        else:
            q, k, v = self.q(x), self.k(x), self.v(x)
        q = q.view(n, t, self.heads, self.dim).transpose(1, 2)
        k, v = (self.every_head(y.view(n, t, self.kv, self.dim).transpose(1, 2)) for y in (k, v))
        return self.out(self.attended(q, k, v).transpose(1, 2).flatten(2))

    def every_head(self, x: Tensor) -> Tensor:
        if not self.shared:  # a comparison of sizes could come out otherwise when they are smaller
            return x
        if self.how == "manual":
            n, _, t, _ = x.shape
            return x[:, :, None].expand(n, self.kv, self.repeats, t, self.dim).reshape(n, -1, t, self.dim)
        return x.repeat_interleave(self.repeats, 1)

    def attended(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scale = self.dim**-0.5 if self.sized else 0.5
        if self.how == "fused":
            return F.scaled_dot_product_attention(q, k, v, scale=scale)
        if self.how == "einsum":
            return torch.einsum("bhqk,bhkd->bhqd", (torch.einsum("bhqd,bhkd->bhqk", q, k) * scale).softmax(-1), v)
        return (q @ k.transpose(-2, -1) * scale).softmax(-1) @ v


@block((2, 4), (1, 2, 4), (2, 4), ("manual", "fused", "einsum"), (False, True), (False, True), kinds="series")
def attention(x: Stream, heads: int, kv: int, dim: int, how: str, fused: bool, sized: bool) -> Built:
    """Whole heads leave, and dimensions within heads, unless the scale depends on their number."""
    kv = min(kv, heads)
    f = Attention(x.width, heads, kv, dim, how, fused, sized)
    state = UNSURE if kv == 1 and (sized or dim == 2) else FREE  # one head stays, and of one dimension PyTorch makes another product
    for layer in [f.qkv] if fused else [f.q, f.k, f.v]:
        x.read_by(layer.weight, 1).made(layer.out_features, (layer.weight, 0), (layer.bias, 0), state=state)
    x.made(heads * dim, (f.out.weight, 1), state=state)
    return Net(lambda n, v: v + n.f(v), f=f), x.read_by(f.out.weight, 0).read_by(f.out.bias, 0)


@block((2, 4), (2, 3), kinds="series")
def packaged_attention(x: Stream, heads: int, dim: int) -> Built:
    """PyTorch's own module, which keeps its width in many places."""
    f, y = mapping(x, heads * dim)
    g = nn.MultiheadAttention(heads * dim, heads, batch_first=True)
    return Net(lambda n, v: n.g(n.f(v), n.f(v), n.f(v), need_weights=False)[0], f=f, g=g), y.at_most(UNSURE).made(heads * dim, state=UNSURE)


CELLS = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}


@block(tuple(CELLS), WIDTHS, (1, 2), (False, True), kinds="series")
def recurrent(x: Stream, cell: str, hidden: int, layers: int, both: bool) -> Built:
    """All layers, and both directions, have the same hidden states."""
    f = CELLS[cell](x.width, hidden, layers, batch_first=True, bidirectional=both)
    named = dict(f.named_parameters())
    for end in ("", "_reverse")[: 1 + both]:
        x.read_by(named[f"weight_ih_l0{end}"], 1)
    y = x.made(hidden, *((value, 0) for value in named.values()), *((v, 1) for name, v in named.items() if name.startswith("weight_hh")))
    return Net(lambda n, v: n.f(v)[0], f=f), y.beside(y) if both else y


@block(WIDTHS, kinds="series")
def convolved(x: Stream, width: int) -> Built:
    f = nn.Conv1d(x.width, width, 3, padding=1)
    x.read_by(f.weight, 1)
    return Net(lambda n, v: n.f(v.transpose(1, 2)).transpose(1, 2), f=f), x.made(width, (f.weight, 0), (f.bias, 0))


STEPS = {
    "flip": lambda v: v.flip(1),
    "roll": lambda v: torch.roll(v, 1, 1),
    "picked": lambda v: v[:, [0, -1, 0, 0]],
    "shift": lambda v: torch.cat([v[:, 1:], v[:, :1]], 1),
    "taken apart": lambda v: torch.stack(v.unbind(1)[::-1], 1),
    "softmax": lambda v: v.softmax(1),
    "pooled": lambda v: F.avg_pool1d(v.transpose(1, 2), 3, 1, 1).transpose(1, 2),
}


@block(tuple(STEPS), kinds="series")
def in_time(x: Stream, how: str) -> Built:
    """Nothing happens to channels."""
    return Net(lambda n, v: STEPS[how](v)), replace(x, side=4) if how == "picked" else x


# from one to another ----------------------------------------------------------------------------------------------------------------------


@block(("mean", "amax", "adaptive", "flatten"), kinds="image", place="vector")
def from_image(x: Stream, how: str) -> Built:
    y = replace(x, kind="vector", side=1)
    if how == "flatten":
        f = nn.Linear(x.width * x.side**2, 6)
        x.read_by(f.weight, 1, x.side**2)
        return nn.Sequential(nn.Flatten(), f), y.made(6, (f.weight, 0), (f.bias, 0))
    if how == "adaptive":
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), y
    return Net(lambda n, v: v.mean((2, 3)) if how == "mean" else v.amax((2, 3))), y


@block(kinds="image", place="series")
def tokens(x: Stream) -> Built:
    return Net(lambda n, v: v.flatten(2).transpose(1, 2)), replace(x, kind="series", side=x.side**2)


@block(("mean", "last", "sum", "flatten"), kinds="series", place="vector")
def from_series(x: Stream, how: str) -> Built:
    y = replace(x, kind="vector", side=1)
    if how == "flatten":
        f, z = mapping(x, 4)
        g = nn.Linear(4 * x.side, 6)
        z.read_by(g.weight, 1, x.side)
        return nn.Sequential(f, nn.Flatten(), g), y.made(6, (g.weight, 0), (g.bias, 0))
    return Net(lambda n, v: v[:, -1] if how == "last" else v.mean(1) if how == "mean" else v.sum(1)), y


@block(kinds="series", place="image")
def picture(x: Stream) -> Built:
    side = math.isqrt(x.side)
    if side * side != x.side:
        raise ValueError(f"{x.side} steps are no square")
    return Net(lambda n, v: v.transpose(1, 2).unflatten(2, (side, side))), replace(x, kind="image", side=side)
