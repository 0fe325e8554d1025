from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.counted import nodes
from secateur.errors import BadInput, BadLoss
from secateur.task import Task, describe, each, seeded, to
from toy import batches, mlp


def test_gradients_are_those_of_plain_backward() -> None:
    model, data = mlp(5, 7, 3), batches(2, 6, 5, 3)
    found = list(Task(model, data, F.cross_entropy).gradients())
    for (x, y), gradients in zip(data, found):
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()
        for name, value in model.named_parameters():
            torch.testing.assert_close(gradients[name], value.grad)


def test_a_loss_for_every_sample_is_averaged() -> None:
    model, data = mlp(5, 7, 3), batches(1, 6, 5, 3)
    one = next(Task(model, data, F.cross_entropy).gradients())
    many = next(Task(model, data, lambda out, y: F.cross_entropy(out, y, reduction="none")).gradients())
    torch.testing.assert_close(one, many)


class Everything(nn.Module):
    """Modes, buffers, dropout, tied and frozen weights: whatever a measurement could disturb."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.b.weight = self.a.weight
        self.a.bias.requires_grad_(False)
        self.norm, self.drop = nn.BatchNorm1d(4), nn.Dropout(0.5)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.b(self.drop(self.norm(self.a(x))))


def test_the_model_is_left_as_it_was() -> None:
    model = Everything()
    model.norm.eval()
    model.a.weight.grad = torch.ones(4, 4)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    modes, chance = [module.training for module in model.modules()], torch.get_rng_state()
    gradients = list(Task(model, batches(3, 6, 4, 4, dtype=torch.float32), F.cross_entropy).gradients())
    assert len(gradients) == 3 and set(gradients[0]) == {name for name, _ in model.named_parameters()}
    torch.testing.assert_close(dict(model.state_dict()), state, rtol=0, atol=0)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(model.a.weight.grad, torch.ones(4, 4)) and model.b.bias.grad is None
    assert not model.a.bias.requires_grad and torch.equal(torch.get_rng_state(), chance)


def test_a_parameter_the_loss_does_not_depend_on_has_a_gradient_of_zero() -> None:
    task = Task(Idle(), batches(1, 2, 4, 3, dtype=torch.float32), F.cross_entropy)
    gradients = next(task.gradients())
    assert torch.equal(gradients["idle"], torch.zeros(2)) and "whole" not in gradients


class Idle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.idle = nn.Linear(4, 3), nn.Parameter(torch.ones(2))
        self.whole = nn.Parameter(torch.ones(2, dtype=torch.int64), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


def test_half_precision_and_sparse_gradients_come_dense_in_single_precision() -> None:
    model = nn.Sequential(nn.Embedding(9, 4, sparse=True), nn.Flatten(), nn.Linear(8, 3))
    gradients = next(Task(model, [(torch.randint(0, 9, (5, 2)), torch.randint(0, 3, (5,)))], F.cross_entropy).gradients())
    assert not gradients["0.weight"].is_sparse and gradients["0.weight"].shape == (9, 4)
    half = mlp(4, 3, dtype=torch.bfloat16)
    assert next(Task(half, batches(1, 2, 4, 3, dtype=torch.bfloat16), F.cross_entropy).gradients())["0.weight"].dtype == torch.float32


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"loss": F.cross_entropy(self.linear(x), labels)}


def test_a_dict_is_both_keyword_arguments_and_targets() -> None:
    x, y = batches(1, 6, 4, 3, dtype=torch.float32)[0]
    model = Named()
    gradients = next(Task(model, [{"x": x, "labels": y}], lambda out, _: out["loss"]).gradients())
    expected = next(Task(model.linear, [(x, y)], F.cross_entropy).gradients())
    torch.testing.assert_close(gradients["linear.weight"], expected["weight"])


def test_a_tuple_of_inputs_is_the_arguments() -> None:
    model = nn.Bilinear(3, 4, 2)
    gradients = next(Task(model, [((torch.randn(5, 3), torch.randn(5, 4)), torch.zeros(5, 2))], F.mse_loss).gradients())
    assert gradients["weight"].shape == (2, 3, 4)


class Pair(NamedTuple):
    x: Tensor
    y: list[object]


def test_containers_are_rebuilt_as_they_were() -> None:
    value = Pair(torch.ones(2), [{"a": torch.ones(1)}, "text", None, (torch.ones(3),)])
    moved = to(value, torch.device("meta"))
    assert isinstance(moved, Pair) and moved.x.is_meta and moved.y[1:3] == ["text", None] and moved.y[0]["a"].is_meta
    assert each(lambda leaf: leaf, {"a": [1, (2, 3)]}) == {"a": [1, (2, 3)]}


@pytest.mark.parametrize("make", [lambda: nn.LSTM(3, 4, batch_first=True), lambda: nn.GRU(3, 4, batch_first=True)], ids=["lstm", "gru"])
def test_recurrent_nets_can_be_differentiated_twice(make: Callable[[], nn.Module]) -> None:
    task = Task(make(), [(torch.randn(2, 5, 3), torch.zeros(2, 5, 4))], lambda out, y: F.mse_loss(out[0], y))
    loss, leaves = next(task.losses(twice=True))
    first = torch.autograd.grad(loss, list(leaves.values()), create_graph=True)
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(sum(g.square().sum() for g in first), list(leaves.values())))


def test_attention_can_be_differentiated_twice() -> None:
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    loss, leaves = next(Task(model, [(torch.randn(2, 5, 8), torch.zeros(2, 5, 8))], F.mse_loss).losses(twice=True))
    first = torch.autograd.grad(loss, list(leaves.values()), create_graph=True)
    assert len(torch.autograd.grad(sum(g.square().sum() for g in first), list(leaves.values()))) == len(leaves)


def test_seeded_chance_repeats_and_leaves_the_callers_alone() -> None:
    before = torch.get_rng_state()
    with seeded(3, torch.device("cpu")):
        first = torch.rand(4)
    with seeded(3, torch.device("cpu")):
        assert torch.equal(torch.rand(4), first)
    assert torch.equal(torch.get_rng_state(), before)


def wrong(change: Callable[[Tensor, Tensor], object], loss: Callable[[Tensor, Tensor], object] = F.cross_entropy) -> Task:
    good, (x, y) = batches(2, 6, 5, 3)
    return Task(mlp(5, 7, 3), [good, change(x, y)], loss)


@pytest.mark.parametrize(
    ("task", "error", "says"),
    [
        (Task(mlp(5, 3), [], F.cross_entropy), BadInput, "no batch"),
        (Task(mlp(5, 3), iter([]), F.cross_entropy), BadInput, "used up"),
        (wrong(lambda x, y: (x, y + 1)), BadInput, r"batch 1 .*\(6, 3\).* in 1\.\.3"),
        (wrong(lambda x, y: (x * float("nan"), y)), BadLoss, "batch 1 the loss is nan"),
        (wrong(lambda x, y: (x, y), lambda out, y: out.sum() * float("inf")), BadLoss, "batch 0 the loss is -?inf"),
        (wrong(lambda x, y: (x, y), lambda out, y: (out.argmax(1) == y).double()), BadLoss, "batch 0 .* differentiable"),
        (wrong(lambda x, y: (x, y), lambda out, y: F.cross_entropy(out, y).item()), BadLoss, "float, not a tensor"),
        (wrong(lambda x, y: (x[:, :3], y)), BadInput, r"batch 1 the model could not run on inputs of shape \(6, 3\)"),
        (wrong(lambda x, y: x), BadInput, "pairs"),
        (wrong(lambda x, y: (x, y, y)), BadInput, "a tuple of 3"),
        (wrong(lambda x, y: ({"x": x}, y)), BadInput, "batch 1 the model could not run"),
    ],
)
def test_what_cannot_be_used_is_said(task: Task, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        list(task.gradients())


class InPlace(nn.Module):
    """Changes what the derivative of the exponential needs, from the second batch on."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.calls = nn.Linear(5, 3), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        result: Tensor = self.layer(x).exp()
        return result.add_(1) if self.calls > 1 else result


