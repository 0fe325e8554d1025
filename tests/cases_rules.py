"""More tiny models, for rules that no other case runs or that could be wrong without any of them noticing."""

# ruff: noqa: E501 (a table reads by its columns)

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from cases import Case, Net, conv, image


def series(width: int = 5, steps: int = 4) -> Callable[[], Tensor]:
    return lambda: torch.randn(2, steps, width)


def linear(a: int, b: int) -> nn.Linear:
    return nn.Linear(a, b)


def heads(net: Net, x: Tensor) -> list[Tensor]:
    return [f(x).view(x.shape[0], x.shape[1], -1, net.dim).transpose(1, 2) for f in (net.q, net.k, net.v)]


def attending(heads_of: int = 4, keys: int = 4, **options: object) -> Callable[[], nn.Module]:
    def forward(net: Net, x: Tensor) -> Tensor:
        mask = net.mask if "mask" in options else None
        given = {name: value for name, value in options.items() if name != "mask"}
        y = F.scaled_dot_product_attention(*heads(net, x), attn_mask=mask, **given)  # type: ignore[arg-type]
        return net.out(y.transpose(1, 2).flatten(2))

    def build() -> nn.Module:
        net = Net(forward, q=linear(5, heads_of * 3), k=linear(5, keys * 3), v=linear(5, keys * 3), out=linear(heads_of * 3, 2), dim=3)
        net.mask = nn.Parameter(torch.randn(heads_of, 4, 4))
        return net if "mask" in options else without(net, "mask")

    return build


def without(net: nn.Module, name: str) -> nn.Module:
    delattr(net, name)
    return net


def packed(net: Net, x: Tensor) -> Tensor:
    y = pack_padded_sequence(net.a(x), torch.tensor([4, 2]), batch_first=True)
    return net.out(pad_packed_sequence(y, batch_first=True)[0])


def hot() -> nn.Module:
    """Each row goes through the expert that its router likes best."""

    def forward(net: Net, x: Tensor) -> Tensor:
        chosen = F.one_hot(net.r(x).argmax(-1), net.experts).to(x)
        return net.out(torch.einsum("be,bd,edh->bh", chosen, x, net.core).relu())

    return core(Net(forward, r=linear(5, 4), out=linear(6, 2), experts=4), 4, 5, 6)


def experts(net: Net, x: Tensor) -> Tensor:
    """Two rows for the first, four for the second. It wants single precision (whole numbers lose nothing), and rows of 16, 32, ... bytes."""
    rows, weights = (9 * net.a(x)).round().float(), (9 * net.core).round().float()
    return net.out(torch._grouped_mm(rows, weights, offs=torch.tensor([2, 6], dtype=torch.int32, device=x.device)).to(x))


def written(net: Net, x: Tensor) -> Tensor:
    y = torch.zeros(2, 4, net.width, dtype=x.dtype, device=x.device)
    y[:, :2] = net.a(x[:, :2])
    y[:, 2:].copy_(net.b(x[:, 2:]))
    return net.out(y)


def put(net: Net, x: Tensor) -> Tensor:
    y = net.a(x).transpose(0, 1).clone()
    y[[0, 2]] = net.b(x[:, :2]).transpose(0, 1)
    return net.out(y)


def scattered(net: Net, x: Tensor) -> Tensor:
    y, index = net.a(x), torch.tensor([0, 0, 1, 1], device=x.device)[None, :, None].expand(2, 4, 1)
    return net.out(torch.zeros_like(y).scatter_add(1, index.expand_as(y), net.b(x)))


def complex_turn(net: Net, x: Tensor) -> Tensor:
    y = torch.view_as_complex(net.a(x).unflatten(-1, (-1, 2)))
    return net.out(torch.view_as_real(y * y).flatten(-2))


def expanded(net: Net, x: Tensor) -> Tensor:
    """Each key and value head serves as many query heads as it takes."""
    q, k, v = heads(net, x)
    k, v = (y[:, :, None].expand(2, net.keys, net.times, 4, net.dim).reshape(2, -1, 4, net.dim) for y in (k, v))
    return net.out(((q @ k.transpose(-2, -1)).softmax(-1) @ v).transpose(1, 2).flatten(2))


