"""Zeroing on a copy."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn import utils
from torch.nn.utils import parametrizations

import secateur as sc
from cases import CASES
from oracles import random_keep
from secateur.errors import PlanMismatch
from secateur.select import plan_of
from secateur.surgery import masks, with_values
from test_channels import outputs, same


def plan_for(model: nn.Module, structure: sc.Structure, seed: int = 0) -> sc.Plan:
    """A plan of a random half."""
    return plan_of(structure, random_keep(structure, 0.5, seed), {})  # type: ignore[arg-type]


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


# weights divided by their own norm --------------------------------------------------------------------------------------------------------


def layers(norm: Callable[..., nn.Module], kind: str) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first, second, last = {
            "linear": lambda: (nn.Linear(5, 6), nn.Linear(6, 7), nn.Linear(7, 3)),
            "convolution": lambda: (nn.Conv1d(5, 6, 3), nn.Conv1d(6, 7, 1), nn.Conv1d(7, 3, 1)),
            "transposed": lambda: (nn.Conv1d(5, 6, 3), nn.ConvTranspose1d(6, 7, 3), nn.Conv1d(7, 3, 1)),
            "grouped": lambda: (nn.Conv1d(5, 6, 1), nn.Conv1d(6, 6, 3, groups=6), nn.Conv1d(6, 3, 1)),
        }[kind]()
        return nn.Sequential(norm(first), nn.ReLU(), norm(second), nn.Tanh(), last).double().eval()


def older(module: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return utils.weight_norm(module)


NORMS = {"original1": parametrizations.weight_norm, "weight_v": older}


@pytest.mark.parametrize("own", NORMS)
@pytest.mark.parametrize("kind", ["linear", "convolution", "transposed", "grouped"])
def test_a_mask_leaves_what_is_divided_by_its_norm_alone(own: str, kind: str, tmp_path):
    model, inputs = layers(NORMS[own], kind), torch.randn(2, 5, 5, dtype=torch.float64)
    structure = sc.channels(model, inputs, exact=True)
    plan = plan_for(model, structure)
    assert plan.kept and plan.divided and all(name.endswith(own) for name, _ in plan.divided)
    small, zeroed = sc.shrink(model, plan), sc.mask(model, plan)
    assert all(value.isfinite().all() for value in outputs(zeroed, inputs))
    same(outputs(small, inputs), outputs(zeroed, inputs))
    dims = dict(plan.divided)
    for name, value in model.named_parameters():
        rest = [index for dim, index in enumerate(plan.kept.get(name, ())) if dim != dims.get(name)]
        if name in dims and all(index is None for index in rest):
            assert torch.equal(value, zeroed.get_parameter(name)), name
    sc.save(tmp_path / "out", small, plan)
    again = sc.read_plan(tmp_path / "out")
    assert again.divided == plan.divided
    same(outputs(sc.load(tmp_path / "out", lambda: layers(NORMS[own], kind)), inputs), outputs(small, inputs))
    same(outputs(sc.mask(model, again), inputs), outputs(zeroed, inputs))


def test_without_that_the_mask_would_divide_nothing_by_nothing():
    model, inputs = layers(parametrizations.weight_norm, "convolution"), torch.randn(2, 5, 5, dtype=torch.float64)
    plan = plan_for(model, sc.channels(model, inputs))
    assert not all(value.isfinite().all() for value in outputs(sc.mask(model, replace(plan, divided=())), inputs))


def test_pruning_as_a_whole_hands_it_on():
    model, inputs = layers(parametrizations.weight_norm, "convolution"), torch.randn(2, 5, 5, dtype=torch.float64)
    data = [(inputs, torch.zeros(2, dtype=torch.long))]
    pruned = sc.prune(model, inputs, data, lambda out, target: F.cross_entropy(out.mean(2), target), amount=0.4, exact=True, repair=None)
    assert pruned.plan.divided == pruned.structure.divided != ()
    same(outputs(pruned.model, inputs), outputs(sc.mask(model, pruned.plan), inputs))


@pytest.mark.parametrize(
    ("name", "shape", "says"),
    [("0.weight", (3, 4), r"of shape \(3, 4\), the model \(4, 4\)"), ("1.weight", (4, 4), "none of that name")],
)
def test_values_of_another_model_are_refused(name: str, shape: tuple[int, ...], says: str):
    with pytest.raises(PlanMismatch, match=says):
        with_values(nn.Sequential(nn.Linear(4, 4)), {name: torch.zeros(shape)})