def test_a_backward_pass_that_fails_is_a_bad_loss_that_names_the_batch() -> None:
    with pytest.raises(BadLoss, match=r"batch 1 the loss has no derivative.*inplace") as raised:
        list(Task(InPlace(), [(torch.randn(6, 5), torch.arange(6) % 3)] * 2, F.cross_entropy).gradients())
    assert "\n" not in str(raised.value)


def test_the_users_own_interrupt_passes() -> None:
    def loss(outputs: object, targets: object) -> Tensor:
        raise KeyboardInterrupt

    model = mlp(5, 3)
    with pytest.raises(KeyboardInterrupt):
        list(Task(model, batches(1, 2, 5, 3), loss).gradients())
    assert model.training


def test_describe_tells_shape_and_range() -> None:
    assert describe(torch.tensor([3, 5])) == "of shape (2,) in 3..5"
    assert describe({"a": torch.zeros(1)}) == "{a: of shape (1,)}"
    assert describe((1, 2)) == "a tuple of 2" and describe(None) == "of type NoneType"


@pytest.mark.parametrize("shape", [(6, 4), (6, 4, 5), (6, 4, 3, 2)])
@pytest.mark.parametrize("settings", [{}, {"affine": False}, {"track_running_stats": False}, {"eps": 0.1}])
def test_batch_norms_that_are_differentiated_twice_are_the_same(shape: tuple[int, ...], settings: dict[str, object]) -> None:
    """Values, and products with the second derivative, to rounding."""
    norm = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}[len(shape)](4, **settings)
    model = nn.Sequential(nn.Linear(shape[-1], shape[-1]), norm, nn.Tanh()).double()
    chance = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in (*model.parameters(), *(value for value in model.buffers() if value.is_floating_point())):
            value.copy_(torch.rand(value.shape, generator=chance, dtype=value.dtype) + 0.5)
    x = torch.randn(shape, generator=chance, dtype=torch.float64)
    found = []
    for twice in (False, True):
        loss, leaves = Task(model, [], lambda y, _: y.square().mean()).loss_on(x, x, twice=twice)
        fused = "NativeBatchNormBackward0" in {node.name() for node in nodes(loss)}
        assert fused is not (twice and "track_running_stats" not in settings)
        gradients = torch.autograd.grad(loss, [*leaves.values()], create_graph=True)
        found.append([loss, *gradients, *torch.autograd.grad(sum(g.sum() for g in gradients), [*leaves.values()])])
    torch.testing.assert_close(*found)
