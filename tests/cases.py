"""Tiny models, one for each thing that structure tracing has to understand, each with what may be removed from it."""

# ruff: noqa: E501 (a table reads by its columns)

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm


@dataclass(frozen=True)
class Named:
    """A model and its inputs, by functions of nothing: lists of them stay cheap."""

    name: str
    build: Callable[[], nn.Module]
    example: Callable[[], object]

    def __str__(self) -> str:
        return self.name

    def model(self) -> nn.Module:
        """In float64, with batch norms that do something."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = self.build().double().eval()
            for name, value in model.named_buffers():
                if name.endswith("running_mean"):
                    value.normal_()
                elif name.endswith("running_var"):
                    value.uniform_(0.5, 2)
            for value in model.parameters():
                if value.dim() == 1:
                    value.data.uniform_(0.3, 1.5)
        return model

    def inputs(self) -> object:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            return doubled(self.example())


@dataclass(frozen=True)
class Case(Named):
    """units: group -> size, as traced. frozen: group -> words of its reason."""

    units: dict[str, int]
    frozen: dict[str, str] = field(default_factory=dict)
    approximate: tuple[str, ...] = ()


def doubled(value: object) -> object:
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, dict):
        return {key: doubled(item) for key, item in value.items()}
    return tuple(doubled(item) for item in value)  # type: ignore[attr-defined]


class Net(nn.Module):
    """Modules by name and a forward function, so that a case reads as one expression."""

    def __init__(self, forward: Callable[..., object], /, **modules: nn.Module | int) -> None:
        super().__init__()
        self.run = forward
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, *args: Tensor, **kwargs: Tensor) -> object:
        return self.run(self, *args, **kwargs)


def image(channels: int = 3, size: int = 8) -> Callable[[], Tensor]:
    return lambda: torch.randn(2, channels, size, size)


def conv(a: int, b: int, k: int = 3, **options: object) -> nn.Conv2d:
    return nn.Conv2d(a, b, k, padding=k // 2, **options)  # type: ignore[arg-type]


class Standardised(nn.Conv2d):
    """Weight standardisation: the weight that is used is computed from the parameter."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((2, 3), keepdim=True)
        return F.conv2d(x, weight / (weight.std((2, 3), keepdim=True) + 1e-5), self.bias, padding=1)


