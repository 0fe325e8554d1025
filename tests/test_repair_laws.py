"""The laws of every plan, with weights that were fitted anew in between: on the cases of the tracer, of the rules and of the families."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import nn

import laws
import secateur as sc
import test_n_of_m
import test_whole_layers
from cases import CASES, Case, Named, doubled
from cases_rules import CASES as RULES
from families import FAMILIES
from oracles import random_keep
from secateur.api import structure_of
from secateur.select import plan_of
from secateur.structure import Channels, Structure, all_kept, channels
from secateur.surgery import masks, masks_of
from secateur.task import split_batch
from secateur.tree import Keep, Tree

WITHOUT = {  # cases of which no weight can be fitted
    "standardised": "the weights that are used are computed",
    "spectral norm": "the weights that are used are computed",
    "old spectral norm": "the weights that are used are computed",
    "LSTM cells": "each weight is called at every step",
}
LEFT_OUT = {  # no group of theirs leaves exactly, or they take long and others have what they are made of
    "LSTM with a first state", "LSTM with projections", "last states of an LSTM", "last states of a GRU", "GRU cells", "RNN cells", "CRNN",
    "seq2seq with attention", "LLaMA by neighbours", "growing cache", "TransformerDecoder", "nn.Transformer", "dense mixture of experts",
    "U-Net in 3D", "feature pyramid", "DenseNet", "Whisper", "Conformer", "wav2vec2", "multi-query", "fused qkv, permuted",
    "linear attention", "gMLP", "video transformer", "KAN", "modules by name", "FiLM by functions", "norms by hand",
}  # fmt: skip
BUILT = {  # what a structure of its own is tried on: stacked residual blocks; convolutions, in groups and transposed, with a batch norm
    "layers": (test_whole_layers.stack, test_whole_layers.X),
    "connections": (lambda: test_n_of_m.net().eval(), test_n_of_m.X),
}


EVERY = [
    *(pytest.param(case, id=case.name) for case in [*CASES, *RULES] if set(case.units) - set(case.approximate)),
    *(pytest.param(family, id=family.name) for family in FAMILIES if family.name not in LEFT_OUT),
]
APPROXIMATE = [case for case in [*CASES, *RULES] if case.approximate]


def batches_of(case: Named) -> list[object]:
    """Three batches, others than the case's inputs."""
    found: list[object] = []
    with torch.random.fork_rng():
        for seed in (2, 3, 4):
            torch.manual_seed(seed)
            inputs = doubled(case.example())
            found.append(inputs if isinstance(inputs, Mapping) else (inputs, None))
    return found


def fitted(model: nn.Module, structure: Structure, keep: Keep, data: list[object]) -> tuple[sc.Plan, Tree, nn.Module]:
    """The plan, what least squares finds after it, and the dense model with that; the model is left alone."""
    plan = plan_of(structure, keep, {})
    values = laws.left_alone(model, lambda: sc.least_squares(model, plan, data))
    assert isinstance(values, dict)
    repaired = laws.left_alone(model, lambda: sc.with_values(model, values))
    assert isinstance(repaired, nn.Module)
    return plan, values, repaired


def removed_is_exactly_zero(model: nn.Module, values: Tree, plan: sc.Plan) -> None:
    parameters = {name for name, _ in model.named_parameters()}
    for name, kept in masks(plan).items():
        assert name not in parameters or not values.get(name, torch.zeros(kept.shape))[~kept].any(), name


def nothing_moves_where_nothing_went(model: nn.Module, structure: Structure, data: list[object]) -> None:
    """Bit for bit."""
    now = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, value in sc.least_squares(model, plan_of(structure, all_kept(structure), {}), data).items():
        assert torch.equal(value, now[name]), name


def the_same_from_disk(build: Callable[[], nn.Module], small: nn.Module, plan: sc.Plan, inputs: object, folder: Path) -> nn.Module:
    """Bit for bit: values and outputs."""
    sc.save(folder, small, plan)
    again = sc.load(folder, build)
    assert again.state_dict().keys() == small.state_dict().keys()
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in small.state_dict().items())
    assert all(torch.equal(a, b) for a, b in zip(laws.outputs(small, inputs), laws.outputs(again, inputs), strict=True))
    return again


