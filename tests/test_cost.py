from __future__ import annotations

import pytest
import torch

from secateur.cost import COSTS, cost, costs
from secateur.errors import BadInput
from secateur.structure import all_kept, weights
from toy import Hidden, mlp


def test_the_cost_of_a_plan_is_that_of_the_smaller_net() -> None:
    structure = Hidden(mlp(8, 6, 5, 3))
    keep = {"h0": torch.arange(6) < 4, "h1": torch.arange(5) < 2}
    small = mlp(8, 4, 2, 3)
    parameters = sum(value.numel() for value in small.parameters())
    macs = 8 * 4 + 4 * 2 + 2 * 3
    assert costs(structure, keep) == {"units": 6, "parameters": parameters, "macs": macs, "bytes": 8 * parameters}


def test_unit_costs_do_not_add_up_but_the_plan_is_measured_as_a_whole() -> None:
    structure = Hidden(mlp(8, 6, 5, 3))
    whole, none = all_kept(structure), {"h0": torch.zeros(6), "h1": torch.zeros(5)}
    per_unit = structure.reduce({name: torch.ones_like(value) for name, value in structure.model.named_parameters()})
    assert cost(structure, whole, "parameters") - cost(structure, none, "parameters") < sum(float(v.sum()) for v in per_unit.values())


def test_what_is_not_prunable_counts() -> None:
    model = mlp(8, 6, 3, dtype=torch.float16)
    structure = weights(model)
    none = {name: torch.zeros(group.shape, dtype=torch.bool) for name, group in structure.groups.items()}
    assert cost(structure, none, "parameters") == 6 + 3 and cost(structure, none, "bytes") == 2 * 9


def test_without_an_example_there_are_no_macs() -> None:
    structure = weights(mlp(8, 6, 3))
    assert set(costs(structure, all_kept(structure))) == {"units", "parameters", "bytes"}
    with pytest.raises(BadInput, match="example="):
        cost(structure, all_kept(structure), "macs")


def test_an_unknown_cost_is_said() -> None:
    with pytest.raises(BadInput, match=", ".join(COSTS)):
        cost(weights(mlp(8, 3)), {}, "flops")
