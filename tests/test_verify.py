"""Comparing numbers finds what shapes do not show."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

import secateur as sc
from cases import CASES
from secateur.surgery import unequal


def test_all_cases_agree():
    for case in CASES:
        model, inputs = case.model(), case.inputs()
        assert unequal(model, sc.channels(model, inputs), inputs) == {}, case.name


def test_a_wrong_permutation_has_the_right_shapes_and_is_found():
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))
    inputs = torch.randn(2, 5)
    right = sc.channels(model, inputs)
    index = dict(right.index)
    index["2.weight"] = (index["2.weight"][0], index["2.weight"][1].flip(1))
    found = unequal(model, replace(right, index=index), inputs)
    assert list(found) == ["0"] and "computes something else" in found["0"]


def test_a_model_that_is_not_finite_is_not_called_equal():
    model = nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 3))
    with torch.no_grad():
        model[1].bias.fill_(float("nan"))
    assert list(unequal(model, sc.channels(model, torch.randn(2, 5)), torch.randn(2, 5))) == ["0"]
