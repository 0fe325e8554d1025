"""criteria/redundancy.py, against loops over pairs of units."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from secateur.criteria.redundancy import apart, cosine, distances, fpgm
from secateur.structure import weights
from secateur.task import Task
from toy import Hidden, mlp


def vectors(model: torch.nn.Module) -> list[Tensor]:
    w = dict(model.named_parameters())
    return [torch.cat([w["0.weight"][u], w["0.bias"][u : u + 1], w["2.weight"][:, u]]).detach() for u in range(5)]


def test_fpgm_is_the_mean_of_distances_to_all_others() -> None:
    model = mlp(6, 5, 4, 3)
    (scores,) = fpgm(Task(model, [], F.mse_loss), Hidden(model))
    expected = [sum((u - v).norm() for v in vectors(model)) / 4 for u in vectors(model)]
    torch.testing.assert_close(scores["h0"], torch.stack(expected))  # type: ignore[arg-type]


@pytest.mark.parametrize("numbers", [[1.0], [3.0, -1.0, 0.5, 3.0, 0.0], [2.0, 2.0]])
def test_distances_of_numbers_are_those_of_their_differences(numbers: list[float]) -> None:
    x = torch.tensor(numbers, dtype=torch.float64)
    torch.testing.assert_close(distances(x[:, None]), (x[:, None] - x).abs().sum(1) / max(1, len(numbers) - 1))


def test_fpgm_of_connections_is_that_of_numbers() -> None:
    model = mlp(6, 5, 3)
    (scores,) = fpgm(Task(model, [], F.mse_loss), weights(model))
    w = model[0].weight.detach()
    torch.testing.assert_close(scores["0.weight"], (w[..., None] - w.flatten()).abs().sum(-1) / 29)


def test_of_two_parallel_units_the_smaller_one_is_redundant() -> None:
    x = torch.tensor([[1.0, 2.0, 0.0], [2.0, 4.0, 0.0], [0.0, 0.0, 1.0], [-4.0, -8.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(apart(x), torch.tensor([0.0, 20**0.5, 1.0, 80**0.5, 0.0], dtype=torch.float64), atol=1e-7, rtol=0)
    same = apart(torch.ones(3, 2, dtype=torch.float64))
    assert (same > 1).sum() == 1 and (same < 1e-6).sum() == 2  # of units that are the same, one stays


def test_cosine_is_what_is_left_beside_the_most_similar_larger_unit() -> None:
    model = mlp(6, 5, 4, 3)
    (scores,) = cosine(Task(model, [], F.mse_loss), Hidden(model))
    for unit, u in enumerate(vectors(model)):
        larger = [v for v in vectors(model) if v.norm() > u.norm()]
        best = max([0.0, *(float(u @ v / u.norm() / v.norm()) for v in larger)])
        assert scores["h0"][unit].item() == pytest.approx(float(u.norm()) * (1 - best**2) ** 0.5)
