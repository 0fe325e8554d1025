from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.allocate import allocate, select_by_curves
from secateur.cost import cost
from secateur.errors import BadInput, BudgetUnreachable
from secateur.select import select_each
from secateur.structure import all_kept
from toy import Hidden, mlp

# Seconds of each layer of ResNet-18 at several sparsities, as published with SPDY (github.com/IST-DASLab/spdy, timings/rn18_unstr.txt,
# commit 099a32f; batch 64, DeepSparse), here in whole microseconds and at 8 of its 42 levels.
SPARSITIES = (0.0, 0.4, 0.5586, 0.7069, 0.8054, 0.9049, 0.9536, 0.99)
BASE, PRUNABLE = 160363.89, 155930.15
TIMES = {
    "conv1": (18549, 17383, 16544, 17424, 16919, 16408, 16958, 17556),
    "layer1.0.conv1": (5746, 11302, 8642, 6236, 4648, 2987, 2341, 2017),
    "layer1.0.conv2": (5445, 10740, 8150, 6169, 4536, 2885, 2302, 1954),
    "layer1.1.conv1": (5504, 10210, 8816, 5768, 4469, 2807, 2255, 1965),
    "layer1.1.conv2": (5536, 10662, 9052, 6347, 4355, 2860, 2249, 1980),
    "layer2.0.conv1": (8001, 5929, 4746, 3519, 2793, 2033, 1749, 1588),
    "layer2.0.conv2": (5770, 10730, 8667, 5841, 4230, 2443, 1592, 953),
    "layer2.0.downsample.0": (1384, 711, 594, 467, 414, 376, 338, 250),
    "layer2.1.conv1": (5586, 10576, 8537, 5756, 3968, 2333, 1474, 858),
    "layer2.1.conv2": (5364, 10810, 8324, 5808, 4436, 2292, 1407, 734),
    "layer3.0.conv1": (7678, 5942, 4775, 3442, 2480, 1560, 1018, 692),
    "layer3.0.conv2": (8172, 12591, 9101, 6092, 4410, 2528, 1496, 774),
    "layer3.0.downsample.0": (1139, 1030, 588, 447, 297, 171, 112, 128),
    "layer3.1.conv1": (8368, 11880, 8555, 6227, 4326, 2425, 1290, 548),
    "layer3.1.conv2": (8370, 12683, 9256, 6495, 4497, 2425, 1323, 550),
    "layer4.0.conv1": (9234, 9764, 7074, 4114, 2555, 1537, 944, 494),
    "layer4.0.conv2": (15216, 18677, 14716, 9405, 5380, 2492, 1478, 660),
    "layer4.0.downsample.0": (1127, 1699, 1389, 1009, 474, 196, 100, 56),
    "layer4.1.conv1": (14812, 19435, 14944, 10537, 5456, 2719, 1442, 600),
    "layer4.1.conv2": (14792, 20429, 15794, 10446, 5540, 2682, 1450, 579),
    "fc": (139, 441, 383, 266, 199, 100, 60, 55),
}

Levels = dict[str, dict[float, float]]


def best_of_all(losses: Levels, costs: Levels, budget: float) -> float | None:
    """Every combination of levels."""
    sums = [
        sum(losses[layer][level] for layer, level in zip(losses, levels))
        for levels in itertools.product(*losses.values())
        if sum(costs[layer][level] for layer, level in zip(losses, levels)) <= budget
    ]
    return min(sums, default=None)


def total(levels: Levels, chosen: dict[str, float]) -> float:
    return sum(levels[layer][level] for layer, level in chosen.items())


@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 4), st.floats(0, 1.2), st.booleans())
@settings(max_examples=150, deadline=None)
def test_no_combination_of_levels_is_better(seed: int, layers: int, count: int, share: float, whole: bool) -> None:
    chance = np.random.default_rng(seed)
    losses = {f"l{i}": {level / 10: float(chance.random()) for level in range(count)} for i in range(layers)}
    costs = {
        layer: {level: float(chance.integers(0, 50)) if whole else float(chance.random()) for level in levels}
        for layer, levels in losses.items()
    }
    budget = share * sum(max(levels.values()) for levels in costs.values())
    best = best_of_all(losses, costs, budget)
    if best is None:
        with pytest.raises(BudgetUnreachable, match="the cheapest levels cost"):
            allocate(losses, costs, budget)
        return
    chosen = allocate(losses, costs, budget)
    assert list(chosen) == list(losses)
    assert total(costs, chosen) <= budget * (1 + 1e-12) + 1e-12
    found = total(losses, chosen)
    if whole:
        assert found == pytest.approx(best, abs=1e-12)
    else:  # the best of a budget that is smaller by a bucket a layer
        spare = budget - sum(min(levels.values()) for levels in costs.values())
        less = best_of_all(losses, costs, budget - layers * spare / 10_000)
        assert best - 1e-12 <= found and (less is None or found <= less + 1e-12)


