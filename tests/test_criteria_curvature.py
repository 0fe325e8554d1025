"""criteria/curvature.py, against the whole Hessian."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur import tree
from secateur.criteria.curvature import exact_hessian, hessian, hutchpp
from secateur.errors import BadInput, BadLoss
from secateur.structure import weights
from secateur.task import Task
from secateur.tree import Scores
from toy import Hidden, batches, mlp


@pytest.fixture(autouse=True)
def the_same_chance() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


class Quadratic(nn.Module):
    """L(w) = sum of a_i w_i^2 / 2 + b_i w_i: its Hessian is diag(a)."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([[1.0, -2.0, 3.0], [0.5, 0.0, -1.0]], dtype=torch.float64))

    def forward(self, a: Tensor) -> Tensor:
        return (a * self.w.square() / 2 + 3 * self.w).sum()


def test_obd_is_exact_on_a_quadratic() -> None:
    a = torch.tensor([[4.0, 1.0, 0.25], [8.0, 7.0, -2.0]], dtype=torch.float64)
    model = Quadratic()
    (scores,) = hessian(Task(model, [(a, a)], lambda out, _: out), weights(model))
    torch.testing.assert_close(scores["w"], model.w.detach().square() * a / 2)
    # and so is what it estimates: at the minimum of the quadratic, the increase of the loss when the weight is set to zero
    with torch.no_grad():
        model.w.copy_(-3 / a)
    task = Task(model, [(a, a)], lambda out, _: out)
    (scores,) = hessian(task, weights(model))
    for index in range(6):
        removed = model.w.detach().clone()
        removed.view(-1)[index] = 0
        increase = (torch.func.functional_call(model, {"w": removed}, (a,)) - model(a)).item()
        assert scores["w"].view(-1)[index].item() == pytest.approx(increase)


def test_hutchinsons_probes_come_to_the_diagonal_of_the_hessian() -> None:
    task = Task(mlp(3, 2, 2), batches(1, 8, 3, 2), F.cross_entropy, seed=1)
    structure = weights(task.model)
    x, y = task.data[0]
    w = task.parameters()

    def loss(flat: Tensor) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(task.model, tree.unflat(flat, w), (x,)), y)

    full = torch.autograd.functional.hessian(loss, tree.flat(w))
    exact = structure.reduce(tree.scale(tree.mul(tree.square(w), tree.unflat(full.diag(), w)), 0.5))
    torch.testing.assert_close(next(exact_hessian(task, structure)), exact)
    error: list[float] = []
    for probes in (1, 2000):
        (scores,) = hessian(task, structure, probes=probes)
        error.append(float((tree.flat(scores) - tree.flat(exact)).norm() / tree.flat(exact).norm()))
    assert error[1] < 0.15 and error[1] < error[0] / 3


def test_a_loss_without_curvature_has_obd_scores_of_zero() -> None:
    model = nn.Linear(3, 2)
    for criterion in (hessian, hutchpp, exact_hessian):
        (scores,) = criterion(Task(model, [(torch.randn(4, 3), torch.zeros(4))], lambda out, _: out.sum()), weights(model))
        assert torch.equal(scores["weight"], torch.zeros(2, 3))


class LowRank(nn.Module):
    """L(w) = |V'w|^2 / 2: its Hessian VV' is of rank 2."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.linspace(0.5, 2, 12, dtype=torch.float64).view(3, 4))

    def forward(self, v: Tensor) -> Tensor:
        return (v.T @ self.w.view(-1)).square().sum() / 2


def test_hutchs_plus_are_exact_where_the_hessian_is_of_low_rank_and_hutchinson_is_not() -> None:
    v = torch.randn(12, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    model = LowRank()
    task = Task(model, [(v, v)], lambda out, _: out)
    exact = model.w.detach().square() * (v @ v.T).diag().view(3, 4) / 2
    (scores,) = hutchpp(task, weights(model), probes=6)
    torch.testing.assert_close(scores["w"], exact)
    (estimate,) = hessian(task, weights(model), probes=6)
    assert (estimate["w"] - exact).norm() > 0.05 * exact.norm()


def test_hutchs_plus_come_to_the_diagonal() -> None:
    task = Task(mlp(3, 3, 2), batches(1, 8, 3, 2), F.cross_entropy)
    structure = weights(task.model)

    def error(scores: Scores) -> float:
        (exact,) = exact_hessian(task, structure)
        return float((tree.flat(scores) - tree.flat(exact)).norm() / tree.flat(exact).norm())

    few, many = (
        sum(error(next(hutchpp(Task(task.model, task.data, task.loss, seed), structure, probes))) for seed in range(5))
        for probes in (3, 60)
    )
    assert many < 1e-6 < few  # three products for each of 20 weights: nothing is left to chance


def test_the_exact_diagonal_of_a_large_net_is_refused() -> None:
    model = nn.Linear(200, 100)
    task = Task(model, [(torch.randn(2, 200), torch.zeros(2, dtype=torch.long))], F.cross_entropy)
    with pytest.raises(BadInput, match=r"20,100: more than 10,000.*Choose hessian or hutch"):
        list(exact_hessian(task, weights(model)))


def test_too_few_products_are_refused() -> None:
    model = mlp(6, 5, 3)
    with pytest.raises(BadInput, match="probes is 2"):
        list(hutchpp(Task(model, batches(1, 4, 6, 3), F.cross_entropy), Hidden(model), probes=2))


def test_a_model_without_a_second_derivative_is_said() -> None:
    model = nn.Sequential(nn.EmbeddingBag(8, 4, mode="mean"), nn.Linear(4, 3))
    task = Task(model, [(torch.arange(6).reshape(3, 2), torch.arange(3))], F.cross_entropy)
    with pytest.raises(BadLoss, match="batch 0 the loss has no derivative"):
        list(hessian(task, weights(model)))
