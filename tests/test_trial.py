"""Plans on trial: none agrees by chance, and what cannot be cured is said."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from cases import Net
from secateur.errors import BadInput
from secateur.structure import all_kept, channels
from secateur.structure.channels import ALL_KINDS
from secateur.structure.cut import cut
from secateur.structure.trial import told_apart


def test_groups_of_two_units_are_told_apart():
    """Each can only lose one unit: together they agree by chance, and one alone does not fit what the code takes from another's size."""

    def forward(n: Net, x: Tensor) -> Tensor:
        width = n.a(x).relu()
        b, steps, c = width.shape
        heads = n.b(x).view(b, steps, n.heads, 3).tanh()
        return n.out(n.read(heads.reshape(b, steps, c)) + n.keep(width.view(b, steps, n.halves, 3)).flatten(2))

    layers = {"a": nn.Linear(5, 6), "b": nn.Linear(5, 6), "read": nn.Linear(6, 6), "keep": nn.Linear(3, 3), "out": nn.Linear(6, 2)}
    model, x = Net(forward, **layers, heads=2, halves=2), torch.randn(2, 4, 5)
    found = sc.channels(model, x, units=ALL_KINDS)
    for name, group in found.groups.items():
        for unit in range(group.size):
            keep = {**all_kept(found), name: torch.arange(group.size) == unit}
            assert cut(model, found.kept(keep), found.sizes(keep))(x).shape == (2, 4, 2), name


def test_plans_that_tell_groups_apart():
    keep = {name: torch.arange(size) < kept for name, size, kept in (("a", 2, 1), ("b", 4, 1), ("c", 2, 1), ("d", 2, 1), ("e", 4, 2))}
    plans = [{name: bool(gates.all()) for name, gates in plan.items()} for plan in told_apart(keep)]
    assert len(plans) == 2
    for one, other in (("a", "c"), ("a", "d"), ("c", "d")):
        assert any(plan[one] != plan[other] for plan in plans)
    assert list(told_apart({"a": torch.tensor([True, False])})) == []


def test_two_runs_that_differ_end_in_a_sentence():
    counted = iter(range(10_000))
    net = Net(lambda n, x: n.c((h := n.a(x).relu()) + n.b(h))[: 1 + next(counted)], a=nn.Linear(5, 5), b=nn.Linear(5, 5), c=nn.Linear(5, 2))
    with pytest.raises(BadInput, match="Two runs of the model on the same example take different ways"):
        channels(net, torch.randn(4000, 5))
