"""The record of what is kept."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.plan import check_fits
from secateur.structure import digest_of, shapes_of


def made() -> tuple[nn.Module, sc.Plan]:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    structure = sc.channels(model, torch.randn(1, 4))
    return model, sc.select({"0": torch.arange(6.0)}, structure, amount=0.5)


def test_a_plan_explains_itself():
    _, plan = made()
    assert plan.removed() == {"0": (3, 6)}
    assert "milliseconds 0.1799 -> 0.1594" in repr(dataclasses.replace(plan, cost={"milliseconds": (0.17991, 0.15939)}))
    assert repr(plan).startswith("Plan(channels: units 6 -> 3, parameters 44 -> 23") and "\n" not in repr(plan)
    text = plan.explain()
    assert "units 6 -> 3" in text and "0: 3 of 6 kept" in text and "2: whole, an output of the model" in text


def test_groups_that_are_nearly_gone_are_named():
    model = nn.Sequential(nn.Linear(4, 20), nn.ReLU(), nn.Linear(20, 3), nn.ReLU(), nn.Linear(3, 2))
    structure = sc.channels(model, torch.randn(1, 4))
    plan = sc.select({"0": torch.arange(20.0), "2": torch.tensor([30.0, 31.0, 1.0])}, structure, threshold=25.0)
    assert plan.thin() == {"0": (1, 20)} and plan.thin(0.7) == {"0": (1, 20), "2": (2, 3)}


def test_a_plan_is_immutable_and_notes_are_new_plans():
    _, plan = made()
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.structure = "weights"  # type: ignore[misc]
    assert plan.note(why="because").made["why"] == "because" and "why" not in plan.made


def test_what_does_not_fit_is_named():
    model, plan = made()
    check_fits(plan.shapes, model)
    with pytest.raises(sc.PlanMismatch, match=r"with 2\.weight, but this one has none"):
        check_fits(plan.shapes, nn.Sequential(model[0]))
    with pytest.raises(sc.PlanMismatch, match=r"has 3\.weight, which the plan does not know"):
        check_fits(plan.shapes, nn.Sequential(*model, nn.Linear(2, 2)))


def test_the_digest_is_of_names_shapes_and_values():
    model, plan = made()
    assert digest_of(model) == plan.digest and shapes_of(model) == plan.shapes
    with torch.no_grad():
        model[0].bias[0] += 1
    assert digest_of(model) != plan.digest
