"""criteria/gradients.py, against finite differences, one backward pass a sample, and the derivative by the mask."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from secateur import tree
from secateur.criteria import CRITERIA
from secateur.criteria.gradients import STEPS, movement
from secateur.errors import BadInput
from secateur.sensitivity import Collector
from secateur.structure import Structure, channels, weights
from secateur.task import Task
from secateur.tree import Scores, Tree
from toy import Hidden, batches, mlp


@pytest.fixture(autouse=True)
def the_same_chance() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def toy(count: int = 2, *widths: int) -> tuple[Task, Hidden]:
    model = mlp(*(widths or (6, 5, 4, 3)))
    return Task(model, batches(count, 8, model[0].in_features, 3), F.cross_entropy, seed=1), Hidden(model)


def loss_at(task: Task, values: Tree, batch: int) -> float:
    x, y = list(task.data)[batch]
    return float(task.loss(torch.func.functional_call(task.model, values, (x,)), y).detach())


def gradient_at(task: Task, values: Tree, batch: int) -> Tree:
    x, y = list(task.data)[batch]
    leaves = {name: value.clone().requires_grad_() for name, value in values.items()}
    loss = task.loss(torch.func.functional_call(task.model, leaves, (x,)), y)
    return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values()))))


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


@pytest.mark.parametrize("name", ["gradient", "taylor", "snip", "fisher"])
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
            "snip": lambda g: tree.absolute(over.reduce(tree.mul(g, w))),
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


def test_grasp_is_half_the_loss_of_the_gradients_squared_norm_as_a_gate_closes() -> None:
    task, structure = toy(1)
    (scores,) = CRITERIA["grasp"](task, structure)

    def norm(unit: int, gate: float) -> float:
        keep = {name: torch.ones(group.shape, dtype=torch.float64) for name, group in structure.groups.items()}
        keep["h0"][unit] = gate
        change = tree.mul(task.parameters(), tree.apply(lambda mask: 1 + (mask - 1), structure.expand(keep)))
        return sum(float(g.square().sum()) for g in gradient_at(task, change, 0).values())

    for unit in range(5):  # d|g|^2/dk = 2 w . Hg, which is what is lost to first order when k goes from 1 to 0
        slope = (norm(unit, 1 + 1e-5) - norm(unit, 1 - 1e-5)) / 2e-5
        assert scores["h0"][unit].item() == pytest.approx(slope / 2, rel=1e-5)


def test_grasp_of_a_linear_loss_is_zero() -> None:
    model = nn.Linear(3, 2)
    (scores,) = CRITERIA["grasp"](Task(model, [(torch.randn(4, 3), torch.zeros(4))], lambda out, _: out.sum()), weights(model))
    assert torch.equal(scores["weight"], torch.zeros(2, 3))


def test_movement_is_collected_while_training() -> None:
    task, structure = toy(3)
    model = mlp(6, 5, 4, 3)
    optimizer, collector = torch.optim.SGD(model.parameters(), lr=0.5), Collector(structure, "movement")
    steps: list[Scores] = []
    for x, y in task.data:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        steps.append(structure.reduce({name: -p.grad * p.detach() for name, p in model.named_parameters()}))  # type: ignore[operator]
        collector.step(model)
        optimizer.step()
    torch.testing.assert_close(list(movement(task, structure, rate=0.5)), steps)
    whole = [sum(float(value.abs().sum()) for value in scores.values()) for scores in steps]
    torch.testing.assert_close(collector.sensitivity().global_["h0"], sum(s["h0"] / n for s, n in zip(steps, whole)) / 3)  # type: ignore[arg-type]
    assert collector.sensitivity().criterion == "movement"


def test_weights_that_grow_have_a_score_above_zero() -> None:
    model = nn.Linear(2, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.5, 0.5]]))
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    task = Task(model, [(x, torch.tensor([[1.0], [0.0]], dtype=torch.float64))], F.mse_loss)  # it wants (1, 0)
    (scores,) = movement(task, weights(model))
    assert scores["weight"][0, 0] > 0 > scores["weight"][0, 1]


def test_what_cannot_be_collected_while_training_is_said() -> None:
    model = mlp(6, 5, 3)
    with pytest.raises(BadInput, match=r"hessian cannot be collected while training. Choose one of: taylor, snip, movement"):
        Collector(Hidden(model), "hessian").step(model)
    assert set(STEPS) <= set(CRITERIA)


@pytest.mark.parametrize("units", ["channels", "weights"])
def test_gate_is_the_mean_over_samples_of_the_gates_derivative(units: str) -> None:
    task, _ = toy(1)
    x, y = task.data[0]
    structure: Structure = channels(task.model, x) if units == "channels" else weights(task.model)
    singles = Task(task.model, [(x[i : i + 1], y[i : i + 1]) for i in range(len(x))], task.loss)
    expected = list(CRITERIA["snip"](singles, structure))
    (scores,) = CRITERIA["gate"](task, structure)
    torch.testing.assert_close(scores, {name: torch.stack([s[name] for s in expected]).mean(0) for name in scores})


def test_gradient_times_activation_is_that_of_what_the_next_layer_reads() -> None:
    task, _ = toy(1)
    x, y = task.data[0]
    (scores,) = CRITERIA["gradient_activation"](task, channels(task.model, x))
    hidden = task.model[1](task.model[0](x)).detach().requires_grad_()
    loss = F.cross_entropy(task.model[2:](hidden), y, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, hidden)
    torch.testing.assert_close(scores["0"], (hidden * gradient).abs().mean(0).detach())


def relu_net() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 3)).double()


SAME = ("taylor", "snip", "gate", "gradient_activation", "exact_hessian", "kfac", "synflow", "output_kl", "output_mse", "output_norm")


@pytest.mark.parametrize("name", SAME)
def test_rescaling_between_relu_layers_changes_no_score_of_a_unit(name: str) -> None:
    """Rows of a layer times c, columns of the next through c: the same function, so nothing else may matter."""
    model, scaled = relu_net(), relu_net()
    scale = torch.logspace(-1, 1, 8, dtype=torch.float64)
    with torch.no_grad():
        scaled[0].weight.mul_(scale[:, None])
        scaled[0].bias.mul_(scale)
        scaled[2].weight.div_(scale)
    data = batches(1, 8, 6, 3)
    structure = channels(model, data[0][0])
    (a,), (b,) = (CRITERIA[name](Task(m, data, F.cross_entropy), structure) for m in (model, scaled))
    torch.testing.assert_close(a, b)


def test_what_looks_at_the_weights_alone_or_at_the_gradient_alone_does_change() -> None:
    model = relu_net()
    data = batches(1, 8, 6, 3)
    task, structure = Task(model, data, F.cross_entropy), channels(model, data[0][0])
    before = {name: next(iter(CRITERIA[name](task, structure))) for name in ("fisher", "l2", "grasp")}
    with torch.no_grad():
        model[0].weight.mul_(10)
        model[0].bias.mul_(10)
        model[2].weight.div_(10)
    for name, scores in before.items():
        after = next(iter(CRITERIA[name](task, structure)))
        assert not torch.allclose(after["0"], scores["0"])


def test_a_connection_has_no_activation() -> None:
    task, _ = toy(1)
    with pytest.raises(BadInput, match="looks at the activation of a unit"):
        list(CRITERIA["gradient_activation"](task, weights(task.model)))
