"""Watching: what is seen of a run, what falls to the slow way, and that it changes nothing but the time."""

# ruff: noqa: E501 (a table reads by its columns)

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.checkpoint import checkpoint

from cases import Net, conv
from secateur.flows import FLOWS, flow, gate_inputs, gates, inputs, sums
from secateur.flows.gates import per_sample
from secateur.structure import Structure, channels
from secateur.task import Task
from test_flows import gradients_of, loss, oracle

X = torch.randn(3, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Twice(torch.autograd.Function):
    """A product with twice the weight, of one's own."""

    @staticmethod
    def forward(ctx: object, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)  # type: ignore[attr-defined]
        return F.linear(x, 2 * w)

    @staticmethod
    def backward(ctx: object, g: Tensor) -> tuple[Tensor, Tensor]:
        x, w = ctx.saved_tensors  # type: ignore[attr-defined]
        return g @ (2 * w), 2 * g.flatten(0, -2).T @ x.flatten(0, -2)


@dataclass(frozen=True)
class Odd:
    """A model, and the parameters that no rule can follow in it: of gates, and of powers of gradients."""

    name: str
    build: Callable[[], nn.Module]
    slow: set[str]
    slow_powers: set[str]
    x: Tensor = X

    def __str__(self) -> str:
        return self.name


def attention(net: Net, x: Tensor) -> Tensor:
    y = net.a(x.flatten(2).transpose(1, 2))
    return net.b(net.attend(y, y, y)[0] + y)


def places(net: Net, x: Tensor) -> Tensor:
    return net.b((net.a(x.flatten(2).transpose(1, 2)) + net.scale[None] * 1.0).relu())


def with_parameter(net: nn.Module, **parameters: Tensor) -> nn.Module:
    for name, value in parameters.items():
        net.register_parameter(name, nn.Parameter(value))
    return net


INNER = {f"inner.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")}
ODD = [
    Odd("overwritten", lambda: nn.Sequential(conv(3, 6), nn.BatchNorm2d(6), nn.ReLU(inplace=True), conv(6, 5), nn.SiLU(inplace=True), conv(5, 2)), set(), set()),
    Odd("attention, time first", lambda: Net(attention, a=nn.Linear(3, 8), attend=nn.MultiheadAttention(8, 2, batch_first=True), b=nn.Linear(8, 2)), set(), set()),
    Odd("as many places as samples", lambda: Net(attention, a=nn.Linear(3, 8), attend=nn.MultiheadAttention(8, 2, batch_first=True), b=nn.Linear(8, 2)), set(), set(), X[:, :, :1, :3]),
    Odd("frames merged with samples", lambda: Net(lambda n, x: n.b(n.a(x.transpose(1, 2).flatten(0, 1)).relu().unflatten(0, (-1, 8)).mean(1)), a=nn.Conv1d(3, 6, 3), b=nn.Conv1d(6, 2, 3)), set(), set()),
    Odd("transposed product", lambda: with_parameter(Net(lambda n, x: n.b((x.mean((2, 3)) @ n.w).relu()), b=nn.Linear(6, 2)), w=torch.randn(3, 6)), set(), set()),
    Odd("product from the left", lambda: with_parameter(Net(lambda n, x: n.b((n.w @ x.mean((2, 3)).T).T.relu()), b=nn.Linear(6, 2)), w=torch.randn(6, 3)), set(), set()),
    Odd("embedding with padding", lambda: Net(lambda n, x: n.b(n.e((x[:, 0] > 0).long().sum(2)).relu()), e=nn.Embedding.from_pretrained(torch.randn(9, 6), freeze=False, padding_idx=4), b=nn.Linear(6, 2)), set(), set()),
    Odd("function of one's own", lambda: with_parameter(Net(lambda n, x: n.b(Twice.apply(x.mean((2, 3)), n.w).relu()), b=nn.Linear(6, 2)), w=torch.randn(6, 3)), {"w"}, {"w"}),
    Odd("by a view of it", lambda: with_parameter(Net(lambda n, x: n.b(F.linear(x.mean((2, 3)), n.w[:6]).relu()), b=nn.Linear(6, 2)), w=torch.randn(7, 3)), {"w"}, {"w"}),
    Odd("weight norm", lambda: nn.Sequential(weight_norm(nn.Conv2d(3, 6, 3)), nn.ReLU(), conv(6, 2)), {"0.parametrizations.weight.original0", "0.parametrizations.weight.original1"}, {"0.parametrizations.weight.original0", "0.parametrizations.weight.original1"}),
    Odd("a constant for all samples", lambda: with_parameter(Net(places, a=nn.Linear(3, 6), b=nn.Linear(6, 2)), scale=torch.randn(64, 6)), {"scale"}, {"scale"}),
    Odd("half of a bilinear form", lambda: Net(lambda n, x: n.b(n.a(x.mean((2, 3)), x.amax((2, 3)))), a=nn.Bilinear(3, 3, 6), b=nn.Linear(6, 2)), {"a.weight", "a.bias"}, {"a.weight", "a.bias"}),
    Odd("known and unknown", lambda: Net(lambda n, x: n.b(n.a(x.mean((2, 3))).relu()) + n.b.weight.exp().sum(), a=nn.Linear(3, 6), b=nn.Linear(6, 2)), {"b.weight"}, {"b.weight"}),
    Odd("checkpointed", lambda: Net(lambda n, x: n.o(checkpoint(n.inner, n.a(x.mean((2, 3))), use_reentrant=False)), a=nn.Linear(3, 5), inner=nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 5)), o=nn.Linear(5, 2)), INNER, INNER),
    Odd("without a gradient", lambda: Net(lambda n, x: n.b(n.a(x.mean((2, 3))).relu()) * blind(n.a, x), a=nn.Linear(3, 6), b=nn.Linear(6, 2)), set(), set()),
]  # fmt: skip


