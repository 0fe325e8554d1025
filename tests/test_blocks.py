"""Blocks of connections as units, against loops over the connections."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import secateur as sc
from laws import outputs, same
from secateur.structure import Weights
from secateur.tree import Scores


def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 3, groups=2), nn.ReLU(), nn.ConvTranspose2d(4, 5, 2), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3),
        ).double()  # fmt: skip


X = torch.randn(6, 2, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
Y = torch.tensor([0, 1, 2, 0, 1, 2])
TURNED = {"4.weight"}
SHAPES = st.tuples(st.integers(1, 4), st.integers(1, 5)).filter(lambda shape: shape != (1, 1))


def unit_of(name: str, place: tuple[int, ...], shape: tuple[int, int]) -> tuple[int, ...]:
    """The block that a connection lies in: consecutive outputs times consecutive inputs, at one place of the kernel."""
    rows, columns = shape[::-1] if name in TURNED else shape
    return (place[0] // rows, place[1] // columns, *place[2:])


def drawn(structure: Weights, seed: int = 0) -> Scores:
    chance = torch.Generator().manual_seed(seed)
    return {name: torch.rand(group.shape, generator=chance, dtype=torch.float64) for name, group in structure.groups.items()}


@given(SHAPES, st.integers(0, 99))
@settings(deadline=None, max_examples=25)
def test_both_maps_are_those_of_a_loop(shape: tuple[int, int], seed: int) -> None:
    model = net()
    structure = sc.blocks(model, shape)
    values = {name: torch.randn_like(value.detach()) for name, value in model.named_parameters()}
    gates = drawn(structure, seed)
    sums, masks, lines = structure.reduce(values), structure.expand(gates), structure.gather({("0.weight", 1): torch.tensor([1.0, 10.0])})
    count = structure.count({name: gate > 0.5 for name, gate in gates.items()})
    ones = sc.weights(model).gather({("0.weight", 1): torch.tensor([1.0, 10.0])})
    assert masks.keys() == values.keys() and sums.keys() == lines.keys() == structure.groups.keys()
    for name, group in structure.groups.items():
        expected, gathered, kept = torch.zeros(group.shape, dtype=torch.float64), torch.zeros(group.shape), 0
        for place in itertools.product(*map(range, values[name].shape)):
            unit = unit_of(name, place, shape)
            expected[unit] += values[name][place]
            gathered[unit] += ones[name][place]
            kept += bool(gates[name][unit] > 0.5)
            assert masks[name][place] == gates[name][unit]
        torch.testing.assert_close(sums[name], expected)
        torch.testing.assert_close(lines[name], gathered)
        assert count[name] == kept
    for name in values.keys() - structure.groups.keys():
        assert masks[name].all() and count[name] == values[name].numel()


@given(SHAPES)
@settings(deadline=None, max_examples=15)
def test_reduce_is_the_derivative_of_expand(shape: tuple[int, int]) -> None:
    structure = sc.blocks(net(), shape)
    values = {name: torch.randn(size, dtype=torch.float64) for name, size in structure.shapes.items()}
    gates = {name: torch.ones(group.shape, dtype=torch.float64, requires_grad=True) for name, group in structure.groups.items()}
    inner = torch.stack([(values[name] * mask).sum() for name, mask in structure.expand(gates).items()]).sum()
    expected = dict(zip(gates, torch.autograd.grad(inner, list(gates.values()))))
    found = structure.reduce(values)
    assert all(torch.allclose(found[name], value) for name, value in expected.items())
    parts = structure.parts(values)
    assert all(torch.allclose(parts[name].sum(1).view(value.shape), value) for name, value in found.items())


@pytest.mark.parametrize("shape", [(1, 4), (4, 1), (2, 2), (16, 16)])
@pytest.mark.parametrize("of", ["units", "parameters", "macs", "bytes"])
def test_the_budget_is_met_and_nothing_is_emptied(shape: tuple[int, int], of: str) -> None:
    model = net()
    structure = sc.blocks(model, shape, X)
    scores, last = drawn(structure), 2.0
    for amount in (0.0, 0.2, 0.35):
        plan = sc.select(scores, structure, amount, of)
        before, after = plan.cost[of]
        prices = {name: torch.full(size, price(structure, of, name)) for name, size in structure.shapes.items()}
        dearest = 1.0 if of == "units" else max(float(values.max()) for values in structure.reduce(prices).values())
        assert (1 - amount) * before - dearest <= after <= (1 - amount) * before + 1e-9 and after / before <= last
        last = after / before
        assert all(mask.any() for mask in plan.keep.values())
        masked = sc.mask(model, plan)
        kept = {name: int(value.count_nonzero()) for name, value in masked.named_parameters()}
        assert kept == structure.count(plan.keep)
        same(outputs(sc.shrink(model, plan), X), outputs(masked, X))


def price(structure: Weights, of: str, name: str) -> float:
    return {"units": 1.0, "parameters": 1.0, "bytes": 8.0, "macs": structure.uses.get(name, 0.0)}[of]


def test_what_was_pruned_in_blocks_comes_back(tmp_path: object) -> None:
    model, data = net(), [(X, Y)]
    pruned = sc.prune(model, X, data, F.cross_entropy, structure="2x2", criterion="magnitude", amount=0.4)
    assert pruned.plan.structure == "2x2" and {group.kind for group in pruned.structure.groups.values()} == {"block"}
    sc.save(f"{tmp_path}/out", pruned.model, pruned.plan)
    again, plan = sc.load(f"{tmp_path}/out", net), sc.read_plan(f"{tmp_path}/out")
    same(outputs(again, X), outputs(pruned.model, X), 0.0)
    assert plan.blocks == pruned.plan.blocks and plan.cost == pruned.plan.cost
    assert all(torch.equal(plan.keep[name], mask) for name, mask in pruned.plan.keep.items())
    assert sc.prune(model, X, data, F.cross_entropy, structure="blocks", amount=0.2).plan.structure == "1x4"


def test_four_neighbours_of_a_convolution_are_four_input_channels_at_one_place() -> None:
    model = nn.Conv2d(8, 2, 3)
    structure = sc.blocks(model)
    keep = {"weight": torch.ones(2, 2, 3, 3, dtype=torch.bool)}
    keep["weight"][1, 1, 0, 2] = False
    gone = structure.expand(keep)["weight"].logical_not().nonzero().tolist()
    assert gone == [[1, channel, 0, 2] for channel in (4, 5, 6, 7)]
    assert structure.explain() == "weight: 36 units (block of 1 x 4 x 1 x 1 of its 2 x 8 x 3 x 3)"


@pytest.mark.parametrize("shape", [(1,), (0, 4), (1, 4, 1), (1.0, 4), (True, 4), "1x4", None])
def test_a_shape_that_is_none_is_refused(shape: object) -> None:
    with pytest.raises(sc.BadInput, match="The shape of a block is two whole numbers"):
        sc.blocks(net(), shape)  # type: ignore[arg-type]


def test_what_is_no_block_is_refused() -> None:
    with pytest.raises(sc.BadInput, match="is a single connection"):
        sc.blocks(net(), (1, 1))
    with pytest.raises(sc.NothingToPrune, match="no weight tensor"):
        sc.blocks(nn.BatchNorm1d(3))


def test_a_list_is_a_shape_too() -> None:
    assert sc.blocks(net(), [2, 2]).kind == "2x2"  # type: ignore[arg-type]


