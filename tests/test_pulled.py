"""What is told of budgets that few groups decide, against what the cost says when a group is put back."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import secateur as sc
from secateur.budget import Target
from secateur.plan import Plan
from secateur.pulled import pulled
from secateur.structure import Structure, all_kept, weights
from secateur.tree import Keep, Scores
from toy import Hidden, mlp

NET = Hidden(mlp(4, 40, 30, 20, 3))
SCORES: Scores = {name: torch.rand(group.size, generator=torch.Generator().manual_seed(1)) for name, group in NET.groups.items()}


def of(**weight: float) -> Callable[[Structure, Keep], float]:
    """A cost that some groups decide: so much a unit."""
    return lambda structure, keep: float(sum(value * int(keep[name].sum()) for name, value in weight.items()))


PEAK = lambda structure, keep: float(max(10 * int(keep["h1"].sum()), *(int(mask.sum()) for mask in keep.values())))


def selected(amount: dict[str, float], costs: dict[str, Callable[[Structure, Keep], float]], **more: object) -> Plan:
    scope = next(iter(costs))
    return sc.select(SCORES, NET, amount, costs, sc.per(costs[scope]), **more)  # type: ignore[arg-type]


def test_one_group_decides_and_the_rest_stays() -> None:
    plan = selected({"peak": 0.95}, {"peak": of(h1=1.0)})
    assert plan.removed()["h1"] == (29, 30) and plan.made["pulled"] == {"peak": {"h1": 1.0}}
    (said,) = plan.told()
    assert said.startswith("Few groups decide the budget of peak: h1 keeps 1 of 30 (with all of them 100 % of what is saved would be lost)")
    assert said in plan.explain()
    assert plan.note(**json.loads(json.dumps(plan.made))).told() == [said], "a file tells it as well"


def test_a_peak_comes_back_whole() -> None:
    plan = selected({"peak": 0.93}, {"peak": PEAK}, least={"h1": 2})
    assert plan.made["pulled"] == {"peak": {"h1": 1.0}}


def test_only_the_budget_that_pulls_is_named() -> None:
    costs = {"narrow": of(h1=1.0), "units": of(h0=1.0, h1=1.0, h2=1.0)}
    plan = selected({"narrow": 0.95, "units": 0.1}, costs)
    assert plan.made["pulled"] == {"narrow": {"h1": 1.0}}, "units are met without it"


def test_shares_are_what_the_cost_says() -> None:
    cost = of(h0=0.1, h1=3.0, h2=0.1)
    target, whole = Target("c", cost, 12.0, cost(NET, all_kept(NET))), all_kept(NET)
    keep = {name: torch.arange(mask.numel()) < (2 if name == "h1" else 30) for name, mask in whole.items()}
    end = cost(NET, keep)
    share = (cost(NET, {**keep, "h1": whole["h1"]}) - end) / (target.whole - end)
    assert pulled(NET, whole, keep, [target]) == {"c": {"h1": pytest.approx(share)}} and 0.9 < share < 1
    assert pulled(NET, whole, keep, [Target("c", cost, 15.0, target.whole)]) == {}, "a tenth of the group would do"
    assert pulled(NET, {**whole, "h1": keep["h1"]}, keep, [target]) == {}, "an earlier plan took it"


@pytest.mark.parametrize("amount", [0.3, 0.96])
def test_nothing_is_told_of_what_was_asked_for(amount: float) -> None:
    plan = sc.select(SCORES, NET, amount, "units")
    assert "pulled" not in plan.made and plan.told() == []
    thin = len(plan.thin())
    assert thin == 0 if amount == 0.3 else 2 * thin > len(plan.keep)


def test_nothing_is_told_of_thresholds_and_of_connections() -> None:
    scores = {**SCORES, "h1": SCORES["h1"] - 2}
    scores["h1"][0] = 2.0
    by_threshold = sc.select(scores, NET, threshold=-0.5)
    assert by_threshold.removed()["h1"] == (29, 30) and by_threshold.told() == []
    structure = weights(mlp(4, 40, 3))
    values = {name: torch.rand(group.shape) + (name != "0.weight") for name, group in structure.groups.items()}
    plan = sc.select(values, structure, 0.53, "units")
    assert "0.weight" in plan.thin() and plan.told() == []


def test_activations_at_their_peak() -> None:
    """The first of two convolutions makes what is large."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(8), nn.Conv2d(32, 16, 3, padding=1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4),
        )  # fmt: skip
        data = [(torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 2, 3]))]
    plan = sc.prune(model, data[0][0], data, F.cross_entropy, amount=0.93, of="activations", scope="per-activations").plan
    assert plan.thin().keys() == {"0"} and plan.made["pulled"] == {"activations": {"0": pytest.approx(1.0)}}
    less = sc.prune(model, data[0][0], data, F.cross_entropy, amount=0.5, of="activations", scope="per-activations").plan
    assert less.told() == []
