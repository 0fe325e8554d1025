from __future__ import annotations

import json
import math
from collections.abc import Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import secateur as sc
from secateur.cost import COSTS, cost, costs
from secateur.errors import BadInput, BudgetUnreachable, PlanMismatch
from secateur.floors import floors
from secateur.plan import Plan
from secateur.select import select
from secateur.structure import Structure, all_kept, weights
from secateur.structure.structure import digest_of, shapes_of
from secateur.tree import Keep, Scores
from toy import Hidden, mlp

HIDDEN = Hidden(mlp(6, 20, 13, 3))
WEIGHTS = weights(mlp(6, 8, 5, 3))
STRUCTURES: dict[str, Structure] = {"hidden": HIDDEN, "weights": WEIGHTS}


def drawn(structure: Structure, seed: int, ties: bool = False) -> Scores:
    """Random scores, of few different values where ties are wanted."""
    chance = torch.Generator().manual_seed(seed)
    values = {name: torch.rand(group.shape, generator=chance) for name, group in structure.groups.items()}
    return {name: (value * 3).round() if ties else value for name, value in values.items()}


def selections() -> st.SearchStrategy[dict[str, object]]:
    return st.fixed_dictionaries(
        {
            "structure": st.sampled_from(sorted(STRUCTURES)),
            "seed": st.integers(0, 5),
            "ties": st.booleans(),
            "scope": st.sampled_from(["global", "layer"]),
            "of": st.sampled_from(["units", "parameters", "bytes"]),
            "multiple": st.sampled_from([1, 1, 2, 4, 8]),
        }
    )


def chosen(drawn_: dict[str, object], amount: float, within: Plan | None = None) -> Plan:
    structure = STRUCTURES[str(drawn_["structure"])]
    scores = drawn(structure, int(drawn_["seed"]), bool(drawn_["ties"]))  # type: ignore[call-overload]
    rest = {name: drawn_[name] for name in ("scope", "of", "multiple")}
    return select(scores, structure, amount, within=within, **rest)  # type: ignore[arg-type]


def slow(scores: Scores, structure: Structure, amount: float, of: str) -> Keep:
    """One unit after the other, the lowest first, the whole plan counted after each."""
    keep = all_kept(structure)
    target = (1 - amount + 1e-12) * cost(structure, keep, of)
    units = sorted((value, g, i, name) for g, (name, v) in enumerate(scores.items()) for i, value in enumerate(v.flatten().tolist()))
    for _, _, index, name in units:
        if cost(structure, keep, of) <= target:
            break
        if keep[name].sum() > 1:
            keep[name].view(-1)[index] = False
    return keep


@pytest.mark.parametrize("structure", STRUCTURES.values(), ids=STRUCTURES)
@pytest.mark.parametrize("of", ["units", "parameters", "bytes"])
@given(seed=st.integers(0, 5), amount=st.floats(0, 0.7), ties=st.booleans())
@settings(max_examples=15, deadline=None)
def test_the_plan_is_that_of_removing_one_unit_after_the_other(structure: Structure, of: str, seed: int, amount: float, ties: bool) -> None:
    scores = drawn(structure, seed, ties)
    plan = select(scores, structure, amount, of)
    torch.testing.assert_close(plan.keep, slow(scores, structure, amount, of))


@given(selections(), st.floats(0, 1))
@settings(max_examples=120, deadline=None)
def test_the_budget_is_met_by_measure_and_overshot_by_less_than_one_block(case: dict[str, object], amount: float) -> None:
    of, structure, multiple = str(case["of"]), STRUCTURES[str(case["structure"])], int(case["multiple"])  # type: ignore[call-overload]
    try:
        plan = chosen(case, amount)
    except BudgetUnreachable as error:
        reachable = float(str(error).split("at most ")[1].split(" of ")[0])
        assert reachable < amount
        chosen(case, reachable)
        return
    before, after = plan.cost[of]
    assert after == cost(structure, plan.keep, of) and before == cost(structure, all_kept(structure), of)
    assert after <= (1 - amount + 1e-9) * before
    # with any one of its blocks back (units of one group, the whole of what left together), the plan would cost too much
    for gone, size in plan.removed().values():
        assert gone < size
        kept = size - gone
        assert kept % multiple == 0 or not gone, "kept units come in multiples"
    if plan.made["cut"] is not None:
        undone = [
            cost(structure, one_back(plan, name, multiple, structure, case), of) for name, (gone, _) in plan.removed().items() if gone
        ]
        assert max(undone) > (1 - amount) * before - 1e-6


