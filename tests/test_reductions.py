from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from secateur.reductions import LEAST, MOST, Mean, Reductions, contexts_kept, magnitude, normalised, quantile, rank_error


def contexts_of(count: int, seed: int, units: int = 4) -> Tensor:
    return torch.randn(count, units, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def reduced(contexts: Tensor, numbers: list[int], by: str | float = "max", limit: int | None = None) -> Reductions:
    """Of the contexts of these numbers, in this order."""
    running = Reductions(by, seed=0, limit=limit)
    for number in numbers:
        running.add({"a": contexts[number], "b": contexts[number, :1] ** 2}, number)
    return running


@settings(deadline=None)
@given(st.integers(1, 30), st.integers(0, 3))
def test_running_reductions_are_those_of_all_contexts_at_once(count: int, seed: int) -> None:
    contexts = contexts_of(count, seed)
    running = reduced(contexts, list(range(count)))
    torch.testing.assert_close(running.mean["a"], contexts.mean(0))
    torch.testing.assert_close(running.m2["a"] / count, contexts.var(0, correction=0))
    torch.testing.assert_close(running.local()["a"], contexts.max(0).values)
    assert running.count == count and not running.sample


@st.composite
def splits(draw: st.DrawFn) -> tuple[int, list[list[int]]]:
    """A number of contexts, dealt out in any order over parts that may be empty."""
    count = draw(st.integers(1, 40))
    order = draw(st.permutations(range(count)))
    cuts = sorted(draw(st.lists(st.integers(0, count), max_size=6)))
    return count, [list(order[low:high]) for low, high in zip([0, *cuts], [*cuts, count])]


@settings(deadline=None)
@given(splits(), st.integers(0, 3), st.sampled_from(["max", 0.0, 0.3, 0.95]), st.sampled_from([3, 16, None]))
def test_any_split_in_any_order_gives_the_same(split: tuple[int, list[list[int]]], seed: int, by: str | float, limit: int | None) -> None:
    count, parts = split
    contexts = 1 + 1e-3 * contexts_of(count, seed)  # a spread that is small beside the mean
    whole, joint = reduced(contexts, list(range(count)), by, limit), Reductions(by, seed=0, limit=limit)
    for part in parts:
        joint = joint.merge(reduced(contexts, part, by, limit))
    assert joint.count == count
    for name in ("a", "b"):
        torch.testing.assert_close(joint.mean[name], whole.mean[name], rtol=1e-12, atol=0)
        torch.testing.assert_close((joint.m2[name] / count).sqrt(), (whole.m2[name] / count).sqrt(), rtol=1e-12, atol=1e-12)
        assert torch.equal(joint.local()[name], whole.local()[name])  # the maximum, or the quantile of the very same sample
    assert joint.sample.keys() == whole.sample.keys()


def test_merging_changes_neither() -> None:
    contexts = contexts_of(6, 0)
    for left, right in (([0, 1, 2], [3, 4]), ([0, 1], []), ([], [0, 1])):
        a, b = reduced(contexts, left, 0.5), reduced(contexts, right, 0.5)
        before = [(part.count, {name: value.clone() for name, value in part.mean.items()}, len(part.sample)) for part in (a, b)]
        a.merge(b).add({"a": contexts[5], "b": contexts[5, :1]}, 5)
        for part, (count, mean, kept) in zip((a, b), before):
            assert (part.count, len(part.sample)) == (count, kept)
            torch.testing.assert_close(part.mean, mean, rtol=0, atol=0)


def test_what_is_left_of_a_mean_without_a_part() -> None:
    contexts = contexts_of(9, 0)
    whole, part = Mean(), Mean()
    for number, context in enumerate(contexts):
        whole.add({"a": context})
        if number % 3 == 0:
            part.add({"a": context})
    rest = whole.without(part)
    assert rest.count == 6 and torch.allclose(rest.mean["a"], contexts[[1, 2, 4, 5, 7, 8]].mean(0))
    assert whole.without(whole).count == 0 and torch.equal(whole.without(Mean()).mean["a"], whole.mean["a"])


def test_a_mean_of_many_contexts_does_not_drift() -> None:
    """One of 1,000 and 20,000 of 1: in float32 a running mean is off by 1e-5 of it."""
    running = Reductions("max", seed=0)
    for value in [1000.0] + [1.0] * 20_000:
        running.add({"a": torch.tensor([value])})
    assert running.mean["a"].dtype == torch.float64
    assert float(running.mean["a"]) == pytest.approx(21_000 / 20_001, rel=1e-12)


def test_quantiles_of_few_contexts_are_exact_and_of_many_near() -> None:
    contexts = torch.rand(1000, 5, generator=torch.Generator().manual_seed(0))
    running = Reductions(0.5, seed=0, limit=LEAST)
    for number, context in enumerate(contexts, 1):
        running.add({"a": context})
        if number == LEAST:
            torch.testing.assert_close(running.local()["a"], contexts[:number].quantile(0.5, dim=0))
    assert len(running.sample) == LEAST
    torch.testing.assert_close(running.local()["a"], contexts.quantile(0.5, dim=0), atol=0.2, rtol=0)


@pytest.mark.parametrize("q", [0.1, 0.5, 0.95])
@pytest.mark.parametrize("limit", [64, 256])
def test_a_quantile_is_as_near_as_the_bound_says(q: float, limit: int) -> None:
    """2,000 units of 1,000 contexts whose values are their ranks: at most one unit in twenty is off by more."""
    chance, running = torch.Generator().manual_seed(0), Reductions(q, 0, limit)
    ranks = torch.stack([torch.randperm(1000, generator=chance) for _ in range(2000)], 1) / 1000
    for context in ranks:
        running.add({"a": context})
    off = (running.local()["a"] - q).abs()
    assert (off > rank_error(limit) + 1 / limit).double().mean() <= 0.05
    assert (off > rank_error(limit) / 4).any(), "a bound that is never come near to is not tested"


def test_the_bound_and_the_sample_size_are_as_told() -> None:
    assert rank_error(64) == pytest.approx(0.1698, abs=1e-4) and rank_error(4096) == pytest.approx(0.0212, abs=1e-4)
    assert [contexts_kept(units) for units in (0, 1, 1 << 10, 1 << 14, 10**8)] == [MOST, MOST, MOST, 256, LEAST]


@pytest.mark.parametrize("by", ["max", 0.5])
def test_a_state_goes_on_where_it_was(by: str | float) -> None:
    contexts = contexts_of(12, 0)
    whole, half = reduced(contexts, list(range(12)), by, 4), reduced(contexts, list(range(7)), by, 4)
    told, tensors = half.state()
    again = Reductions(by, seed=0, limit=4).restored((json.loads(json.dumps(told)), tensors))
    for number in range(7, 12):
        again.add({"a": contexts[number], "b": contexts[number, :1] ** 2}, number)
    for name in ("a", "b"):
        assert torch.equal(again.mean[name], whole.mean[name]) and torch.equal(again.m2[name], whole.m2[name])
        assert torch.equal(again.local()[name], whole.local()[name])


@settings(deadline=None)
@given(st.integers(1, 9), st.floats(0, 1))
def test_quantiles_are_those_of_torch(count: int, q: float) -> None:
    values = torch.randn(count, 3, dtype=torch.float64)
    torch.testing.assert_close(quantile(values, q), values.quantile(q, dim=0))


def test_normalised_scores_sum_to_one_in_magnitude_and_zeros_stay() -> None:
    scores = {"a": torch.tensor([1.0, -2.0]), "b": torch.tensor([[5.0]])}
    assert magnitude(scores) == 8 and magnitude(normalised(scores)) == 1
    assert normalised(scores)["a"].tolist() == [1 / 8, -2 / 8]
    assert normalised({"a": torch.zeros(2)})["a"].tolist() == [0, 0]
