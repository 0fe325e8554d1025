"""Tiny models in safetensors shards, and what is in a folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cases import Net


class Attends(nn.Module):
    """Words and positions, attention that reads its projections itself, a tied head, and a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.first = nn.Embedding(9, 8), nn.Parameter(torch.randn(1, 1, 8))
        self.attention, self.norm = nn.MultiheadAttention(8, 2, batch_first=True), nn.LayerNorm(8)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
        self.head = nn.Linear(8, 9, bias=False)
        self.head.weight = self.words.weight
        self.register_buffer("scale", torch.tensor(2.0), persistent=False)

    def forward(self, words: Tensor) -> Tensor:
        x = self.words(words)
        x = torch.cat([self.first.expand(len(x), 1, 8), x], 1).to(self.first.device)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head(x + self.down(F.gelu(self.up(self.norm(x)))) * self.scale)


def words(*shape: int) -> Tensor:
    return torch.randint(0, 9, shape)


def correlated(*shape: int) -> Tensor:
    mixed = torch.randn(3, shape[1], generator=torch.Generator().manual_seed(1))
    x = torch.randn(*shape).movedim(1, -1)
    return (0.3 * x + torch.randn(*x.shape[:-1], 3) @ mixed).movedim(-1, 1)


def layers(count: int) -> Net:
    def forward(net: Net, x: Tensor) -> Tensor:
        for k in range(count):
            x = x + getattr(net, f"down{k}")(getattr(net, f"up{k}")(x).tanh())
        return x

    parts = {f"{name}{k}": nn.Linear(*sizes) for k in range(count) for name, sizes in (("up", (8, 12)), ("down", (12, 8)))}
    return Net(forward, **parts)


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, bias=False, groups=2), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Flatten(), nn.Linear(8 * 9, 4),
    )  # fmt: skip


def keeping(net: Net, x: Tensor) -> Tensor:
    """A module that keeps of a run what it needs later on."""
    net.skip = net.a(x).tanh()
    y = net.b(net.skip)
    return net.c(y * net.skip)  # type: ignore[no-any-return]


NETS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "layers": (lambda: layers(3), lambda: correlated(24, 8)),
    "keeps": (lambda: Net(keeping, a=nn.Linear(8, 12), b=nn.Linear(12, 12), c=nn.Linear(12, 3)), lambda: correlated(24, 8)),
    "convolutions": (convolutions, lambda: correlated(12, 2, 5, 5)),
    "attention": (Attends, lambda: words(6, 5)),
    "from the right": (
        lambda: Net(lambda n, x: n.a(x).tanh() @ n.w, a=nn.Linear(8, 12), w=nn.Parameter(torch.randn(12, 5))), lambda: correlated(24, 8),
    ),
    "computed": (
        lambda: Net(lambda n, x: n.b(n.a(x).tanh()), a=nn.utils.parametrizations.weight_norm(nn.Linear(8, 12)), b=nn.Linear(12, 5)),
        lambda: correlated(24, 8),
    ),
    "recurrent": (
        lambda: Net(lambda n, x: n.a(n.r(x)[0]), r=nn.LSTM(8, 4, batch_first=True), a=nn.Linear(4, 3)), lambda: correlated(6, 5, 8),
    ),
}  # fmt: skip


def stored_net(
    name: str, folder: Path, dtype: torch.dtype = torch.float64, shards: int = 2
) -> tuple[nn.Module, Callable[[], nn.Module], list[object]]:
    """The model (in float64), what builds it, and batches; its weights in the folder, in this type."""
    torch.manual_seed(0)
    make, example = NETS[name]
    model = make().double().eval()
    data: list[object] = [(x.double() if x.is_floating_point() else x, None) for x in (example() for _ in range(3))]
    tensors = {key: value.to(dtype) if value.is_floating_point() else value for key, value in model.state_dict().items()}
    write_shards(folder, tensors, shards)
    model.load_state_dict(tensors)
    return model, lambda: make().double(), data


def write_shards(folder: Path, tensors: dict[str, Tensor], shards: int = 2) -> None:
    """In one file, or in several with an index; of tied ones the first."""
    folder.mkdir()
    seen: dict[int, str] = {}
    tensors = {name: value.contiguous() for name, value in tensors.items() if seen.setdefault(value.data_ptr(), name) == name}
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return
    files = {name: f"model-{number % shards + 1:05d}-of-{shards:05d}.safetensors" for number, name in enumerate(tensors)}
    for file in set(files.values()):
        save_file({name: value for name, value in tensors.items() if files[name] == file}, folder / file, {"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))


def all_in(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def tensors_in(folder: Path) -> dict[str, Tensor]:
    return {name: value for path in sorted(folder.glob("*.safetensors")) for name, value in load_file(path).items()}