def one_back(plan: Plan, name: str, multiple: int, structure: Structure, case: dict[str, object]) -> Keep:
    """The plan with the last block of the group back: the highest-scored of its removed units."""
    scores = drawn(structure, int(case["seed"]), bool(case["ties"]))[name].flatten()  # type: ignore[call-overload]
    gone = (~plan.keep[name].flatten()).nonzero().flatten()
    first = plan.keep[name].numel() % multiple
    block = first if len(gone) == first and first else multiple
    back = gone[scores[gone].argsort(stable=True)[-block:]]
    mask = plan.keep[name].flatten().clone()
    mask[back] = True
    return {**plan.keep, name: mask.view(plan.keep[name].shape)}


@given(selections(), st.floats(0, 0.6), st.floats(0, 0.6))
@settings(max_examples=60, deadline=None)
def test_a_larger_amount_removes_more_of_the_same(case: dict[str, object], a: float, b: float) -> None:
    small, large = (chosen({**case, "multiple": 1}, amount) for amount in sorted((a, b)))
    assert all((large.keep[name] <= small.keep[name]).all() for name in small.keep)


@given(selections())
@settings(max_examples=60, deadline=None)
def test_no_group_is_ever_emptied_and_its_best_stays(case: dict[str, object]) -> None:
    structure = STRUCTURES[str(case["structure"])]
    scores = drawn(structure, int(case["seed"]), bool(case["ties"]))  # type: ignore[call-overload]
    plan = select(scores, structure, threshold=1e9, multiple=int(case["multiple"]), scope=str(case["scope"]))  # type: ignore[call-overload]
    for name, mask in plan.keep.items():
        assert int(mask.sum()) == min(int(case["multiple"]), mask.numel())  # type: ignore[call-overload]
        assert scores[name][mask].max() == scores[name].max()


@given(selections(), st.floats(0, 0.5), st.floats(0, 0.5))
@settings(max_examples=60, deadline=None)
def test_what_an_earlier_round_removed_stays_removed_and_counts(case: dict[str, object], a: float, b: float) -> None:
    case = {**case, "multiple": 1}
    first = chosen(case, min(a, b))
    second = chosen({**case, "seed": int(case["seed"]) + 1}, max(a, b), within=first)  # type: ignore[call-overload]
    before, after = second.cost[str(case["of"])]
    assert all((second.keep[name] <= first.keep[name]).all() for name in first.keep)
    assert after <= (1 - max(a, b) + 1e-9) * before
    again = chosen({**case, "seed": 9}, min(a, b), within=first)
    torch.testing.assert_close(again.keep, first.keep)


def test_layers_lose_the_same_fraction_and_their_lowest_units() -> None:
    scores = {"h0": torch.rand(20) + 100, "h1": torch.rand(13)}
    plan = select(scores, HIDDEN, 0.5, scope="layer")
    assert {name: gone for name, (gone, _) in plan.removed().items()} == {"h0": 10, "h1": 7}
    for name, mask in plan.keep.items():
        assert scores[name][~mask].max() < scores[name][mask].min()
    assert select(scores, HIDDEN, 12 / 33, scope="global").removed() == {"h0": (0, 20), "h1": (12, 13)}


def test_a_layers_fraction_meets_a_budget_of_parameters() -> None:
    plan = select(drawn(HIDDEN, 0), HIDDEN, 0.6, of="parameters", scope="layer")
    shares = [gone / size for gone, size in plan.removed().values()]
    assert abs(shares[0] - shares[1]) < 1 / 13
    assert plan.cost["parameters"][1] <= 0.4 * plan.cost["parameters"][0]


def test_a_scope_of_ones_own() -> None:
    def upside_down(scores: Scores, structure: Structure, keep: Keep) -> Scores:
        return {name: -value for name, value in scores.items()}

    scores = drawn(HIDDEN, 0)
    plan = select(scores, HIDDEN, 0.3, scope=upside_down)
    assert plan.made["scope"] == "upside_down"
    assert min(float(scores[n][~m].min()) for n, m in plan.keep.items() if not m.all()) > scores["h0"].median()


def test_everything_below_the_threshold_goes() -> None:
    scores = drawn(HIDDEN, 0)
    plan = select(scores, HIDDEN, threshold=0.4)
    for name, mask in plan.keep.items():
        assert torch.equal(mask, scores[name] >= 0.4)
    assert plan.made["cut"] == max(float(scores[n][~m].max()) for n, m in plan.keep.items())
    assert select(scores, HIDDEN, threshold=0.0).made["cut"] is None
    layered = select(scores, HIDDEN, threshold=0.5, scope="layer")
    assert layered.removed() == {"h0": (10, 20), "h1": (6, 13)}


