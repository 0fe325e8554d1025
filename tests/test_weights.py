"""Every connection a unit of its own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import secateur as sc


def test_weight_tensors_are_groups_and_both_maps_the_identity():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    structure = sc.weights(model)
    assert {name: group.shape for name, group in structure.groups.items()} == {"0.weight": (3, 4), "2.weight": (2, 3)}
    values = {name: torch.randn(value.shape) for name, value in model.named_parameters()}
    assert all(torch.equal(structure.reduce(values)[name], values[name]) for name in structure.groups)
    keep = {"0.weight": torch.rand(3, 4) > 0.5, "2.weight": torch.rand(2, 3) > 0.5}
    masks = structure.expand(keep)
    assert torch.equal(masks["0.weight"], keep["0.weight"]) and masks["1.bias"].all()
    assert structure.count(keep)["0.weight"] == keep["0.weight"].sum() and structure.count(keep)["1.bias"] == 3


def test_macs_need_an_example():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 2))
    assert sc.weights(model).uses == {}
    assert sc.weights(model, torch.randn(5, 3, 8, 8)).uses == {"0.weight": 36.0, "2.weight": 1.0}


def test_a_model_without_weights_is_refused():
    with pytest.raises(sc.NothingToPrune, match="no weight tensor"):
        sc.weights(nn.BatchNorm1d(3))