class Excite(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.up(self.down(x.mean((2, 3))).relu()).sigmoid()[:, :, None, None]


class Scaled(nn.Module):
    """A bare parameter and a buffer, both indexed by channel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = conv(3, 6), nn.Linear(6, 4)
        self.gain = nn.Parameter(torch.rand(6, 1, 1))
        self.register_buffer("shift", torch.rand(1, 6, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(((self.conv(x) * self.gain + self.shift).relu()).mean((2, 3)))


def option_a(net: Net, x: Tensor) -> Tensor:
    x = net.b1(net.c1(x)).relu()
    y = net.b3(net.c3(net.b2(net.c2(x)).relu()))
    return net.head((y + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))).relu().mean((2, 3)))


def unet(net: Net, x: Tensor) -> Tensor:
    a = net.a(x).relu()
    b = net.b(F.max_pool2d(a, 2)).relu()
    return net.out(torch.cat([a, F.interpolate(b, scale_factor=2.0, mode="nearest")], 1))


def shuffled(x: Tensor, groups: int) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)


def tied() -> nn.Module:
    net = Net(lambda n, x: n.head(n.body(n.embed(x)).tanh()), embed=nn.Embedding(11, 6), body=nn.Linear(6, 6), head=nn.Linear(6, 11, bias=False))
    net.head.weight = net.embed.weight  # type: ignore[union-attr]
    return net


def branching(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    return net.b(y) if y.sum().item() > -1e9 else net.b(-y)


def halves(net: Net, x: Tensor) -> Tensor:
    a, b = net.a(x).chunk(2, 1)
    return net.b(a * b.sigmoid())


def parts(net: Net, x: Tensor) -> Tensor:
    a, b = net.a(x).split([net.first, net.second], 1)
    return net.b(a) + net.c(b)


def attended(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    return net.b(y * torch.cat([y.mean(1, keepdim=True), y.amax(1, keepdim=True)], 1).sum(1, keepdim=True).sigmoid())


CASES = [
    Case("mlp", lambda: nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 6), nn.Tanh(), nn.Linear(6, 3)), lambda: torch.randn(4, 5),
         {"0": 7, "2": 6}, {"4": "an output", "0.weight": "an input"}),
    Case("conv", lambda: nn.Sequential(conv(3, 6), nn.BatchNorm2d(6), nn.ReLU(), conv(6, 5), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3)),
         image(), {"0": 6, "3": 5}),
    Case("flatten", lambda: nn.Sequential(conv(3, 6), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(96, 3)), image(), {"0": 6}),
    Case("conv1d", lambda: nn.Sequential(nn.Conv1d(2, 6, 3), nn.BatchNorm1d(6), nn.GELU(), nn.Conv1d(6, 4, 3, dilation=2)), lambda: torch.randn(2, 2, 16), {"0": 6}),
    Case("conv3d", lambda: nn.Sequential(nn.Conv3d(2, 6, 3), nn.BatchNorm3d(6), nn.ELU(), nn.AvgPool3d(2), nn.Conv3d(6, 4, 1)), lambda: torch.randn(2, 2, 6, 6, 6), {"0": 6}),
    Case("transposed", lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.ConvTranspose2d(6, 5, 3, stride=2), nn.BatchNorm2d(5), nn.ReLU(), nn.ConvTranspose2d(5, 2, 2)),
         image(), {"0": 6, "1.bias": 5}),
    Case("transposed in groups", lambda: nn.Sequential(nn.Conv2d(3, 6, 1), nn.ConvTranspose2d(6, 8, 3, groups=2), nn.Conv2d(8, 2, 1)), image(),
         {"0": 2, "0#2": 3, "1.bias": 4}),
    Case("grouped", lambda: nn.Sequential(conv(3, 8), conv(8, 12, groups=4), nn.BatchNorm2d(12), nn.ReLU(), conv(12, 5)), image(), {"0": 4, "0#2": 2, "1": 3}),
    Case("depthwise", lambda: nn.Sequential(conv(3, 6), nn.BatchNorm2d(6), nn.ReLU6(), conv(6, 6, groups=6), nn.Hardswish(), conv(6, 4, 1)), image(), {"0": 6}),
    Case("depth multiplier", lambda: nn.Sequential(conv(3, 4), conv(4, 12, groups=4), nn.SiLU(), conv(12, 2, 1)), image(), {"0": 4, "1": 3}),
    Case("group norm", lambda: nn.Sequential(conv(3, 8), nn.GroupNorm(2, 8), nn.ReLU(), conv(8, 4)), image(), {"0": 2, "0#2": 4}, approximate=("0#2",)),
    Case("one norm a channel", lambda: nn.Sequential(conv(3, 8), nn.GroupNorm(8, 8), nn.ReLU(), conv(8, 4)), image(), {"0": 8}),
    Case("layer norm", lambda: nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 3)), lambda: torch.randn(4, 6, 5), {"0": 8}, approximate=("0",)),
    Case("instance norm", lambda: nn.Sequential(conv(3, 6), nn.InstanceNorm2d(6, affine=True), nn.ReLU(), conv(6, 4)), image(), {"0": 6}),
    Case("residual", lambda: Net(lambda n, x: n.out((n.c1(x) + n.c3(n.c2(n.c1(x)).relu())).relu()), c1=conv(3, 6), c2=conv(6, 5), c3=conv(5, 6), out=conv(6, 2)),
         image(), {"c1": 6, "c2": 5}),
    Case("option a", lambda: Net(option_a, c1=conv(3, 4, bias=False), b1=nn.BatchNorm2d(4), c2=conv(4, 8, stride=2, bias=False), b2=nn.BatchNorm2d(8),
         c3=conv(8, 8, bias=False), b3=nn.BatchNorm2d(8), head=nn.Linear(8, 3)), image(), {"c1": 4, "c2": 8}, {"c3": "constant"}),
    Case("dense concatenation", lambda: Net(lambda n, x: n.out(torch.cat([x, n.a(x), n.b(torch.cat([x, n.a(x)], 1))], 1)), a=conv(3, 5), b=conv(8, 4), out=conv(12, 2)),
         image(), {"a": 5, "b": 4}),
    Case("squeeze and excite", lambda: nn.Sequential(conv(3, 8), nn.ReLU(), Excite(8, 4), conv(8, 2)), image(), {"0": 8, "2.down": 4}),
    Case("two halves", lambda: Net(halves, a=conv(3, 8), b=conv(4, 2)), image(), {"a": 4}),
    Case("glu", lambda: nn.Sequential(conv(3, 8), nn.GLU(1), conv(4, 2)), image(), {"0": 4}),
    Case("parts of set sizes", lambda: Net(parts, a=conv(3, 8), b=conv(5, 2), c=conv(3, 2), first=5, second=3), image(), {"a": 5, "a#2": 3}),
    Case("shuffle module", lambda: nn.Sequential(conv(3, 8), nn.ChannelShuffle(2), conv(8, 8, groups=4), conv(8, 2)), image(), {"0": 2, "0#2": 4, "2": 2}),
    Case("shuffle by views", lambda: Net(lambda n, x: n.c(n.b(shuffled(n.a(x), 2))), a=conv(3, 8), b=conv(8, 8, groups=8), c=conv(8, 2)), image(), {"a": 4}),
    Case("pixel shuffle", lambda: nn.Sequential(conv(3, 12), nn.PixelShuffle(2), nn.ReLU(), conv(3, 2)), image(), {"0": 3}),
    Case("u-net", lambda: Net(unet, a=conv(3, 4), b=conv(4, 6), out=conv(10, 2)), image(), {"a": 4, "b": 6}),
    Case("lstm", lambda: Net(lambda n, x: n.out(n.rnn(n.embed(x))[0][:, -1]), embed=nn.Embedding(9, 5), rnn=nn.LSTM(5, 6, 2, batch_first=True, bidirectional=True), out=nn.Linear(12, 3)),
         lambda: torch.randint(0, 9, (2, 4)), {"rnn.weight_ih_l0": 6, "embed.weight": 5}, {"embed": "looked up"}),
    Case("gru", lambda: Net(lambda n, x: n.out(n.rnn(x)[0]), rnn=nn.GRU(5, 6, batch_first=True), out=nn.Linear(6, 3)), lambda: torch.randn(2, 4, 5), {"rnn.weight_ih_l0": 6}),
    Case("tied", tied, lambda: torch.randint(0, 11, (2, 4)), {"body": 6}),
    Case("called twice", lambda: Net(lambda n, x: n.out(n.twice(n.twice(n.a(x)).relu())), a=conv(3, 6), twice=conv(6, 6), out=conv(6, 2)), image(), {"a": 6}),
    Case("weight norm", lambda: nn.Sequential(weight_norm(nn.Linear(5, 7)), nn.ReLU(), nn.Linear(7, 3)), lambda: torch.randn(4, 5), {"0.bias": 7}),
    Case("standardised", lambda: nn.Sequential(Standardised(3, 6, 3), nn.ReLU(), Standardised(6, 2, 3)), image(), {"0": 6}),
    Case("bare parameters", Scaled, image(), {"gain": 6}),
    Case("prelu", lambda: nn.Sequential(conv(3, 6), nn.PReLU(6), conv(6, 2)), image(), {"0": 6}),
    Case("softmax", lambda: nn.Sequential(conv(3, 6), nn.Softmax(1), conv(6, 2)), image(), {"0": 6}, approximate=("0",)),
    Case("statistics over channels", lambda: Net(attended, a=conv(3, 6), b=conv(6, 2)), image(), {"a": 6}, approximate=("a",)),
    Case("written size", lambda: Net(lambda n, x: n.b(n.a(x).relu().mean((2, 3)).view(-1, 6)), a=conv(3, 6), b=nn.Linear(6, 2)), image(), {}, {"a": "fixed in the code"}),
    Case("kept size", lambda: Net(lambda n, x: n.b(n.a(x).relu().mean((2, 3)).view(-1, n.width)), a=conv(3, 6), b=nn.Linear(6, 2), width=6), image(), {"a": 6}),
    Case("no rule", lambda: Net(lambda n, x: n.b(torch.linalg.matrix_exp(n.a(x))), a=conv(3, 6), b=conv(6, 2)), image(), {}, {"a": "no rule for this operator: by linalg_matrix_exp at cases.py:"}),
    Case("reads a value", lambda: Net(branching, a=nn.Linear(5, 6), b=nn.Linear(6, 2)), lambda: torch.randn(3, 5), {"a": 6}, approximate=("a",)),
    Case("keyword arguments", lambda: Net(lambda n, x, y: {"sum": n.c(n.a(x) + n.b(y)), "both": (x, y)}, a=nn.Linear(5, 6), b=nn.Linear(4, 6), c=nn.Linear(6, 2)),
         lambda: {"x": torch.randn(3, 5), "y": torch.randn(3, 4)}, {"a": 6}),
    Case("in place", lambda: Net(lambda n, x: n.b(n.a(x).relu_().mul_(2).add_(n.c(x))), a=conv(3, 6), c=conv(3, 6), b=conv(6, 2)), image(), {"a": 6}),
    Case("unused", lambda: Net(lambda n, x: n.b(n.a(x).relu()), a=nn.Linear(5, 6), b=nn.Linear(6, 2), c=nn.Linear(5, 6)), lambda: torch.randn(3, 5), {"a": 6}, {"c": "not used"}),
    Case("padded", lambda: nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(3, 6, 3), nn.ZeroPad2d(2), nn.MaxPool2d(3, 2), nn.Conv2d(6, 2, 3, padding_mode="replicate", padding=1)), image(), {"1": 6}),
    Case("indexed", lambda: Net(lambda n, x: n.b(n.a(x)[:, [0, 2]][torch.tensor([1, 0])].index_select(1, torch.tensor([1, 1, 0]))), a=nn.Linear(3, 6), b=nn.Linear(6, 2)), lambda: torch.randn(2, 4, 3), {"a": 6}),
    Case("indexed by channel", lambda: Net(lambda n, x: n.b(n.a(x)[..., [0, 2, 1]]), a=nn.Linear(3, 6), b=nn.Linear(3, 2)), lambda: torch.randn(2, 4, 3), {}, {"a": "picked from by number"}),
    Case("two ways of one width", lambda: Net(lambda n, x: n.d((n.g(n.f(n.e(x)).relu())).view(n.f(n.e(x)).shape)), e=conv(3, 8), f=conv(8, 8), g=conv(8, 8), d=conv(8, 2)), image(), {}, {"g": "fixed in the code"}),
    Case("another layer's width", lambda: Net(lambda n, x: n.o(n.b(n.a(x).relu()).relu().mean((2, 3)).view(-1, n.a.out_channels)), a=conv(3, 8), b=conv(8, 8), o=nn.Linear(8, 2)), image(), {"a": 8}),
    Case("as many steps as states", lambda: Net(lambda n, x: n.out(n.rnn(x)[0][:, -1]), rnn=nn.LSTM(5, 4, 4, batch_first=True), out=nn.Linear(4, 3)), lambda: torch.randn(4, 6, 5), {"rnn.weight_ih_l0": 4}),
    Case("statistics of the batch", lambda: nn.Sequential(nn.Linear(4, 6), nn.InstanceNorm1d(3), nn.ReLU(), nn.Linear(6, 2)), lambda: torch.randn(2, 3, 4), {"0": 6}, approximate=("0",)),
    Case("permuted", lambda: Net(lambda n, x: n.b(n.a(x.permute(0, 2, 3, 1)).transpose(1, 3)).flatten(2), a=nn.Linear(3, 6), b=conv(6, 2)), image(), {"a": 6}),
]  # fmt: skip