def blind(layer: nn.Linear, x: Tensor) -> Tensor:
    with torch.no_grad():
        return layer(x.mean((2, 3))).mean(1, keepdim=True)


EVERY = pytest.mark.parametrize("odd", ODD, ids=str)


def task_of(odd: Odd) -> Task:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = odd.build().double().eval()
    return Task(model, [(odd.x, torch.zeros(len(odd.x)))] * 2, loss)


def spied(monkeypatch: pytest.MonkeyPatch, module: str) -> list[set[str]]:
    """The parameters that get one backward pass a sample, as they come."""
    where = importlib.import_module(module)
    slowly, seen = where.gradients_of_every_sample, []
    monkeypatch.setattr(where, "gradients_of_every_sample", lambda task, batch, number, names: seen.append(names) or slowly(task, batch, number, names))
    return seen


@EVERY
def test_lines_are_those_of_one_backward_a_sample_whatever_a_rule_knows(odd: Odd, monkeypatch: pytest.MonkeyPatch) -> None:
    """Along the first two dimensions of every parameter, but of rows that are looked up the columns only."""
    task, seen = task_of(odd), spied(monkeypatch, "secateur.flows.gates")
    w = task.parameters()
    wanted = frozenset((name, dim) for name, value in w.items() for dim in range(min(value.dim(), 2)) if (name, dim) != ("e.weight", 0))
    for found, gradients in zip(per_sample(task, wanted), gradients_of(task)):
        assert found.keys() == wanted
        for (name, dim), line in found.items():
            products = torch.stack([w[name] * each[name] for each in gradients])
            torch.testing.assert_close(line, products.movedim(dim + 1, 1).flatten(2).sum(2) if products.dim() > 2 else products)
    assert set().union(*seen) == odd.slow


@EVERY
def test_powers_are_those_of_one_backward_a_sample_whatever_a_rule_knows(odd: Odd, monkeypatch: pytest.MonkeyPatch) -> None:
    task, seen = task_of(odd), spied(monkeypatch, "secateur.flows.elements")
    for found, gradients in zip(sums(task, set(task.parameters())), gradients_of(task)):
        torch.testing.assert_close(found, {name: torch.stack([each[name].square() for each in gradients]).sum(0) for name in found})
    assert set().union(*seen) == odd.slow_powers


@EVERY
def test_the_consumers_gates_are_the_lines_that_read(odd: Odd) -> None:
    """Of models whose readers have their inputs along dimension 1."""
    if odd.name in ("transposed product", "embedding with padding", "a constant for all samples", "half of a bilinear form"):
        pytest.skip("reads along another dimension, or along several")
    task = task_of(odd)
    structure = channels(task.model, odd.x)
    w = task.parameters()
    for found, gradients in zip(gate_inputs(task, structure), gradients_of(task)):
        lines = {(name, 1): torch.stack([(w[name] * each[name]).transpose(0, 1).flatten(1).sum(1) for each in gradients]) for name in w if w[name].dim() > 1}
        torch.testing.assert_close(found, structure.gather(lines))


def norms(x: Tensor) -> Tensor:
    return x.transpose(0, 1).flatten(1).norm(dim=1)


def test_what_weights_read_is_seen_channel_by_channel() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(conv(3, 4), nn.BatchNorm2d(4), nn.ReLU(inplace=True), conv(4, 8, groups=4), conv(8, 6, groups=2), nn.ConvTranspose2d(6, 5, 3), nn.Flatten(2), nn.Linear(100, 2)).double().eval()
    read: dict[str, Tensor] = {}
    for name, module in model.named_children():
        module.register_forward_pre_hook(lambda _, args, name=name: read.update({name: args[0].detach().clone()}))
    (found,) = inputs(Task(model, [(X, torch.zeros(3))], loss), norms)
    assert set(found) == {("0.weight", 1), ("3.weight", 0), ("4.weight", 1), ("5.weight", 0), ("7.weight", 1)}
    torch.testing.assert_close(found["0.weight", 1], norms(read["0"]))
    torch.testing.assert_close(found["3.weight", 0], norms(read["3"]).repeat_interleave(2))
    torch.testing.assert_close(found["4.weight", 1], torch.stack([norms(read["4"])[:4], norms(read["4"])[4:]]).norm(dim=0))
    torch.testing.assert_close(found["5.weight", 0], norms(read["5"]))
    torch.testing.assert_close(found["7.weight", 1], read["7"].flatten(0, 1).norm(dim=0))
    assert not any(module._forward_hooks for module in model.modules())


def test_a_rule_of_ones_own_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here one that knows nothing, in the place of that for linear layers: slower, and the same numbers."""
    task = task_of(next(odd for odd in ODD if odd.name == "transposed product"))
    structure: Structure = channels(task.model, X)
    before = dict(FLOWS)
    try:
        flow("linear")(lambda *args, **kwargs: None)
        seen = spied(monkeypatch, "secateur.flows.gates")
        torch.testing.assert_close(list(gates(task, structure)), oracle(task, structure))
        assert set().union(*seen) >= {"b.weight"}
    finally:
        FLOWS.clear()
        FLOWS.update(before)


def test_nothing_of_the_callers_changes() -> None:
    task = task_of(ODD[0])
    model = task.model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    list(gates(task, channels(model, X)))
    list(sums(task, set(task.parameters())))
    list(inputs(task, norms))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules()) and all(value.grad is None for value in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)