@pytest.mark.parametrize("amount", [0.1, 0.3, 0.7, 0.9])
def test_an_exact_share_removes_exactly_that_many(amount: float) -> None:
    structure = weights(torch.nn.Linear(10, 10))
    plan = select(drawn(structure, 0), structure, amount)
    assert plan.removed() == {"weight": (round(100 * amount), 100)}


def test_units_stay_in_multiples_and_small_groups_whole() -> None:
    structure = Hidden(mlp(6, 20, 8, 3))
    plan = select(drawn(structure, 0), structure, 0.2, multiple=8)
    assert plan.removed() == {"h0": (12, 20), "h1": (0, 8)}
    assert select(drawn(structure, 0), structure, 0.01, multiple=8).removed()["h0"] == (4, 20)


def test_the_plan_records_what_it_is_and_how_it_was_made() -> None:
    plan = select(drawn(HIDDEN, 0), HIDDEN, 0.5, of="macs", criterion="taylor", seed=3)
    assert (plan.structure, plan.shapes, plan.digest) == ("channels", shapes_of(HIDDEN.model), digest_of(HIDDEN.model))
    assert plan.cost == {name: (costs(HIDDEN, all_kept(HIDDEN))[name], costs(HIDDEN, plan.keep)[name]) for name in COSTS}
    kept = int(plan.keep["h0"].sum())
    assert plan.sizes["0.out_features"] == kept and len(plan.kept["0.weight"][0]) == kept
    told = json.loads(json.dumps(plan.made))
    assert told.items() >= {"amount": 0.5, "of": "macs", "scope": "global", "multiple": 1, "criterion": "taylor", "seed": 3}.items()
    assert told["threshold"] is None and 0 < told["cut"] < 1


def test_nothing_given_is_changed() -> None:
    scores, keep = drawn(HIDDEN, 0), all_kept(HIDDEN)
    before = {name: value.clone() for name, value in scores.items()}
    select(scores, HIDDEN, 0.5, within=keep)
    torch.testing.assert_close(scores, before)
    assert all(mask.all() for mask in keep.values())


BUDGETS = st.dictionaries(st.sampled_from(["units", "parameters", "macs", "bytes"]), st.floats(0, 0.6), min_size=1)


@given(st.integers(0, 5), BUDGETS, st.sampled_from(["global", "layer", "ranks", "per-mac"]), st.sampled_from([1, 1, 4]), st.booleans())
@settings(max_examples=60, deadline=None)
def test_several_budgets_are_all_met_and_overshot_by_less_than_one_block(
    seed: int, amount: dict[str, float], scope: str, multiple: int, absolute: bool
) -> None:
    scores, whole = drawn(HIDDEN, seed), all_kept(HIDDEN)
    most = {of: (1 - share) * cost(HIDDEN, whole, of) for of, share in amount.items()}
    try:
        plan = select(scores, HIDDEN, **({"budget": most} if absolute else {"amount": amount}), scope=scope, multiple=multiple)  # type: ignore[arg-type]
    except BudgetUnreachable as error:
        assert multiple > 1 and "out of reach" in str(error)
        return
    assert all(cost(HIDDEN, plan.keep, of) <= most[of] * (1 + 1e-9) for of in most)
    if plan.made["cut"] is None:
        return
    # the plan that does not meet one of them is the one before it on the same path: each alone gives one that is no smaller
    alone = [select(scores, HIDDEN, share, of, scope, multiple=multiple) for of, share in amount.items()]
    assert any(all(torch.equal(other.keep[name], plan.keep[name]) for name in plan.keep) for other in alone)
    assert all((plan.keep[name] <= other.keep[name]).all() for other in alone for name in plan.keep)


def test_a_size_to_come_down_to() -> None:
    scores = drawn(HIDDEN, 0)
    plan = select(scores, HIDDEN, budget="2 kB")
    assert 2000 - 8 * (20 + 14) < plan.cost["bytes"][1] <= 2000
    assert plan.made["budget"] == "2 kB" and plan.made["amount"] is None
    both = select(scores, HIDDEN, amount=0.2, of="macs", budget={"bytes": "2 kB", "units": 12})
    assert both.cost["units"][1] == 12 and both.cost["macs"][1] <= 0.8 * both.cost["macs"][0]
    assert select(scores, HIDDEN, budget="1 MB").removed() == {"h0": (0, 20), "h1": (0, 13)}
    assert json.loads(json.dumps(both.made))["budget"] == {"bytes": "2 kB", "units": 12}


