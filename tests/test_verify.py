"""Comparing numbers finds what shapes do not show."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

import secateur as sc
from cases import CASES
from secateur.structure import channels
from secateur.surgery import unequal
from test_sizes import Kept


def test_all_cases_agree():
    for case in CASES:
        model, inputs = case.model(), case.inputs()
        assert unequal(model, channels(model, inputs), inputs) == {}, case.name


def test_a_wrong_permutation_has_the_right_shapes_and_is_found():
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))
    inputs = torch.randn(2, 5)
    right = channels(model, inputs)
    index = dict(right.index)
    index["2.weight"] = (index["2.weight"][0], index["2.weight"][1].flip(1))
    found = unequal(model, replace(right, index=index), inputs)
    assert list(found) == ["0"] and "computes something else" in found["0"]


class Casting(nn.Module):
    """Insists on float32, whatever it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x.float()).relu())


class Averaging(nn.Module):
    """Divides by a size, which changes with it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x).relu()
        return self.b(y / y.shape[1])


def test_a_model_that_insists_on_its_own_type_is_compared_in_that():
    assert unequal(Casting(), channels(Casting(), torch.randn(2, 5)), torch.randn(2, 5)) == {}


def test_a_number_that_depends_on_a_size_is_found_and_the_public_structure_leaves_the_group_whole():
    model, inputs = Averaging(), torch.randn(2, 5)
    assert list(unequal(model, channels(model, inputs), inputs)) == ["a"]
    assert "computes something else" in sc.channels(model, inputs).frozen["a"].frozen


def test_a_smaller_model_that_fails_is_not_called_equal():
    model, inputs = Kept(), torch.randn(3, 4)
    assert list(unequal(model, replace(channels(model, inputs), attributes={}), inputs)) == ["a"]


def test_a_model_that_is_not_finite_is_not_called_equal():
    model = nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 3))
    with torch.no_grad():
        model[1].bias.fill_(float("nan"))
    assert list(unequal(model, channels(model, torch.randn(2, 5)), torch.randn(2, 5))) == ["0"]
