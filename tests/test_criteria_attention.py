"""criteria/attention.py: whose probabilities they are is read from the run, not from the names of layers."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.criteria.attention import by_unit, confidence, entropy, probabilities
from secateur.errors import BadInput
from secateur.structure import as_graph, channels
from secateur.task import Task


class Attention(nn.Module):
    """Attention whose queries share keys and values by groups. attend(q, k, v) -> what is attended to."""

    def __init__(self, attend: Callable[[Tensor, Tensor, Tensor], Tensor], heads: int = 4, shared: int = 4, dim: int = 3) -> None:
        super().__init__()
        self.attend, self.heads, self.shared, self.dim = attend, heads, shared, dim
        self.q, self.k, self.v = nn.Linear(5, heads * dim), nn.Linear(5, shared * dim), nn.Linear(5, shared * dim)
        self.out = nn.Linear(heads * dim, 5)

    def parts(self, x: Tensor) -> list[Tensor]:
        sizes = ((self.q, self.heads), (self.k, self.shared), (self.v, self.shared))
        return [layer(x).view(len(x), -1, number, self.dim).transpose(1, 2) for layer, number in sizes]

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.parts(x)
        if self.heads != self.shared:
            k, v = (value.repeat_interleave(self.heads // self.shared, 1) for value in (k, v))
        return x + self.out(self.attend(q, k, v).transpose(1, 2).reshape(len(x), -1, self.heads * self.dim))


def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1) @ v


def function(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, dim=-1) @ v


def model_of(attend: Callable[[Tensor, Tensor, Tensor], Tensor], heads: int = 4, shared: int = 4, layers: int = 1) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(*(Attention(attend, heads, shared) for _ in range(layers)), nn.Linear(5, 3)).double()
        for value in model.parameters():
            value.data.mul_(3)
    return model


X = torch.randn(4, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def task_of(model: nn.Module) -> Task:
    return Task(model, [(X, X[..., :3])], F.mse_loss)


def by_hand(layer: Attention, x: Tensor) -> tuple[Tensor, Tensor]:
    """Confidence and entropy score of every query head."""
    q, k, _ = layer.parts(x)
    k = k.repeat_interleave(layer.heads // layer.shared, 1)
    p = (q @ k.transpose(-1, -2) / layer.dim**0.5).softmax(-1).detach()
    return p.amax(-1).mean((0, 2)), 1 + (p * p.log()).sum(-1).mean((0, 2)) / math.log(6)


@pytest.mark.parametrize("attend", [plain, function, F.scaled_dot_product_attention])
def test_heads_have_the_mean_of_their_own_attention(attend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    model = model_of(attend)
    structure = channels(model, X, units=["head"])
    for criterion, expected in zip((confidence, entropy), by_hand(model[0], X)):
        (scores,) = criterion(task_of(model), structure)
        torch.testing.assert_close(list(scores.values()), [expected])
        assert expected.min() >= 0 and expected.max() <= 1


def test_every_layer_has_its_own_attention() -> None:
    model = model_of(plain, layers=3)
    (scores,) = confidence(task_of(model), channels(model, X, units=["head"]))
    x = X
    for layer, value in zip(model, scores.values(), strict=False):
        torch.testing.assert_close(value, by_hand(layer, x)[0])
        x = layer(x)
    assert len(scores) == 3


def test_query_heads_that_leave_together_have_their_mean() -> None:
    """Six query heads for two keys: units are the keys with three query heads each, and the n-th query heads of both keys."""
    model = model_of(plain, heads=6, shared=2)
    structure = channels(model, X, units=["head"])
    (scores,) = confidence(task_of(model), structure)
    heads = by_hand(model[0], X)[0].view(2, 3)
    torch.testing.assert_close(list(scores.values()), [heads.mean(1), heads.mean(0)])


def test_the_heads_of_pytorchs_attention_are_seen_in_its_graph() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.TransformerEncoderLayer(8, 4, 16, batch_first=True, dropout=0.0).double()
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    graph = as_graph(model, x)
    structure = channels(graph, x, units=["head"])
    (scores,) = confidence(Task(graph, [(x, x)], F.mse_loss), structure)
    _, p = model.self_attn(x, x, x, average_attn_weights=False)
    torch.testing.assert_close(next(iter(scores.values())), p.detach().amax(-1).mean((0, 2)))


@pytest.mark.parametrize("masked", ["no", "causal", "bool", "float"])
@pytest.mark.parametrize("shared", [4, 2])
def test_probabilities_are_those_of_the_fused_kernel(masked: str, shared: int) -> None:
    chance = torch.Generator().manual_seed(0)
    q = torch.randn(2, 4, 6, 3, dtype=torch.float64, generator=chance)
    k, v = (torch.randn(2, shared, 6, 3, dtype=torch.float64, generator=chance) for _ in range(2))
    seen = torch.ones(6, 6, dtype=torch.bool).tril(1)
    options: dict[str, object] = {
        "no": {},
        "causal": {"is_causal": True},
        "bool": {"attn_mask": seen},
        "float": {"attn_mask": torch.zeros(6, 6, dtype=torch.float64).masked_fill(~seen, -1e9)},
    }[masked] | {"enable_gqa": shared != 4, "scale": 0.7}
    expected = F.scaled_dot_product_attention(q, k, v, **options)  # type: ignore[arg-type]
    torch.testing.assert_close(probabilities(q, k, v, **options) @ v.repeat_interleave(4 // shared, 1), expected)  # type: ignore[arg-type]


def linear(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return q.sigmoid() @ (k.sigmoid().transpose(-1, -2) @ v)


def test_attention_without_probabilities_is_said() -> None:
    model = model_of(linear)
    with pytest.raises(BadInput, match=r"saw no attention probabilities of the heads .*Choose gate"):
        list(confidence(task_of(model), channels(model, X, units=["head"])))


def test_heads_that_do_not_fit_the_units_are_not_guessed() -> None:
    model = model_of(plain)
    structure = channels(model, X, units=["head"])
    (name, group) = next(iter(structure.groups.items()))
    line = next(member for member in group.members if member[0] == "0.out.weight")
    for heads in (2, 5, 8):
        with pytest.raises(BadInput, match=r"do not fit|not whole heads"):
            by_unit(torch.ones(4, heads, 6), structure, name, line)


class Transposed(nn.Module):
    """One matrix for queries, keys and values, and weights that are (inputs, outputs), as GPT-2 has them."""

    def __init__(self, heads: int = 3, dim: int = 2) -> None:
        super().__init__()
        self.heads, self.dim = heads, dim
        self.all = nn.Parameter(torch.randn(5, 3 * heads * dim, dtype=torch.float64))
        self.out = nn.Parameter(torch.randn(heads * dim, 5, dtype=torch.float64))
        self.bias, self.shift = nn.Parameter(torch.randn(3 * heads * dim).double()), nn.Parameter(torch.randn(5).double())

    def parts(self, x: Tensor) -> list[Tensor]:
        parts = torch.addmm(self.bias, x.flatten(0, 1), self.all).split(self.heads * self.dim, 1)
        return [part.view(len(x), -1, self.heads, self.dim).transpose(1, 2) for part in parts]

    def forward(self, x: Tensor) -> Tensor:
        y = plain(*self.parts(x)).transpose(1, 2).reshape(-1, self.heads * self.dim)
        return torch.addmm(self.shift, y, self.out).view(x.shape)


def test_weights_may_be_transposed_and_fused() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(Transposed(), Transposed(), nn.Linear(5, 3).double())
    structure = channels(model, X, units=["head"])
    (scores,) = confidence(task_of(model), structure)
    x, expected = X, []
    for layer in model[:2]:
        q, k, _ = layer.parts(x)
        expected.append((q @ k.transpose(-1, -2) / 2**0.5).softmax(-1).amax(-1).mean((0, 2)).detach())
        x = layer(x)
    torch.testing.assert_close(list(scores.values()), expected)
