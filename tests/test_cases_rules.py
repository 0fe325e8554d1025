"""The laws of a structure on more cases; and a rule that is broken does not go unnoticed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import laws
import secateur as sc
from cases import Case
from cases_rules import CASES
from oracles import random_keep
from secateur.structure import channels
from secateur.structure.rules import RULES
from secateur.surgery import unequal

ROOT = Path(__file__).parents[1]
EVERY = pytest.mark.parametrize("case", CASES, ids=str)


@EVERY
def test_the_units_of_every_case_are_found(case: Case):
    model, inputs = case.model(), case.inputs()
    structure = channels(model, inputs)
    assert {name: group.size for name, group in structure.groups.items()} == case.units
    assert tuple(name for name, group in structure.groups.items() if group.approximate) == case.approximate
    assert all(words in structure.frozen[name].frozen for name, words in case.frozen.items())
    assert unequal(model, structure, inputs) == {}


@EVERY
def test_all_laws_hold(case: Case):
    model, inputs = case.model(), case.inputs()
    exact = laws.left_alone(model, lambda: sc.channels(model, inputs, exact=True))
    structure = sc.channels(model, inputs)
    for seed in range(2):
        laws.shrunk_equals_masked(model, inputs, exact, random_keep(exact, 0.5, seed))
        keep = random_keep(structure, 0.5, seed)
        if case.approximate:
            laws.approximate_equals_statistics_over_what_is_kept(model, inputs, structure, keep)
        laws.counts_are_those_of_the_smaller_model(model, structure, keep)
    laws.reduce_is_the_derivative_of_expand(structure)
    laws.order_does_not_matter(model, inputs, structure)
    laws.never_emptied(model, inputs, structure)


@pytest.mark.skipif(not (ROOT / "benchmarks").is_dir(), reason="the benchmarks are not part of an installed package")
def test_a_broken_rule_is_noticed():
    sys.path.append(str(ROOT / "benchmarks"))
    import mutations

    broken = {
        "halves with a reader each": ("aten::split", "unite 2"),
        "flipped channels": ("aten::flip", "reversed 2"),
        "bags": ("aten::_embedding_bag", "freeze 1"),
        "root mean square norm": ("aten::rms_norm", "approximates 1"),
    }
    for case in CASES:
        if case.name in broken:
            name, mutation = broken[case.name]
            trial = mutations.of_case(case)
            trial.seen = {RULES[name]: {mutation: 1}}
            assert trial.killed() == ""
            assert mutations.fate(RULES[name], mutation, [trial]), case.name
