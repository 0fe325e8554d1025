"""Zeroing on a copy."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import secateur as sc
from cases import CASES
from oracles import random_keep
from secateur.surgery import masks
from test_channels import outputs, same


def plan_for(model: nn.Module, structure: sc.Structure, seed: int = 0) -> sc.Plan:
    """A plan of a random half."""
    keep = random_keep(structure, 0.5, seed)  # type: ignore[arg-type]
    return sc.Plan(structure.kind, keep, structure.kept(keep), structure.sizes(keep), structure.shapes, structure.digest, {})


@pytest.mark.parametrize("case", [case for case in CASES if case.units], ids=str)
def test_mask_and_shrink_compute_the_same(case):
    model, inputs = case.model(), case.inputs()
    plan = plan_for(model, sc.channels(model, inputs, exact=True))
    same(outputs(sc.shrink(model, plan), inputs), outputs(sc.mask(model, plan), inputs))


def test_the_plan_alone_says_what_the_structure_says():
    for case in CASES:
        structure = sc.channels(case.model(), case.inputs())
        keep = random_keep(structure)
        plan = plan_for(case.model(), structure)
        expanded = structure.expand(keep)
        for name, mask in masks(plan).items():
            if name in expanded:
                assert torch.equal(mask, expanded[name]), (case.name, name)


def test_the_original_stays_and_connections_can_be_masked():
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    before = [value.clone() for value in model.parameters()]
    structure = sc.weights(model)
    plan = sc.select({name: torch.rand(group.shape) for name, group in structure.groups.items()}, structure, amount=0.5)
    masked = sc.mask(model, plan)
    assert sum(int((value == 0).sum()) for value in masked.parameters()) == 9
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters()))


def test_another_model_is_refused_by_name():
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    structure = sc.weights(model)
    plan = sc.select({name: torch.rand(group.shape) for name, group in structure.groups.items()}, structure, amount=0.5)
    with pytest.raises(sc.PlanMismatch, match=r"2.weight is \(2, 3\), but this one's is \(5, 3\)"):
        sc.mask(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 5)), plan)
