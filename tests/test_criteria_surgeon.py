"""criteria/surgeon.py: what the saliency promises is what the loss of a linear regression does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.criteria.surgeon import inverse_fisher, obs
from secateur.errors import BadInput
from secateur.structure import Group, blocks, channels, layers, weights
from secateur.task import Task
from test_criteria import KINDS
from toy import Hidden, batches, mlp


@pytest.fixture(autouse=True)
def the_same_chance() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def regression(inputs: int = 5, samples: int = 64) -> tuple[nn.Module, Tensor, Tensor]:
    """A least-squares fit whose residuals are all +1 or -1, so that the empirical Fisher E[r^2 xx'] is the Hessian E[xx']."""
    chance = torch.Generator().manual_seed(0)
    x, mix = (torch.randn(rows, inputs, generator=chance, dtype=torch.float64) for rows in (samples, inputs))
    x = x @ mix
    residual = torch.where(torch.arange(samples) % 2 == 0, 1.0, -1.0).double()
    x = x - residual[:, None] * (residual @ x) / samples  # orthogonal to the residuals: the fit is the best one
    model = nn.Linear(inputs, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.linspace(-1, 2, inputs))
    return model, x, (model(x).detach().squeeze(1) + residual)[:, None]


def half_square(z: Tensor, y: Tensor) -> Tensor:
    return (z - y).square().mean() / 2


def refitted(x: Tensor, y: Tensor, kept: list[int]) -> float:
    best = torch.linalg.lstsq(x[:, kept], y).solution
    return half_square(x[:, kept] @ best, y).item()


def test_obs_is_the_increase_of_the_loss_when_the_others_are_fitted_again() -> None:
    model, x, y = regression()
    (scores,) = obs(Task(model, [(x[:40], y[:40]), (x[40:], y[40:])], half_square), weights(model), block=5, damping=1e-10)
    for gone in range(5):
        increase = refitted(x, y, [i for i in range(5) if i != gone]) - half_square(model(x), y).item()
        assert scores["weight"][0, gone].item() == pytest.approx(increase, rel=1e-6)


def test_obs_of_a_block_is_that_of_all_its_weights_and_the_last_may_be_smaller() -> None:
    model, x, y = regression()
    (scores,) = obs(Task(model, [(x, y)], half_square), blocks(model, (1, 2)), block=5, damping=1e-10)
    for number, kept in enumerate(([2, 3, 4], [0, 1, 4], [0, 1, 2, 3])):
        increase = refitted(x, y, kept) - half_square(model(x), y).item()
        assert scores["weight"][0, number].item() == pytest.approx(increase, rel=1e-6)


class Pairs(nn.Module):
    """Two inputs a channel: what the first layer makes of each input, unchanged, is read by the second."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.out = nn.Conv1d(2, 1, 2, bias=False).double()
        with torch.no_grad():
            self.out.weight.copy_(weight.view(1, 2, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x.view(len(x), 2, 2))[:, :, 0]


def test_obs_of_a_unit_is_that_of_all_its_weights_at_once() -> None:
    model, x, y = regression(4)
    pairs = Pairs(model.weight.detach())

    class Inputs(Hidden):
        @property
        def groups(self) -> dict[str, Group]:
            return {"in": Group("in", (2,))}

        def parts(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {"in": values["out.weight"][0]}

    (scores,) = obs(Task(pairs, [(x, y)], half_square), Inputs(pairs), block=4, damping=1e-10)  # type: ignore[arg-type]
    for unit, kept in ((0, [2, 3]), (1, [0, 1])):
        assert scores["in"][unit].item() == pytest.approx(refitted(x, y, kept) - half_square(pairs(x), y).item(), rel=1e-6)


@pytest.mark.parametrize("block", [1, 4, 7, 100])
def test_the_inverse_is_that_of_the_damped_fisher_of_every_block(block: int) -> None:
    task = Task(mlp(3, 4, 2), batches(2, 5, 3, 2), F.cross_entropy)
    gradients = []
    for x, y in task.data:
        for i in range(len(x)):
            (g,) = Task(task.model, [(x[i : i + 1], y[i : i + 1])], task.loss).gradients()
            gradients.append(g)
    inverse, at = inverse_fisher(task, block, 0.1), 0
    for name, value in task.parameters().items():
        rows = torch.stack([g[name].reshape(-1) for g in gradients])
        for columns in rows.split(block, 1):
            n = columns.shape[1]
            fisher = columns.T @ columns / len(rows) + 0.1 * torch.eye(n, dtype=torch.float64)
            torch.testing.assert_close(inverse[at][:n, :n], torch.linalg.inv(fisher))
            at += 1
        assert value.numel() == rows.shape[1]
    assert at == len(inverse)


@pytest.mark.parametrize("block", [1, 5, 64])
@pytest.mark.parametrize("kind", ["connections", "channels", "hidden states", "layers"])
def test_units_in_several_blocks_have_the_sum_of_what_each_costs(kind: str, block: int) -> None:
    model, data = KINDS[kind].model(), KINDS[kind].data(1, 4)
    structure = KINDS[kind].structure(model, data[0][0])
    task = Task(model, data, F.cross_entropy)
    (scores,) = obs(task, structure, block=block, damping=0.1)
    inverse = inverse_fisher(task, block, 0.1)
    w = task.parameters()
    for name, group in structure.groups.items():
        for unit in range(0, group.size, 3):
            keep = {n: torch.ones(g.shape) for n, g in structure.groups.items()}
            keep[name].view(-1)[unit] = 0
            gone = {n: mask.expand(w[n].shape) == 0 for n, mask in structure.expand(keep).items()}
            cost, at = 0.0, 0
            for n, value in w.items():
                for part, mask in zip(value.reshape(-1).split(block), gone[n].reshape(-1).split(block)):
                    if mask.any():
                        inside = inverse[at][: len(part), : len(part)][mask][:, mask]
                        cost += float(part[mask] @ torch.linalg.inv(inside) @ part[mask]) / 2
                    at += 1
            assert scores[name].view(-1)[unit].item() == pytest.approx(cost, rel=1e-9)


def test_layers_of_different_shapes_cannot_be_compared() -> None:
    class Block(nn.Module):
        def __init__(self, inner: int) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, inner), nn.Linear(inner, 4)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.b(self.a(x).relu())

    model = nn.Sequential(Block(5), Block(6), nn.Linear(4, 3))
    structure = layers(model, torch.randn(2, 4))
    with pytest.raises(BadInput, match="layers of the group layers differ in the shapes of their weights"):
        list(obs(Task(model, [(torch.randn(4, 4), torch.tensor([0, 1, 2, 0]))], F.cross_entropy), structure))


@pytest.mark.parametrize(("block", "damping"), [(0, 1.0), (4, 0.0)])
def test_a_block_and_a_damping_have_to_be_some(block: int, damping: float) -> None:
    model = mlp(3, 4, 2)
    with pytest.raises(BadInput, match="OBS needs a block of 1 or more and a damping above zero"):
        list(obs(Task(model, batches(1, 4, 3, 2), F.cross_entropy), channels(model, torch.randn(2, 3).double()), block, damping))
