"""All laws on random nets. SECATEUR_WALK=2000 walks further than the suite does."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from hypothesis import given

import laws
import secateur as sc
from secateur.structure import Channels
from secateur.structure.channels import ALL_KINDS
from walk import Description, descriptions, keep_of, plans, several, walk, walking

NUMBER = int(os.environ.get("SECATEUR_WALK", "50"))
walked = walking(NUMBER)


@walked
@given(descriptions(), plans)
def test_all_laws_hold_on_random_nets(description: Description, plan: list[int]):
    net = walk(description)
    model, inputs = net.model, net.inputs
    for exact in (True, False):
        structure = laws.left_alone(model, lambda exact=exact: sc.channels(model, inputs, exact, ALL_KINDS))
        assert isinstance(structure, Channels)
        assert net.sized or not net.missing(structure, exact), structure.explain()  # which of two sizes a number follows may be doubtful
        keep = keep_of(structure, plan)
        if exact:
            laws.shrunk_equals_masked(model, inputs, structure, keep)
        elif any(group.approximate for group in structure.groups.values()):
            laws.approximate_equals_statistics_over_what_is_kept(model, inputs, structure, keep)
    laws.reduce_is_the_derivative_of_expand(structure)
    laws.order_does_not_matter(model, inputs, structure)
    laws.counts_are_those_of_the_smaller_model(model, structure, keep)
    laws.never_emptied(model, inputs, structure)


def test_a_description_makes_the_same_net_twice():
    assert several(10) == several(10)
    for description in several(10):
        a, b = walk(description), walk(description)
        assert a.claims == b.claims and a.claims
        assert all(torch.equal(x, y) for x, y in zip(a.model.state_dict().values(), b.model.state_dict().values()))


def test_random_nets_are_saved_and_loaded_bit_for_bit(tmp_path: Path):
    for number, description in enumerate(several(8)):
        net = walk(description)
        structure = sc.channels(net.model, net.inputs)
        if structure.groups:
            scores = {name: torch.rand(group.size, generator=torch.Generator().manual_seed(0)) for name, group in structure.groups.items()}
            plan = sc.select(scores, structure, 0.4)
            small = sc.shrink(net.model, plan)
            sc.save(tmp_path / str(number), small, plan)
            again = sc.load(tmp_path / str(number), lambda description=description: walk(description).model)
            for a, b in zip(laws.outputs(small, net.inputs), laws.outputs(again, net.inputs)):
                assert torch.equal(a, b)


def test_budgets_are_met_on_random_nets():
    """Reached, overshot by less than one unit, and by more units as the amount grows."""
    for description in several(8):
        net = walk(description)
        structure = sc.channels(net.model, net.inputs)
        units = sum(group.size for group in structure.groups.values())
        most = units - len(structure.groups)
        scores = {name: torch.rand(group.size, generator=torch.Generator().manual_seed(0)) for name, group in structure.groups.items()}
        gone = []
        for amount in (0.1, 0.25, 0.4):
            if 0 < amount * units <= most:
                plan = sc.select(scores, structure, amount)
                gone.append(units - sum(int(keep.sum()) for keep in plan.keep.values()))
                assert amount * units <= gone[-1] < amount * units + 1
        assert gone == sorted(gone)


def test_an_operator_without_a_rule_is_named():
    net = walk(("vector", (("layer", 4, "none", "relu"), ("unknown",))))
    (reason,) = [group.frozen for name, group in sc.channels(net.model, net.inputs).frozen.items() if name == "1.0.0"]
    assert "no rule for this operator: by walk::mystery at blocks.py:" in reason