@pytest.mark.parametrize("speed", [1.5, 2.0, 3.0, 4.0])
def test_the_published_timings_of_resnet18_are_solved_exactly(speed: float) -> None:
    """Under SPDY's quadratic prior, loss = (number of the level / levels)^2, against an integer program."""
    optimize = pytest.importorskip("scipy.optimize")
    losses = {layer: {s: (number / 7) ** 2 for number, s in enumerate(SPARSITIES)} for layer in TIMES}
    costs = {layer: dict(zip(SPARSITIES, map(float, times))) for layer, times in TIMES.items()}
    budget = float(int(BASE / speed - (BASE - PRUNABLE)))
    chosen = allocate(losses, costs, budget)
    assert total(costs, chosen) <= budget
    each = np.array([loss for levels in losses.values() for loss in levels.values()])
    one = np.kron(np.eye(len(TIMES)), np.ones(len(SPARSITIES)))
    time = np.array([value for levels in costs.values() for value in levels.values()])
    limits = [optimize.LinearConstraint(one, 1, 1), optimize.LinearConstraint(time[None], -np.inf, budget)]
    oracle = optimize.milp(
        each, constraints=limits, integrality=np.ones(len(each)), bounds=optimize.Bounds(0, 1), options={"mip_rel_gap": 0}
    )
    assert oracle.success
    assert total(losses, chosen) == pytest.approx(oracle.fun, abs=1e-6)


def test_the_published_timings_reach_no_further_than_their_authors_formula() -> None:
    """Base / (best + base - prunable): the largest speed-up."""
    costs = {layer: dict(zip(SPARSITIES, map(float, times))) for layer, times in TIMES.items()}
    best = sum(min(times) for times in TIMES.values())
    assert allocate(costs, costs, best) == {layer: SPARSITIES[int(np.argmin(times))] for layer, times in TIMES.items()}
    with pytest.raises(BudgetUnreachable):
        allocate(costs, costs, best - 1)