def test_a_cost_that_does_not_fall_with_every_unit_is_met() -> None:
    """Milliseconds: a step is found that meets it, behind one that does not."""

    def wavy(structure: Structure, keep: Keep) -> float:
        units = int(sum(mask.sum() for mask in keep.values()))
        return float(units + 4 * (units % 5 == 0))

    scores = drawn(HIDDEN, 0)
    for amount in (0.1, 0.3, 0.55, 0.8):
        plan = select(scores, HIDDEN, {"wavy": amount, "macs": 0.1}, {"wavy": wavy})
        assert plan.cost["wavy"][1] == wavy(HIDDEN, plan.keep) <= (1 - amount) * plan.cost["wavy"][0]


@given(selections(), st.sampled_from([1, 2, 0.3]), st.sampled_from([1.0, 0.5, 3]), st.booleans(), st.floats(0, 0.5))
@settings(max_examples=80, deadline=None)
def test_every_group_keeps_its_least_and_what_is_left_alone_stays(
    case: dict[str, object], least: float, most: float, alone: bool, amount: float
) -> None:
    structure = STRUCTURES[str(case["structure"])]
    scores = drawn(structure, int(case["seed"]), bool(case["ties"]))  # type: ignore[call-overload]
    first = next(iter(structure.groups))
    limits: dict[str, object] = {"least": least, "most": most, "keep": (first,) if alone else ()}
    rest = {name: case[name] for name in ("scope", "of", "multiple")}
    stay = floors(structure.groups, **limits)  # type: ignore[arg-type]
    end = select(scores, structure, threshold=1e9, scope=str(case["scope"]), multiple=int(case["multiple"]), **limits)  # type: ignore[call-overload]
    plans = [end]
    try:
        plans.append(select(scores, structure, amount, **rest, **limits))  # type: ignore[arg-type]
        plans.append(select(scores, structure, amount / 2, **rest, **limits))  # type: ignore[arg-type]
    except BudgetUnreachable:
        pass
    for plan in plans:
        assert all(int(mask.sum()) >= stay[name] for name, mask in plan.keep.items())
        assert all((end.keep[name] <= mask).all() for name, mask in plan.keep.items()), "on one path"
        assert not alone or plan.keep[first].all()
    if case["multiple"] == 1:
        assert {name: int(mask.sum()) for name, mask in end.keep.items()} == stay
        assert len(plans) < 3 or all((plans[1].keep[name] <= plans[2].keep[name]).all() for name in structure.groups)


def test_limits_are_remembered() -> None:
    plan = select(drawn(HIDDEN, 0), HIDDEN, 0.08, least={"h*": 0.5}, most=3, keep="h1")
    assert json.loads(json.dumps(plan.made)).items() >= {"least": {"h*": 0.5}, "most": 3, "keep": ["h1"]}.items()
    assert plan.removed() == {"h0": (3, 20), "h1": (0, 13)}


GOOD = drawn(HIDDEN, 0)


