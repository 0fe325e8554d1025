from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from secateur.reductions import LEAST, Reductions, magnitude, normalised, quantile


@given(st.integers(1, 30), st.integers(0, 3))
def test_running_reductions_are_those_of_all_contexts_at_once(count: int, seed: int) -> None:
    contexts = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    running = Reductions("max", seed=0)
    for context in contexts:
        running.add({"a": context})
    torch.testing.assert_close(running.mean["a"], contexts.mean(0))
    torch.testing.assert_close(running.m2["a"] / count, contexts.var(0, correction=0))
    torch.testing.assert_close(running.local()["a"], contexts.max(0).values)
    assert running.count == count and not running.sample


def test_quantiles_of_few_contexts_are_exact_and_of_many_near() -> None:
    contexts = torch.rand(1000, 5, generator=torch.Generator().manual_seed(0))
    running = Reductions(0.5, seed=0, limit=LEAST)
    for number, context in enumerate(contexts, 1):
        running.add({"a": context})
        if number == LEAST:
            torch.testing.assert_close(running.local()["a"], contexts[:number].quantile(0.5, dim=0))
    assert len(running.sample) == LEAST
    torch.testing.assert_close(running.local()["a"], contexts.quantile(0.5, dim=0), atol=0.2, rtol=0)


@given(st.integers(1, 9), st.floats(0, 1))
def test_quantiles_are_those_of_torch(count: int, q: float) -> None:
    values = torch.randn(count, 3, dtype=torch.float64)
    torch.testing.assert_close(quantile(values, q), values.quantile(q, dim=0))


def test_normalised_scores_sum_to_one_in_magnitude_and_zeros_stay() -> None:
    scores = {"a": torch.tensor([1.0, -2.0]), "b": torch.tensor([[5.0]])}
    assert magnitude(scores) == 8 and magnitude(normalised(scores)) == 1
    assert normalised(scores)["a"].tolist() == [1 / 8, -2 / 8]
    assert normalised({"a": torch.zeros(2)})["a"].tolist() == [0, 0]
