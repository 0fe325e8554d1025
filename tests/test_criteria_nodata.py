"""criteria/nodata.py: all paths are summed; inputs have the statistics that the norms remember."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cases import Net, conv
from secateur.criteria.nodata import inputs_from_statistics, synflow
from secateur.errors import BadInput
from secateur.measure import measure
from secateur.structure import channels, weights
from secateur.task import Task, evaluating


@pytest.fixture(autouse=True)
def the_same_chance() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def net(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 3, bias=False), nn.ReLU(), nn.Linear(3, 2, bias=False)]
        return nn.Sequential(*layers).to(dtype)


def task_of(model: nn.Module, x: Tensor) -> Task:
    return Task(model, [(x, torch.zeros(len(x), dtype=torch.long))], F.cross_entropy)


def test_synflow_of_a_connection_is_the_sum_of_all_paths_through_it() -> None:
    model = net()
    (scores,) = synflow(task_of(model, torch.randn(1, 3)), weights(model))
    w = [model[index].weight.detach().double().abs() for index in (0, 2, 4)]
    expected = [torch.zeros_like(value) for value in w]
    for i, j, k, out in itertools.product(range(3), range(4), range(3), range(2)):
        path = w[0][j, i] * w[1][k, j] * w[2][out, k]
        for value, (row, column) in zip(expected, ((j, i), (k, j), (out, k))):
            value[row, column] += path
    torch.testing.assert_close([scores[f"{index}.weight"] for index in (0, 2, 4)], expected)


def test_synflow_is_conserved_by_every_layer() -> None:
    """Theorem 1 of the paper: what flows into a hidden unit flows out, and every layer carries all of it."""
    model = net()
    (single,) = synflow(task_of(model, torch.randn(1, 3)), weights(model))
    (units,) = synflow(task_of(model, torch.randn(1, 3)), channels(model, torch.randn(1, 3)))
    torch.testing.assert_close(single["0.weight"].sum(1), single["2.weight"].sum(0))
    torch.testing.assert_close(units["0"], 2 * single["0.weight"].sum(1))
    assert len({round(float(value.sum()), 6) for value in single.values()}) == 1


def test_synflow_looks_at_no_value_and_does_not_overflow() -> None:
    deep = nn.Sequential(*(nn.Linear(64, 64) for _ in range(60)))
    with torch.no_grad():
        for layer in deep:
            layer.weight.mul_(30)  # 30 ** 60 is beyond float32
    (a,), (b,) = (synflow(task_of(deep, torch.randn(2, 64) * scale), weights(deep)) for scale in (1, 100))
    torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert all(torch.isfinite(value).all() for value in a.values()) and float(a["0.weight"].max()) > torch.finfo(torch.float32).max


def test_whole_numbers_are_taken_as_they_are() -> None:
    model = Net(lambda n, x: n.out(n.embed(x).mean(1)), embed=nn.Embedding(5, 4), out=nn.Linear(4, 3))
    (scores,) = synflow(task_of(model, torch.tensor([[0, 1], [1, 1]])), weights(model))
    assert [bool(row.any()) for row in scores["embed.weight"]] == [True, True, False, False, False]


class Single(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x.double()) @ torch.ones(2, 2)


def test_a_model_that_takes_no_float64_is_told_so() -> None:
    model = Single()
    with pytest.raises(BadInput, match=r"SynFlow runs the model in float64, which it does not take.*Choose magnitude"):
        list(synflow(task_of(model, torch.randn(1, 3)), weights(model)))


def trained_norms() -> nn.Sequential:
    """A net whose norms saw inputs of mean 2 and spread 3."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        blocks = [conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 6), nn.BatchNorm2d(6), nn.ReLU()]
        model = nn.Sequential(*blocks, nn.Flatten(), nn.Linear(6 * 64, 4))
        for _ in range(60):
            model(torch.randn(32, 3, 8, 8) * 3 + 2)
    return model


def apart(model: nn.Sequential, x: Tensor) -> float:
    """How far the means that the first norm is given are from those it remembers, in its standard deviations."""
    with torch.no_grad(), evaluating(model):
        y = model[0](x)
    return float(((y.mean((0, 2, 3)) - model[1].running_mean) / model[1].running_var.sqrt()).abs().max())


def test_inputs_have_the_statistics_that_the_norms_remember() -> None:
    model, example = trained_norms(), torch.randn(1, 3, 8, 8)
    state, chance = {name: value.clone() for name, value in model.state_dict().items()}, torch.get_rng_state()
    ((inputs, again),) = inputs_from_statistics(model, example, count=32, seed=0)
    assert isinstance(inputs, Tensor) and inputs is again and inputs.shape == (32, 3, 8, 8) and not inputs.requires_grad
    assert model.training and torch.equal(torch.get_rng_state(), chance)
    torch.testing.assert_close(dict(model.state_dict()), state, rtol=0, atol=0)
    assert apart(model, inputs) < 0.05 < 0.3 < apart(model, torch.randn(32, 3, 8, 8))
    assert all(value.grad is None for value in model.parameters())
    ((same, _),) = inputs_from_statistics(model, example, count=32, seed=0)
    assert torch.equal(inputs, same)  # type: ignore[arg-type]
    for name in ("output_kl", "output_mse", "output_norm", "mean_activation"):
        task = Task(model, [(inputs, inputs)], F.cross_entropy)
        assert all(torch.isfinite(value).all() for value in measure(task, channels(model, example), name).global_.values())


def test_without_norms_or_with_whole_numbers_there_is_nothing_to_find() -> None:
    with pytest.raises(BadInput, match="has no batch norm with running statistics"):
        inputs_from_statistics(net(), torch.randn(1, 3), count=4, steps=1)
    with pytest.raises(BadInput, match=r"must be of floating point, but the example is of shape \(1, 3\)"):
        inputs_from_statistics(net(), torch.zeros(1, 3, dtype=torch.long), count=4, steps=1)
