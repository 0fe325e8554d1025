"""criteria/weights.py, against norms written out and LAMP as the paper sorts it."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from secateur import tree
from secateur.criteria import CRITERIA
from secateur.criteria.weights import lamp, left_share, lp
from secateur.errors import BadInput
from secateur.structure import weights
from secateur.task import Task
from toy import Hidden, batches, mlp


def toy() -> tuple[Task, Hidden]:
    model = mlp(6, 5, 4, 3)
    return Task(model, batches(2, 8, 6, 3), F.cross_entropy, seed=1), Hidden(model)


def test_magnitudes_are_norms_of_what_a_unit_consists_of() -> None:
    task, structure = toy()
    w = task.parameters()
    unit = torch.cat([w["0.weight"][2], w["0.bias"][2:3], w["2.weight"][:, 2]])
    for name, order in (("l1", 1), ("l2", 2), ("magnitude", 2)):
        (scores,) = CRITERIA[name](task, structure)
        torch.testing.assert_close(scores["h0"][2], torch.linalg.vector_norm(unit, order))
    for p in (0.5, 1, 4):
        (scores,) = functools.partial(lp, p=p)(task, structure)
        torch.testing.assert_close(scores["h0"][2], torch.linalg.vector_norm(unit, p) ** p)
    (single,) = CRITERIA["magnitude"](task, weights(task.model))
    torch.testing.assert_close(single["2.weight"], w["2.weight"].abs())


@pytest.mark.parametrize("p", [0, -1])
def test_a_norm_has_a_power_above_zero(p: float) -> None:
    with pytest.raises(BadInput, match="power of a norm must be above zero"):
        list(lp(*toy(), p=p))


def as_the_paper_sorts(squares: list[float]) -> list[float]:
    order = sorted(range(len(squares)), key=lambda i: squares[i])
    scores = [0.0] * len(squares)
    for rank, index in enumerate(order):
        scores[index] = squares[index] / sum(squares[other] for other in order[rank:])
    return scores


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=20, unique=True))
def test_lamp_is_that_of_the_paper(squares: list[float]) -> None:
    expected = torch.tensor(as_the_paper_sorts(squares), dtype=torch.float64)
    torch.testing.assert_close(left_share(torch.tensor(squares, dtype=torch.float64)), expected)


def test_lamp_is_per_group_and_gives_equal_weights_equal_scores() -> None:
    task, structure = toy()
    w = task.parameters()
    (single,) = lamp(task, weights(task.model))
    expected = as_the_paper_sorts(w["2.weight"].square().flatten().tolist())
    torch.testing.assert_close(single["2.weight"].flatten(), torch.tensor(expected, dtype=torch.float64))
    (units,) = lamp(task, structure)
    norms = structure.reduce(tree.square(w))
    torch.testing.assert_close(units["h0"], torch.tensor(as_the_paper_sorts(norms["h0"].tolist()), dtype=torch.float64))
    torch.testing.assert_close(left_share(torch.tensor([4.0, 1.0, 4.0, 0.0])), torch.tensor([0.5, 1 / 9, 0.5, 0.0]))
    assert torch.equal(left_share(torch.zeros(2, 3)), torch.zeros(2, 3))


@pytest.mark.parametrize("name", ["l2", "lp", "lamp", "fpgm"])
def test_small_weights_of_half_precision_are_told_apart(name: str) -> None:
    model = nn.Linear(2, 2).half()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1e-5, 2e-5], [3e-5, 6e-4]]))  # squares below what half precision holds
    (scores,) = CRITERIA[name](Task(model, [], F.mse_loss), weights(model))
    assert len(scores["weight"].unique()) >= 3 and torch.isfinite(scores["weight"]).all()


def test_another_seed_is_another_chance() -> None:
    task, structure = toy()
    other = Task(task.model, task.data, task.loss, seed=2)
    assert not torch.equal(next(iter(CRITERIA["random"](task, structure)))["h0"], next(iter(CRITERIA["random"](other, structure)))["h0"])
