"""Every criterion: finite, deterministic, blind to nothing that matters, and equal to its slow definition."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur import tree
from secateur.criteria import CRITERIA, criterion, name_of
from secateur.criteria.curvature import hessian
from secateur.errors import BadInput, BadLoss
from secateur.measure import measure
from secateur.structure import Structure, weights
from secateur.task import Task
from secateur.tree import Scores, Tree
from toy import Hidden, batches, mlp

WIDTHS = (6, 5, 4, 3)


def toy(count: int = 2) -> tuple[Task, Hidden]:
    model = mlp(*WIDTHS)
    return Task(model, batches(count, 8, 6, 3), F.cross_entropy, seed=1), Hidden(model)


def loss_at(task: Task, values: Tree, batch: int) -> float:
    x, y = list(task.data)[batch]
    return float(task.loss(torch.func.functional_call(task.model, values, (x,)), y).detach())


def finite_differences(task: Task, batch: int, step: float = 1e-6) -> Tree:
    """dL/dw, one weight at a time."""
    start = {name: value.clone() for name, value in task.parameters().items()}
    result = tree.apply(torch.zeros_like, start)
    for name, value in start.items():
        for index in range(value.numel()):
            old = value.view(-1)[index].item()
            losses = []
            for sign in (1, -1):
                value.view(-1)[index] = old + sign * step
                losses.append(loss_at(task, start, batch))
            value.view(-1)[index] = old
            result[name].view(-1)[index] = (losses[0] - losses[1]) / (2 * step)
    return result


def test_reduce_is_the_derivative_of_expand() -> None:
    task, structure = toy()
    values = {name: torch.randn_like(value) for name, value in task.parameters().items()}
    keep = {name: torch.ones(group.shape, dtype=torch.float64, requires_grad=True) for name, group in structure.groups.items()}
    product = sum((mask * values[name]).sum() for name, mask in structure.expand(keep).items())
    gradients = torch.autograd.grad(product, list(keep.values()))
    torch.testing.assert_close(structure.reduce(values), dict(zip(keep, gradients)))


@pytest.mark.parametrize("name", ["gradient", "taylor", "fisher"])
@pytest.mark.parametrize("units", ["hidden", "weights"])
def test_gradient_criteria_agree_with_finite_differences(name: str, units: str) -> None:
    task, structure = toy()
    over: Structure = structure if units == "hidden" else weights(task.model)
    w = task.parameters()
    for batch, scores in enumerate(CRITERIA[name](task, over)):
        g = finite_differences(task, batch)
        expected = {
            "gradient": lambda g: over.reduce(tree.absolute(g)),
            "taylor": lambda g: tree.square(over.reduce(tree.mul(g, w))),
            "fisher": lambda g: over.reduce(tree.square(g)),
        }[name](g)
        torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-8)


def test_taylor_is_the_squared_derivative_of_the_loss_by_the_mask() -> None:
    task, structure = toy(1)
    keep = {name: torch.ones(group.shape, dtype=torch.float64, requires_grad=True) for name, group in structure.groups.items()}
    x, y = task.data[0]
    masked = tree.mul(task.parameters(), structure.expand(keep))
    loss = F.cross_entropy(torch.func.functional_call(task.model, masked, (x,)), y)
    gradients = torch.autograd.grad(loss, list(keep.values()))
    torch.testing.assert_close(next(iter(CRITERIA["taylor"](task, structure))), {n: g.square() for n, g in zip(keep, gradients)})


def test_magnitudes_are_norms_of_what_a_unit_consists_of() -> None:
    task, structure = toy()
    w = task.parameters()
    unit = torch.cat([w["0.weight"][2], w["0.bias"][2:3], w["2.weight"][:, 2]])
    for name, order in (("l1", 1), ("l2", 2), ("magnitude", 2)):
        (scores,) = CRITERIA[name](task, structure)
        torch.testing.assert_close(scores["h0"][2], torch.linalg.vector_norm(unit, order))
    (single,) = CRITERIA["magnitude"](task, weights(task.model))
    torch.testing.assert_close(single["2.weight"], w["2.weight"].abs())


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
        increase = loss_at(task, {"w": removed}, 0) - loss_at(task, {"w": model.w.detach()}, 0)
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
    error: list[float] = []
    for probes in (1, 2000):
        (scores,) = hessian(task, structure, probes=probes)
        error.append(float((tree.flat(scores) - tree.flat(exact)).norm() / tree.flat(exact).norm()))
    assert error[1] < 0.15 and error[1] < error[0] / 3


def test_a_loss_without_curvature_has_obd_scores_of_zero() -> None:
    model = nn.Linear(3, 2)
    (scores,) = hessian(Task(model, [(torch.randn(4, 3), torch.zeros(4))], lambda out, _: out.sum()), weights(model))
    assert torch.equal(scores["weight"], torch.zeros(2, 3))


@pytest.mark.parametrize("name", CRITERIA)
def test_scores_are_finite_and_repeat_under_a_seed(name: str) -> None:
    task, structure = toy()
    first, second = list(CRITERIA[name](task, structure)), list(CRITERIA[name](task, structure))
    assert len(first) == (1 if name in ("magnitude", "l1", "l2", "random") else 2)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    for scores in first:
        assert {group: tuple(v.shape) for group, v in scores.items()} == {"h0": (5,), "h1": (4,)}
        assert all(torch.isfinite(value).all() and not value.requires_grad for value in scores.values())


def test_another_seed_is_another_chance() -> None:
    task, structure = toy()
    other = Task(task.model, task.data, task.loss, seed=2)
    assert not torch.equal(next(iter(CRITERIA["random"](task, structure)))["h0"], next(iter(CRITERIA["random"](other, structure)))["h0"])


@pytest.mark.parametrize("name", [name for name in CRITERIA if name != "random"])
def test_planted_dead_units_come_last(name: str) -> None:
    task, structure = toy()
    dead = [1, 3]
    with torch.no_grad():
        task.model[0].weight[dead] = 0
        task.model[0].bias[dead] = 0
        task.model[2].weight[:, dead] = 0
    scores = measure(task, structure, name).global_["h0"]
    assert sorted(scores.abs().argsort()[:2].tolist()) == dead


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    """A net of 24 hidden units that learned a task for which a few suffice, and a group lasso made it let go of the others."""
    chance = torch.Generator().manual_seed(0)
    x = torch.randn(512, 8, generator=chance, dtype=torch.float64)
    y = (x[:, 0] * 2 > x[:, 1]).long() + 2 * (x[:, 2] > 0.3).long()
    model = mlp(8, 24, 4)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(150):
        optimizer.zero_grad()
        lasso = (model[0].weight.square().sum(1) + model[2].weight.square().sum(0) + 1e-9).sqrt().sum()
        (F.cross_entropy(model(x), y) + 0.01 * lasso).backward()
        optimizer.step()
    return model, list(zip(x.split(64), y.split(64)))


@pytest.mark.parametrize("name", [name for name in CRITERIA if name != "random"])
def test_every_criterion_beats_chance(name: str, trained: tuple[nn.Module, list[tuple[Tensor, Tensor]]]) -> None:
    model, data = trained
    structure = Hidden(model)

    def loss_without(scores: Scores, count: int = 12) -> float:
        keep = {"h0": torch.ones(24, dtype=torch.bool)}
        keep["h0"][scores["h0"].argsort()[:count]] = False
        masked = tree.mul(Task(model, data, F.cross_entropy).parameters(), structure.expand(keep))
        return sum(loss_at(Task(model, data, F.cross_entropy), masked, batch) for batch in range(len(data)))

    by_chance = [loss_without(measure(Task(model, data, F.cross_entropy, seed=s), structure, "random").global_) for s in range(15)]
    assert loss_without(measure(Task(model, data, F.cross_entropy), structure, name).global_) < min(by_chance)


def test_a_function_of_ones_own_is_a_criterion() -> None:
    def largest(task: Task, structure: Structure) -> Iterator[Scores]:
        yield structure.reduce(tree.square(tree.square(task.parameters())))

    task, structure = toy()
    measured = measure(task, structure, largest)
    assert measured.criterion == "largest" and criterion(largest) is largest
    assert name_of(functools.partial(hessian, probes=3)) == "hessian"


@pytest.mark.parametrize("which", ["tailor", 3])
def test_an_unknown_criterion_is_said_with_those_there_are(which: object) -> None:
    with pytest.raises(BadInput, match=f"{which!r}.*gradient, taylor, magnitude, l1, l2, fisher, hessian, random"):
        criterion(which)  # type: ignore[arg-type]


def test_a_model_without_a_second_derivative_is_said() -> None:
    model = nn.Sequential(nn.EmbeddingBag(8, 4, mode="mean"), nn.Linear(4, 3))
    task = Task(model, [(torch.arange(6).reshape(3, 2), torch.arange(3))], F.cross_entropy)
    with pytest.raises(BadLoss, match="batch 0 the loss has no derivative"):
        list(hessian(task, weights(model)))