@pytest.mark.parametrize(
    ("losses", "costs", "says"),
    [
        ({}, {}, "no layer"),
        ({"a": {0.0: 1.0}}, {"b": {0.0: 1.0}}, "layer a has not the same levels"),
        ({"a": {0.0: 1.0}}, {"a": {0.5: 1.0}}, "layer a has not the same levels"),
        ({"a": {0.0: float("nan")}}, {"a": {0.0: 1.0}}, "not finite"),
    ],
)
def test_levels_that_do_not_fit_together_are_refused(losses: Levels, costs: Levels, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        allocate(losses, costs, 1.0)


@pytest.mark.parametrize(
    ("budget", "buckets", "says"),
    [
        (float("nan"), 10, "budget is .* a finite number, but it is nan"),
        (float("inf"), 10, "but it is inf"),
        (1.0, 0, "buckets= must be a whole number of at least 1, but it is 0"),
        (1.0, 2.5, r"but it is 2\.5"),
    ],
)
def test_budgets_and_buckets_that_are_none_are_refused(budget: float, buckets: int, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        allocate({"a": {0.0: 1.0}}, {"a": {0.0: 0.3}}, budget, buckets)


# with a plan ----------------------------------------------------------------------------------------------------------------------------

NET = Hidden(mlp(6, 20, 13, 8, 3))
SCORES = {name: torch.rand(group.size, generator=torch.Generator().manual_seed(0)) for name, group in NET.groups.items()}
AMOUNTS = (0.2, 0.4, 0.6, 0.8)


def fake(seed: int) -> Levels:
    chance = np.random.default_rng(seed)
    return {name: {amount: float(chance.random() * amount**2) for amount in AMOUNTS} for name in NET.groups}


@given(st.integers(0, 50), st.floats(0, 0.75), st.sampled_from(["macs", "parameters", "bytes", "units"]))
@settings(max_examples=40, deadline=None)
def test_a_plan_by_curves_meets_its_budget_by_measure(seed: int, amount: float, of: str) -> None:
    losses = fake(seed)
    plan = select_by_curves(SCORES, NET, losses, amount, of)
    before, after = plan.cost[of]
    assert after <= (1 - amount + 1e-9) * before
    assert plan.made["amount"] == amount and plan.made["of"] == of
    chosen = dict(plan.made["amounts"])  # type: ignore[call-overload]
    assert all(plan.removed()[name] == (int(share * NET.groups[name].size + 1e-9), NET.groups[name].size) for name, share in chosen.items())
    for name, mask in plan.keep.items():
        assert mask.all() or SCORES[name][~mask].max() < SCORES[name][mask].min()


def test_what_costs_no_loss_goes_first() -> None:
    losses = {"h0": {0.5: 0.0}, "h1": {0.5: 1.0}, "h2": {0.5: 1.0}}
    plan = select_by_curves(SCORES, NET, losses, 0.2)
    assert plan.removed() == {"h0": (10, 20), "h1": (0, 13), "h2": (0, 8)}
    assert select_by_curves(SCORES, NET, {"h1": {0.5: 1.0}}, budget="macs=380").removed()["h1"] == (6, 13)
    assert not any(gone for gone, _ in select_by_curves(SCORES, NET, losses, 0.0).removed().values())


def test_the_best_of_all_plans_of_those_levels_where_costs_add_up() -> None:
    losses = fake(3)
    levels = {name: {0.0: 0.0, **curve} for name, curve in losses.items()}
    plan = select_by_curves(SCORES, NET, losses, 0.5, "units")
    plans = [dict(zip(levels, amounts)) for amounts in itertools.product(*(levels[name] for name in levels))]
    fitting = [p for p in plans if cost(NET, select_each(SCORES, NET, p).keep, "units") <= 0.5 * cost(NET, all_kept(NET), "units")]
    assert total(levels, dict(plan.made["amounts"])) == pytest.approx(min(total(levels, p) for p in fitting))  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"amount": 0.99}, BudgetUnreachable, "at most 0.9"),
        ({"amount": {"macs": 0.5, "units": 0.1}}, BadInput, "one budget, but 2"),
        ({}, BadInput, "one budget, but 0"),
        ({"amount": 0.5, "losses": {"h9": {0.5: 1.0}}}, BadInput, "h9, which is not in the structure"),
    ],
)
def test_what_the_curves_cannot_meet_is_said(arguments: dict[str, object], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        select_by_curves(**{"scores": SCORES, "structure": NET, "losses": fake(0), **arguments})  # type: ignore[arg-type]


def test_each_group_loses_its_share_rounded_down() -> None:
    plan = select_each(SCORES, NET, {"h0": 0.33, "h2": 1.0}, least=2)
    assert plan.removed() == {"h0": (6, 20), "h1": (0, 13), "h2": (6, 8)}
    blocked = select_each(SCORES, NET, {"h0": 0.5, "h1": 0.07}, multiple=4)
    assert blocked.removed() == {"h0": (8, 20), "h1": (0, 13), "h2": (0, 8)}
    with pytest.raises(BadInput, match="no group h7"):
        select_each(SCORES, NET, {"h7": 0.5})


def test_a_plan_by_curves_remembers_what_it_was_asked() -> None:
    structure = Hidden(mlp(4, 8, 6, 2))
    scores = {name: torch.rand(group.size) for name, group in structure.groups.items()}
    losses = {name: {0.25: 0.1, 0.5: 0.3, 0.75: 0.9} for name in structure.groups}
    by_amount = select_by_curves(scores, structure, losses, 0.2, "parameters")
    assert (by_amount.made["amount"], by_amount.made["of"], "budget" in by_amount.made) == (0.2, "parameters", False)
    limits = {"least": {"h0": 2}, "most": 0.5, "keep": ["h1"]}
    told = select_by_curves(scores, structure, losses, budget="0.6 KB", seed=3, **limits).made  # type: ignore[arg-type]
    assert (told["amount"], told["budget"], told["of"], told["seed"]) == (None, "0.6 KB", "bytes", 3)
    assert {name: told[name] for name in limits} == limits
    assert select_each(scores, structure, {"h0": 0.5}, most=0.25).made["most"] == 0.25