@pytest.mark.parametrize("case", EVERY)
def test_laws_of_every_case_hold_with_fitted_weights(case: Named, tmp_path: Path) -> None:
    model, inputs, data = case.model(), case.inputs(), batches_of(case)
    structure = channels(model, inputs, exact=True)
    plan, values, repaired = fitted(model, structure, keep := random_keep(structure), data)
    assert bool(values) == (case.name not in WITHOUT)
    removed_is_exactly_zero(model, values, plan)
    laws.shrunk_equals_masked(repaired, inputs, structure, keep)
    laws.counts_are_those_of_the_smaller_model(repaired, structure, keep)
    small = sc.shrink(repaired, plan)
    laws.same(laws.outputs(sc.mask(repaired, plan), inputs), laws.outputs(small, inputs))
    if case not in RULES:  # which are of operators, and what is below knows of none
        the_same_from_disk(case.model, small, plan, inputs, tmp_path / "small")
    if case in CASES:
        nothing_moves_where_nothing_went(model, structure, data)


@pytest.mark.parametrize("case", APPROXIMATE, ids=str)
def test_approximate_groups_are_the_mask_with_statistics_over_what_is_kept_with_fitted_weights(case: Case) -> None:
    model, inputs = case.model(), case.inputs()
    structure, data = sc.channels(model, inputs), batches_of(case)
    plan, values, repaired = fitted(model, structure, keep := random_keep(structure), data)
    removed_is_exactly_zero(model, values, plan)
    laws.approximate_equals_statistics_over_what_is_kept(repaired, inputs, structure, keep)
    assert missing(sc.shrink(repaired, plan), model, data) < 0.6 * missing(sc.shrink(model, plan), model, data)


def missing(small: nn.Module, dense: nn.Module, data: list[object]) -> float:
    """The sum of squares of what the outputs lack."""
    of_each = (zip(*(laws.outputs(model, split_batch(batch)[0]) for model in (small, dense)), strict=True) for batch in data)
    return sum(float((a - b).square().sum()) for pairs in of_each for a, b in pairs if a.is_floating_point())


@pytest.mark.parametrize("structure", ["weights", "1x4", "2:4", "layers", "channels"])
@pytest.mark.parametrize("seed", range(2))
def test_laws_of_every_structure_hold_with_fitted_weights(structure: str, seed: int, tmp_path: Path) -> None:
    build, inputs = BUILT["layers" if structure == "layers" else "connections"]
    model = build()
    chance = torch.Generator().manual_seed(seed)
    data = [(torch.randn(inputs.shape, generator=chance, dtype=torch.float64), None) for _ in range(4)]
    found = structure_of(model, inputs, structure)
    scores = {name: torch.rand(group.shape, generator=chance) for name, group in found.groups.items()}
    chosen = sc.select(scores, found) if structure == "2:4" else sc.select(scores, found, 0.5)
    plan, values, repaired = fitted(model, found, chosen.keep, data)
    assert any(not torch.equal(value, model.state_dict()[name]) for name, value in values.items())
    removed_is_exactly_zero(model, values, plan)
    small, masked = sc.shrink(repaired, plan), sc.mask(repaired, plan)
    laws.same(laws.outputs(masked, inputs), laws.outputs(small, inputs))
    again = the_same_from_disk(build, small, plan, inputs, tmp_path / "small")
    if isinstance(found, Channels) or structure == "layers":
        assert sum(value.numel() for value in small.parameters()) == plan.cost["parameters"][1]
    else:
        by_hand = copy.deepcopy(model)
        with torch.no_grad():
            for name, value in by_hand.state_dict().items():
                value.copy_(values.get(name, value) * found.expand(plan.keep).get(name, 1))
        laws.same(laws.outputs(by_hand, inputs), laws.outputs(small, inputs))
        for holder in (small, again):  # a zero is known for one that stays, by the hook or by the value
            for name, kept in masks(plan).items():
                value = holder.get_parameter(name)
                assert not value[~kept].any() and torch.equal(masks_of(holder)[name], kept)
    nothing_moves_where_nothing_went(model, found, data)