def grows(structure: Structure, keep: Mapping[str, Tensor]) -> float:
    """A measured cost: what leaves makes it worse."""
    return 100.0 + sum(int(mask.logical_not().sum()) for mask in keep.values())


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({}, BadInput, "either amount=.*or threshold="),
        ({"amount": 0.5, "threshold": 0.1}, BadInput, "either amount=.*or threshold="),
        ({"amount": 1.5}, BadInput, r"0\.\.1, but it is 1.5"),
        ({"amount": -0.1}, BadInput, r"0\.\.1"),
        ({"amount": math.nan}, BadInput, "nan"),
        ({"amount": True}, BadInput, "True"),
        ({"amount": "0.5"}, BadInput, "'0.5'"),
        ({"threshold": math.inf}, BadInput, "finite number, but it is inf"),
        ({"threshold": "low"}, BadInput, "'low'"),
        ({"amount": 0.5, "of": "flops"}, BadInput, "no cost 'flops'. Choose units"),
        ({"amount": 0.5, "scope": "local"}, BadInput, "no scope 'local'. Choose global, layer"),
        ({"amount": 0.5, "scope": lambda scores, structure, keep: {}}, BadInput, "one finite number for each of the 20 units of h0"),
        ({"amount": 0.5, "multiple": 0}, BadInput, "multiple= must be a whole number of at least 1, but it is 0"),
        ({"amount": 0.5, "multiple": 2.0}, BadInput, "2.0"),
        ({"amount": 0.5, "scores": {"h0": GOOD["h0"]}}, BadInput, "h1 is in the structure, but not in the scores"),
        ({"amount": 0.5, "scores": {**GOOD, "h2": GOOD["h0"]}}, BadInput, "h2 is in the scores, but not in the structure"),
        ({"amount": 0.5, "scores": {**GOOD, "h1": torch.rand(14)}}, BadInput, r"h1 has units \(13,\), but scores \(14,\)"),
        ({"amount": 0.5, "scores": {**GOOD, "h1": torch.full((13,), math.nan)}}, BadInput, "h1 are not all finite"),
        ({"amount": 0.5, "scores": {**GOOD, "h1": [0.5] * 13}}, BadInput, "h1 are list"),
        ({"amount": 0.5, "scores": [0.5]}, BadInput, "this is a list. Give merge"),
        ({"amount": 0.5, "scores": {**GOOD, "h1": torch.arange(13)}}, BadInput, r"h1 are torch\.int64"),
        ({"amount": 0.5, "within": {"h0": torch.ones(20)}}, PlanMismatch, "no units in the group h1"),
        ({"amount": 0.5, "within": {"h0": torch.ones(21), "h1": torch.ones(13)}}, PlanMismatch, r"\(21,\) in the group h0"),
        ({"amount": 0.5, "keep": ["h3"]}, BadInput, "No group is called 'h3'. There are h0, h1"),
        ({"amount": 0.5, "least": 1.5}, BadInput, "least= is a whole number"),
        ({"budget": "7 parsecs"}, BadInput, "like '7 MB'"),
        ({"budget": "1 MB", "threshold": 0.1}, BadInput, "either amount=.*or threshold="),
        ({"amount": {"macs": 0.5, "flops": 0.1}}, BadInput, "no cost 'flops'"),
        ({"budget": "100 B"}, BudgetUnreachable, "A budget of 100 bytes is out of reach: 120 stay at least"),
        ({"budget": "5 ms"}, BadInput, "no cost 'latency'. Choose .*Latency"),
        ({"amount": 0.9, "least": 0.5}, BudgetUnreachable, r"at most 0\.48\d* of units.*since least= let.*Ask for less, or relax least=\."),
        ({"budget": "1 KB", "most": 0.1, "keep": ["h1"]}, BudgetUnreachable, "most= and keep= let no more leave.*or relax most= and keep="),
        ({"amount": 0.05, "of": grows}, BudgetUnreachable, r"at most 0 of grows can.* \(131 are left then, 100 now\)"),
        ({"budget": {"grows": 90}, "of": {"grows": grows}}, BudgetUnreachable, r"A budget of 90 grows.* \(131 are left then, 100 now\)"),
        ({"amount": 1.0}, BudgetUnreachable, r"at most 0\.9393 of units"),
        ({"amount": 0.99, "of": "macs"}, BudgetUnreachable, r"at most 0\.9\d+ of macs"),
    ],
)
def test_what_cannot_be_is_said(arguments: dict[str, object], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        select(**{"scores": GOOD, "structure": HIDDEN, **arguments})  # type: ignore[arg-type]


def test_macs_need_an_example() -> None:
    with pytest.raises(BadInput, match="example="):
        select(drawn(WEIGHTS, 0), WEIGHTS, 0.5, of="macs")


def test_groups_that_an_operator_takes_in_multiples_only_keep_multiples():
    """Of 8 and 24 units that stay by 4; with a multiple of one's own, by what fits both."""

    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.core, self.out = nn.Linear(5, 8), nn.Parameter(torch.randn(2, 8, 24)), nn.Linear(24, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(torch._grouped_mm(self.a(x), self.core, offs=torch.tensor([2, 6], dtype=torch.int32, device=x.device)).relu())

    model, x = Experts(), torch.randn(6, 5)
    structure = sc.channels(model, x)
    assert {name: (group.size, group.multiple) for name, group in structure.groups.items()} == {"a": (8, 4), "core": (24, 4)}
    assert "core: 24 units (channel), 4 at a time" in structure.explain()
    scores = {name: torch.rand(group.size) for name, group in structure.groups.items()}
    for amount in (0.1, 0.3, 0.5):
        plan = select(scores, structure, amount)
        assert all(int(keep.sum()) % 4 == 0 for keep in plan.keep.values())
        assert sc.shrink(model, plan)(x).shape == (6, 2)
    assert {int(keep.sum()) for keep in select(scores, structure, 0.3, multiple=6).keep.values()} == {8, 12}
