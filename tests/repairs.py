"""Small networks of all kinds that are repaired, with data, and plans that cut them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

import secateur as sc
from cases import Net


def conv(a: int, b: int, **words: object) -> nn.Module:
    return nn.Conv2d(a, b, 3, padding=1, **words)  # type: ignore[arg-type]


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)), (5,)),
    "without bias": (lambda: nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3, bias=False)), (5,)),
    "sequences": (lambda: nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)), (4, 5)),
    "matrix": (lambda: Net(lambda n, x: n.a(x).tanh() @ n.w, a=nn.Linear(5, 8), w=nn.Parameter(torch.randn(8, 3))), (5,)),
    "convolutions": (lambda: nn.Sequential(conv(2, 8), nn.ReLU(), conv(8, 3)), (2, 6, 6)),
    "strides": (lambda: nn.Sequential(conv(2, 8), nn.ReLU(), conv(8, 6, stride=2), nn.ReLU(), conv(6, 3, dilation=2)), (2, 9, 8)),
    "batch norm": (
        lambda: nn.Sequential(conv(2, 8), nn.ReLU(), conv(8, 6, bias=False), nn.BatchNorm2d(6), nn.ReLU(), conv(6, 3)), (2, 6, 6),
    ),
    "transposed": (lambda: nn.Sequential(conv(2, 8), nn.ReLU(), nn.ConvTranspose2d(8, 3, 3, 2, 1, 1)), (2, 6, 6)),
    "flattened": (lambda: nn.Sequential(conv(2, 8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 3)), (2, 4, 4)),
    "residual": (lambda: Net(lambda n, x: n.c(n.a(x) + n.b(n.a(x).relu()).tanh()), a=conv(2, 6), b=conv(6, 6), c=conv(6, 3)), (2, 5, 5)),
}  # fmt: skip


def made(name: str, samples: int = 40) -> tuple[nn.Module, list[tuple[Tensor, Tensor]], Tensor]:
    torch.manual_seed(0)
    build, shape = NETS[name]
    model = build().double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    x = torch.randn(samples, *shape, dtype=torch.float64)
    return model, [(part, torch.zeros(len(part))) for part in x.split(8)], x


def planned(model: nn.Module, x: Tensor, amount: float = 0.4) -> sc.Plan:
    structure = sc.channels(model, x[:2])
    chance = torch.Generator().manual_seed(1)
    scores = {name: torch.rand(group.shape, generator=chance) for name, group in structure.groups.items()}
    return sc.select(scores, structure, amount)
