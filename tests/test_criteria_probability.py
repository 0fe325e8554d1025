"""criteria/probability.py, against the definition, the tables of the normal distribution, and draws from it."""

from __future__ import annotations

import functools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from secateur.criteria.probability import Iterates, Posterior, laplace, needed, snr
from secateur.errors import BadInput
from secateur.measure import measure
from secateur.structure import channels, weights
from secateur.task import Task
from toy import Hidden, batches, mlp


def toy() -> Task:
    return Task(mlp(4, 5, 3), batches(2, 6, 4, 3), F.cross_entropy)


def test_the_posterior_adds_the_squared_gradients_of_all_samples_to_the_prior() -> None:
    task = toy()
    precision = {name: torch.full_like(value, 0.5) for name, value in task.parameters().items()}
    for x, y in task.data:
        for i in range(len(x)):
            for name, g in next(Task(task.model, [(x[i : i + 1], y[i : i + 1])], task.loss).gradients()).items():
                precision[name] += g.square()
    posterior = laplace(task, prior=0.5)
    torch.testing.assert_close(posterior.variance, {name: 1 / value for name, value in precision.items()})
    (scores,) = snr(task, weights(task.model), prior=0.5)
    w = task.model[0].weight.detach()
    torch.testing.assert_close(scores["0.weight"], w.abs() * precision["0.weight"].sqrt())


def test_laplace_is_exact_for_the_mean_of_normal_numbers() -> None:
    """With loss (x - w)^2 / 2 the posterior precision of w is samples + prior; the empirical Fisher has it where all residuals are 1."""

    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.full((1, 1), 2.0, dtype=torch.float64))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x - self.w).square() / 2

    x = torch.tensor([[1.0], [3.0]] * 8, dtype=torch.float64)
    task = Task(Mean(), [(x, x)], lambda out, _: out.mean(1))
    assert laplace(task, prior=4.0).variance["w"].item() == pytest.approx(1 / (16 + 4))


def test_a_connection_is_needed_with_the_probability_of_the_normal_distribution() -> None:
    model = nn.Linear(3, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, -1.959964, 0.0]]))
    posterior = Posterior({"weight": model.weight.detach()}, {"weight": torch.ones(1, 3, dtype=torch.float64)})
    task = Task(model, [], F.mse_loss)
    (scores,) = needed(task, weights(model), posterior)
    expected = torch.tensor([[math.erf(1 / math.sqrt(2)), 0.95, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(scores["weight"], expected, atol=1e-6, rtol=0)


def test_a_unit_is_needed_as_often_as_draws_are_nearer_to_the_mean_than_zero_is() -> None:
    model = mlp(4, 5, 3)
    chance = torch.Generator().manual_seed(0)
    mean = {name: value.detach() for name, value in model.named_parameters()}
    variance = {name: torch.rand(value.shape, generator=chance, dtype=torch.float64) * 0.3 for name, value in mean.items()}
    structure = Hidden(model)
    (scores,) = needed(Task(model, [], F.mse_loss), structure, Posterior(mean, variance))
    (far,) = snr(Task(model, [], F.mse_loss), structure, Posterior(mean, variance))
    hits = torch.zeros(5)
    for _ in range(2000):
        draw = {name: torch.randn(value.shape, generator=chance, dtype=torch.float64) for name, value in mean.items()}
        hits += structure.reduce({name: value.square() for name, value in draw.items()})["h0"] < far["h0"].square()
    torch.testing.assert_close(scores["h0"], (hits / 2000).double(), atol=0.04, rtol=0)  # four standard errors
    assert scores["h0"].min() < 0.9


def test_training_steps_have_the_mean_and_the_variance_of_their_weights() -> None:
    model, steps, seen = mlp(4, 5, 3), Iterates(), []
    for step in range(7):
        with torch.no_grad():
            model[0].weight.add_(torch.randn(5, 4, generator=torch.Generator().manual_seed(step), dtype=torch.float64))
        seen.append(model[0].weight.detach().clone())
        steps.add(model)
    posterior = steps.posterior()
    torch.testing.assert_close(posterior.mean["0.weight"], torch.stack(seen).mean(0))
    torch.testing.assert_close(posterior.variance["0.weight"], torch.stack(seen).var(0))
    assert (posterior.variance["2.weight"] > 0).all()
    task = Task(model, batches(1, 4, 4, 3), F.cross_entropy)
    measured = measure(task, channels(model, task.data[0][0]), functools.partial(snr, posterior=posterior))
    assert measured.criterion == "snr" and torch.isfinite(measured.global_["0"]).all()


def test_what_has_no_variance_is_said() -> None:
    steps = Iterates()
    steps.add(mlp(4, 5, 3))
    with pytest.raises(BadInput, match="needs two or more, but 1 came"):
        steps.posterior()
    with pytest.raises(BadInput, match="precision of the prior must be above zero"):
        laplace(toy(), prior=0)
