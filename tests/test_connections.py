"""Counting finds what sorting and bisection find, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import secateur as sc
from secateur.connections import countable, in_order
from secateur.errors import BudgetUnreachable
from secateur.plan import Plan
from secateur.select import select
from secateur.structure import weights
from secateur.tree import Scores
from toy import Hidden, mlp

NET = nn.Sequential(nn.Conv2d(2, 5, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(45, 7), nn.Linear(7, 3, dtype=torch.float32))
STRUCTURE = weights(NET, torch.randn(2, 2, 7, 7))


def drawn(seed: int, ties: bool, kind: torch.dtype) -> Scores:
    chance = torch.Generator().manual_seed(seed)
    values = {name: torch.randn(group.shape, generator=chance) for name, group in STRUCTURE.groups.items()}
    return {name: ((value * 2).round() if ties else value).to(kind) for name, value in values.items()}


def both(**asked: object) -> tuple[Plan | str, Plan | str]:
    """The plan (or what it says is out of reach), by counting and by sorting."""

    def plan() -> Plan | str:
        try:
            return select(**asked)  # type: ignore[arg-type]
        except BudgetUnreachable as error:
            return str(error)

    with mock.patch("secateur.select.countable", side_effect=lambda *given: False) as told:
        slow = plan()
    assert told.called
    return plan(), slow


def same(fast: Plan | str, slow: Plan | str) -> None:
    if isinstance(fast, str) or isinstance(slow, str):
        assert fast == slow
        return
    assert all(torch.equal(fast.keep[name], slow.keep[name]) for name in slow.keep)
    assert fast.made == slow.made and fast.cost == slow.cost


@given(
    st.fixed_dictionaries({
        "amount": st.one_of(
            st.floats(0, 1),
            st.dictionaries(st.sampled_from(["units", "parameters", "macs", "bytes"]), st.floats(0, 0.8), min_size=1),
        ),
        "of": st.sampled_from(["units", "parameters", "macs", "bytes"]),
        "scope": st.sampled_from(["global", "layer", "per-mac", "ranks", "isomorphic"]),
        "least": st.sampled_from([1, 3, 0.25, {"0.*": 0.5}]),
        "most": st.sampled_from([1.0, 0.6, {"3.weight": 5}]),
        "keep": st.sampled_from([(), ("4.*",)]),
    }),
    st.integers(0, 1000), st.booleans(), st.sampled_from([torch.float32, torch.float64, torch.float16]), st.floats(0, 0.4),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_counting_gives_the_plan_of_sorting(asked: dict[str, object], seed: int, ties: bool, kind: torch.dtype, first: float) -> None:
    scores = drawn(seed, ties, kind)
    within = select(drawn(seed + 1, False, kind), STRUCTURE, first) if seed % 2 else None
    same(*both(scores=scores, structure=STRUCTURE, within=within, **asked))


@given(st.integers(0, 1000), st.booleans(), st.floats(-3, 3), st.sampled_from([1, 0.3]))
@settings(max_examples=60, deadline=None)
def test_and_so_it_does_under_a_threshold(seed: int, ties: bool, threshold: float, least: float) -> None:
    within = select(drawn(seed + 1, False, torch.float32), STRUCTURE, 0.2) if seed % 2 else None
    same(*both(scores=drawn(seed, ties, torch.float32), structure=STRUCTURE, threshold=threshold, least=least, within=within))


def test_what_is_counted_and_what_is_not() -> None:
    scores = drawn(0, False, torch.float32)
    with mock.patch("secateur.select.removal", side_effect=AssertionError("sorted")):
        select(scores, STRUCTURE, 0.5, of="macs")
        with pytest.raises(AssertionError, match="sorted"):
            select(scores, STRUCTURE, 0.5, multiple=2)
        with pytest.raises(AssertionError, match="sorted"):
            select(scores, STRUCTURE, 0.5, of=lambda structure, keep: float(sum(mask.sum() for mask in keep.values())))
    assert not countable(Hidden(mlp(3, 4, 2)), [], 1)
    assert sc.select(scores, STRUCTURE, 0.0).made["cut"] is None


@pytest.mark.parametrize("name", ["macs", "units", "parameters"])
def test_a_cost_of_ones_own_counts_under_a_name_of_ours(name: str) -> None:
    """The same budget that channels would be held to."""

    def mine(structure: sc.Structure, keep: Mapping[str, torch.Tensor]) -> float:
        return float(sum(mask.count_nonzero() for mask in keep.values())) ** 2

    scores = drawn(3, False, torch.float32)
    plan = select(scores, STRUCTURE, {name: 0.75}, of={name: mine})
    whole = sum(values.numel() for values in scores.values())
    left = sum(int(mask.sum()) for mask in plan.keep.values())
    assert left == whole // 2 and plan.cost[name] == (whole**2, left**2)


def test_equal_scores_leave_group_after_group() -> None:
    equal = torch.tensor([3, 0, 2, 4])
    assert [in_order(equal, number).tolist() for number in (0, 2, 4, 9)] == [[0, 0, 0, 0], [2, 0, 0, 0], [3, 0, 1, 0], [3, 0, 2, 4]]
