"""The best of every run, among those that are still there."""

from __future__ import annotations

import torch

from secateur.runs import best_of_runs
from secateur.structure import Group, Run

GROUPS = {"a": Group("a", (2, 4), run=Run(1, 2, 1)), "b": Group("b", (2, 2), run=Run(1, 2, 0)), "c": Group("c", (1, 2))}
ALL = {name: torch.ones(group.shape, dtype=torch.bool) for name, group in GROUPS.items()}
RANKING = {"a": torch.arange(8.0), "b": torch.tensor([3, 1, 2, 1]), "c": torch.tensor([1.0, 2.0])}


def test_the_best_of_each_run_stay() -> None:
    kept = best_of_runs(RANKING, ALL, GROUPS, dict.fromkeys(GROUPS, 1))
    assert kept["a"].tolist() == [[False, True, False, True]] * 2
    assert kept["b"].tolist() == [[True, False], [False, True]]  # of equals the later
    assert kept["c"].all()


def test_what_is_gone_stays_gone_and_whole_groups_stay_whole() -> None:
    there = {**ALL, "a": torch.tensor([[False, False, True, False], [True, True, True, True]])}
    ranking = {**RANKING, "a": torch.tensor([5.0, 2.0, 1.0, 0.0, 9.0])}
    kept = best_of_runs(ranking, there, GROUPS, {"a": 1, "b": 4, "c": 1})
    assert kept["a"].tolist() == [[False, False, True, False], [True, False, False, True]]
    assert kept["b"].all() and kept["b"] is not there["b"]