def quarters(net: Net, x: Tensor) -> Tensor:
    return sum(reader(part) for reader, part in zip(net.readers, net.a(x).chunk(4, -1)))


def both_ways(net: Net, x: Tensor) -> Tensor:
    a, b = net.a(x).chunk(2, -1)
    return net.p(a) + net.q(b)


def stacked(net: Net, x: Tensor) -> Tensor:
    return net.out(torch.stack([net.a(x), net.b(x)], 1))


def bilinear(net: Net, x: Tensor) -> Tensor:
    return torch.einsum("nta,abc,ntb->ntc", net.a(x), net.core, net.b(x))


def core(net: Net, *shape: int) -> nn.Module:
    net.core = nn.Parameter(torch.randn(shape))
    return net


CASES = [
    Case("bags", lambda: Net(lambda n, x: n.out(n.bag(x).relu()), bag=nn.EmbeddingBag(9, 6, mode="sum"), out=linear(6, 2)), lambda: torch.randint(0, 9, (3, 4)), {"bag.weight": 6}, {"bag": "looked up"}),
    Case("pooled in one dimension", lambda: nn.Sequential(nn.Conv1d(2, 6, 3), nn.MaxPool1d(2), nn.Upsample(scale_factor=2), nn.AvgPool1d(2), nn.AdaptiveAvgPool1d(2), nn.Conv1d(6, 4, 1)), lambda: torch.randn(2, 2, 16), {"0": 6}),
    Case("sampled in three dimensions", lambda: nn.Sequential(nn.Conv3d(2, 6, 1), nn.MaxPool3d(2), nn.Upsample(scale_factor=2), nn.AdaptiveAvgPool3d(2), nn.Conv3d(6, 4, 1)), lambda: torch.randn(2, 2, 4, 4, 4), {"0": 6}),
    Case("attention with its own scale", attending(scale=0.5), series(), {"q": 4}),
    Case("causal attention", attending(scale=0.5, is_causal=True), series(), {"q": 4}),
    Case("attention with a bias per head", attending(scale=0.5, mask=True), series(), {"mask": 4}),
    Case("fewer keys than queries", attending(4, 2, scale=0.5, enable_gqa=True), series(), {"q": 2}),
    Case("packed", lambda: Net(packed, a=linear(5, 6), out=linear(6, 2)), series(), {"a": 6}),
    Case("written into", lambda: Net(written, a=linear(5, 6), b=linear(5, 6), out=linear(6, 2), width=6), series(), {"a": 6}),
    Case("put by number", lambda: Net(put, a=linear(5, 6), b=linear(5, 6), out=linear(6, 2)), series(), {"a": 6}),
    Case("scattered", lambda: Net(scattered, a=linear(5, 6), b=linear(5, 6), out=linear(6, 2)), series(), {"a": 6}),
    Case("gathered", lambda: Net(lambda n, x: n.out(n.a(x).gather(1, n.a(x).argsort(1).detach() * 0)), a=linear(5, 6), out=linear(6, 2)), series(), {"a": 6}),
    Case("added by number", lambda: Net(lambda n, x: n.out(n.a(x).index_add(1, torch.tensor([0, 2], device=x.device), n.b(x[:, :2]))), a=linear(5, 6), b=linear(5, 6), out=linear(6, 2)), series(), {"a": 6}),
    Case("summed along", lambda: Net(lambda n, x: n.out(n.a(x).cumsum(1)), a=linear(5, 6), out=linear(6, 2)), series(), {"a": 6}),
    Case("sorted by channel", lambda: Net(lambda n, x: n.out(n.a(x).sort(-1)[0]), a=linear(5, 6), out=linear(6, 2)), series(), {}, {"a": "order along it counts"}),
    Case("complex", lambda: Net(complex_turn, a=linear(5, 8), out=linear(8, 2)), series(), {"a": 4}),
    Case("triangle of scores", lambda: Net(lambda n, x: n.out((n.a(x) @ n.b(x).transpose(1, 2)).tril() @ n.c(x)), a=linear(5, 6), b=linear(5, 6), c=linear(5, 4), out=linear(4, 2)), series(), {"a": 6, "c": 4}),
    Case("read anew", lambda: Net(lambda n, x: n.out(n.a(x).as_strided((2, 3), (6, 1))), a=linear(5, 6), out=linear(3, 2)), lambda: torch.randn(2, 5), {}, {"a": "memory is read anew"}),
    Case("each channel twice", lambda: Net(lambda n, x: n.out(n.a(x).repeat_interleave(2, 1).relu()), a=conv(3, 4), out=conv(8, 2)), image(), {"a": 4}),
    Case("all channels twice", lambda: Net(lambda n, x: n.out(n.a(x).repeat(1, 2, 1, 1).relu()), a=conv(3, 4), out=conv(8, 2)), image(), {"a": 4}),
    Case("halves with a reader each", lambda: Net(both_ways, a=linear(5, 8), p=linear(4, 2), q=linear(4, 2)), series(), {"a": 4}),
    Case("stacked, with one reader", lambda: Net(stacked, a=linear(5, 6), b=linear(5, 6), out=linear(6, 2)), series(), {"a": 6}),
    Case("two layers' weights multiplied", lambda: Net(lambda n, x: F.linear(x, n.b.weight @ n.a.weight), a=linear(5, 6), b=linear(6, 2)), series(), {"a": 6}, {"a.bias": "not used"}),
    Case("batches of matrices", lambda: Net(lambda n, x: n.out(torch.baddbmm(n.c(x), n.a(x), n.b(x).transpose(1, 2))), a=linear(5, 6), b=linear(5, 6), c=linear(5, 4), out=linear(4, 2)), series(), {"a": 6}),
    Case("a weighted sum of channels", lambda: core(Net(lambda n, x: torch.mv(n.a(x).relu(), n.core)[:, None], a=linear(5, 6)), 6), lambda: torch.randn(3, 5), {"core": 6}),
    Case("bilinear", lambda: core(Net(bilinear, a=linear(5, 6), b=linear(5, 4)), 6, 4, 2), series(), {"core": 6, "b": 4}),
    Case("root mean square norm", lambda: nn.Sequential(linear(5, 8), nn.RMSNorm(8), nn.GELU(), linear(8, 3)), series(), {"0": 8}, approximate=("0",)),
    Case("weight norm of a convolution", lambda: nn.Sequential(weight_norm(conv(3, 6)), nn.ReLU(), conv(6, 2)), image(), {"0.bias": 6}),
    Case("taken apart by step", lambda: Net(lambda n, x: n.out(torch.stack([n.b(y) for y in n.a(x).unbind(1)], 1)), a=linear(5, 6), b=linear(6, 4), out=linear(4, 2)), series(), {"a": 6, "b": 4}),
    Case("taken apart by channel", lambda: Net(lambda n, x: n.out(torch.stack(n.a(x).unbind(2)[::-1], 2)), a=linear(5, 6), out=linear(6, 2)), series(), {}, {"a": "taken apart"}),
    Case("one channel selected", lambda: Net(lambda n, x: n.out(n.a(x) * n.a(x)[..., 2:3]) + n.a(x).select(-1, 0)[..., None], a=linear(5, 6), out=linear(6, 2)), series(), {}, {"a": "selected"}),
    Case("rolled channels", lambda: Net(lambda n, x: n.out(n.a(x).roll(1, -1)), a=linear(5, 6), out=linear(6, 2)), series(), {}, {"a": "rolled"}),
    Case("flipped channels", lambda: Net(lambda n, x: n.out(n.a(x).flip(-1) + n.b(x)), a=linear(5, 6), b=linear(5, 6), out=linear(6, 2)), series(), {"a": 6}),
    Case("unshuffled pixels", lambda: nn.Sequential(conv(3, 4), nn.ReLU(), nn.PixelUnshuffle(2), conv(16, 2)), image(), {"0": 4}),
    Case("spectrum", lambda: Net(lambda n, x: n.out(torch.fft.rfft(n.a(x), dim=1).abs()), a=linear(5, 6), out=linear(6, 2)), series(), {"a": 6}),
    Case("largest with its place", lambda: Net(lambda n, x: n.out(n.a(x).max(1)[0]), a=linear(5, 6), out=linear(6, 2)), series(), {"a": 6}),
    Case("one index of many", lambda: Net(lambda n, x: n.out(n.a(x)[:, [0, 2]]), a=linear(5, 6), out=linear(6, 2)), series(), {"a": 6}),
    Case("one selection of steps", lambda: Net(lambda n, x: n.out(n.a(x).index_select(1, torch.tensor([0, 2], device=x.device))), a=linear(5, 6), out=linear(6, 2)), series(), {"a": 6}),
    Case("one selection of samples", lambda: Net(lambda n, x: n.out(n.a(x).index_select(0, torch.tensor([1, 0, 1], device=x.device))), a=linear(5, 6), out=linear(6, 2)), lambda: torch.randn(2, 5), {"a": 6}),
    Case("flipped features", lambda: Net(lambda n, x: n.out(n.a(x).flip(1)), a=linear(5, 6), out=linear(6, 2)), lambda: torch.randn(2, 5), {"a": 6}),
    Case("padded steps", lambda: Net(lambda n, x: n.out(F.pad(n.a(x), (0, 0, 1, 0))), a=linear(5, 6), out=linear(6, 2)), series(), {"a": 6}),
    Case("softmax over steps", lambda: Net(lambda n, x: n.out(n.a(x).softmax(1)), a=linear(5, 6), out=linear(6, 2)), series(), {"a": 6}),
    Case("mean over steps", lambda: Net(lambda n, x: n.out(n.a(x).mean(1, keepdim=True)), a=linear(5, 6), out=linear(6, 2)), series(), {"a": 6}),
    Case("matrices of features", lambda: Net(lambda n, x: n.out(torch.bmm(n.a(x), n.b(x).transpose(1, 2))), a=linear(5, 6), b=linear(5, 6), out=linear(4, 2)), series(), {"a": 6}),
    Case("a product of two weights", lambda: Net(lambda n, x: F.linear(x, torch.mm(n.b.weight, n.a.weight)), a=linear(5, 6), b=linear(6, 2)), series(), {"a": 6}, {"a.bias": "not used"}),
    Case("a dot product", lambda: core(Net(lambda n, x: torch.dot(n.a(x[0]).relu(), n.core)[None, None], a=linear(5, 6)), 6), lambda: torch.randn(1, 5), {"core": 6}),
    Case("a triangular weight", lambda: core(Net(lambda n, x: n.out(F.linear(n.a(x), n.core.tril())), a=linear(5, 6), out=linear(6, 2)), 6, 6), series(), {}, {"core": "triang"}),
    Case("the largest steps", lambda: Net(lambda n, x: n.out(n.a(x).topk(2, 1)[0]), a=linear(5, 6), out=linear(6, 2)), series(), {"a": 6}),
    Case("windows put together", lambda: Net(lambda n, x: n.out(F.fold(F.unfold(n.a(x), 2, stride=2), (8, 8), 2, stride=2)), a=conv(3, 6), out=conv(6, 2)), image(), {"a": 6}),
    Case("windows of steps", lambda: Net(lambda n, x: n.out(n.a(x).unfold(1, 2, 1).sum(-1)), a=linear(5, 6), out=linear(6, 2)), series(), {"a": 6}),
    Case("a bilinear layer", lambda: Net(lambda n, x: n.out(n.f(n.a(x), n.b(x))), a=linear(5, 6), b=linear(5, 4), f=nn.Bilinear(6, 4, 8), out=linear(8, 2)), series(), {"f": 8, "a": 6, "b": 4}),
    Case("distances", lambda: Net(lambda n, x: n.out(torch.cdist(n.a(x), n.b(x))), a=linear(5, 6), b=linear(5, 6), out=linear(4, 2)), series(), {"a": 6}, approximate=("a",)),
    Case("sampled by a grid", lambda: Net(lambda n, x: n.out(F.grid_sample(n.a(x), F.affine_grid(x.new_tensor([[[0.5, 0.0, 0.1], [0.0, 0.5, 0.0]]] * 2), (2, 3, 4, 4), align_corners=False), align_corners=False)), a=conv(3, 6), out=conv(6, 2)), image(), {"a": 6}),
    Case("pooled and back", lambda: Net(lambda n, x: n.out(F.max_unpool2d(*F.max_pool2d(n.a(x), 2, return_indices=True), 2)), a=conv(3, 6), out=conv(6, 2)), image(), {"a": 6}),
    Case("copied into another's place", lambda: Net(lambda n, x: n.out(n.b(x).copy_(n.a(x)) + n.c(x)), a=linear(5, 6), b=linear(5, 6), c=linear(5, 6), out=linear(6, 2)), series(), {"a": 6}),
    Case("keys expanded to the queries' heads", lambda: Net(expanded, q=linear(5, 12), k=linear(5, 6), v=linear(5, 6), out=linear(12, 2), keys=2, times=2, dim=3), series(), {"q": 2, "q#2": 2}),
    Case("quarters with a reader each", lambda: Net(quarters, a=linear(5, 12), readers=nn.ModuleList(linear(3, 2) for _ in range(4))), series(), {"a": 3}),
    Case("laid out anew", lambda: Net(lambda n, x: n.out((y := n.a(x)).as_strided(y.size(), y.stride())), a=linear(5, 6), out=linear(6, 2)), series(), {"a": 6}),
    Case("transposed once", lambda: Net(lambda n, x: n.out(n.a(x).transpose(1, 2)), a=linear(5, 6), out=linear(6, 2)), lambda: torch.randn(2, 3, 4, 5), {"a": 6}),
    Case("weight norm over what it reads", lambda: nn.Sequential(linear(5, 6), nn.ReLU(), weight_norm(linear(6, 4)), nn.ReLU(), linear(4, 2)), series(), {"0": 6, "2.bias": 4}, approximate=("0",)),
    Case("weight norm of a convolution over what it reads", lambda: nn.Sequential(conv(3, 6), nn.ReLU(), weight_norm(conv(6, 4)), nn.ReLU(), conv(4, 2)), image(), {"0": 6, "2.bias": 4}, approximate=("0",)),
    Case("pictures laid out anew", lambda: Net(lambda n, x: n.out((y := n.a(x)).as_strided(y.size(), y.stride())), a=conv(3, 6), out=conv(6, 2)), image(), {"a": 6}),
    Case("experts of whom one is hot", hot, lambda: torch.randn(7, 5), {"core": 4, "core#2": 6}, approximate=("core",)),
    Case("a table longer than the input", lambda: core(Net(lambda n, x: n.out((n.a(x) + n.core[: x.shape[1]]).tanh()), a=linear(5, 6), out=linear(6, 2)), 9, 6), series(), {"a": 6}),
    Case("a loss between features", lambda: Net(lambda n, x: n.out(n.a(x) * F.mse_loss(n.b(x), n.c(x))), a=linear(5, 6), b=linear(5, 6), c=linear(5, 6), out=linear(6, 2)), series(), {"a": 6, "b": 6}, approximate=("b",)),
    Case("a loss for every feature", lambda: Net(lambda n, x: n.out(F.smooth_l1_loss(n.b(x), n.c(x), reduction="none")), b=linear(5, 6), c=linear(5, 6), out=linear(6, 2)), series(), {"b": 6}),
    Case("experts side by side", lambda: core(Net(experts, a=linear(5, 8), out=linear(12, 2)), 2, 8, 12), lambda: torch.randn(6, 5), {"a": 8, "core": 12}),
    Case("its own loss", lambda: Net(lambda n, x: F.cross_entropy(n.out(n.a(x).relu()), torch.tensor([0, 1], device=x.device)), a=linear(5, 6), out=linear(6, 3)), lambda: torch.randn(2, 5), {"a": 6}),
]  # fmt: skip
