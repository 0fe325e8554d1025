"""Integers that remember where they came from."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import nn

from secateur.structure import channels
from secateur.structure.cut import cut
from secateur.structure.sizes import Remembered, origins_of, remember


def test_a_remembered_integer_calculates_like_any_other():
    n = Remembered(6, ("width", None))
    assert n == 6 and n * 2 == 12 and type(n + 2) is int and [0] * n == [0] * 6 and torch.zeros(n).shape == (6,)
    assert type(n.__reduce__()[0](*n.__reduce__()[1])) is int and copy.deepcopy(n).attribute == ("width", None)


def test_attributes_and_tuples_of_modules_are_replaced():
    norm = nn.LayerNorm((3, 4))
    remember(norm)
    assert [n.attribute for n in norm.normalized_shape] == [("normalized_shape", 0), ("normalized_shape", 1)]


def test_the_sizes_among_a_calls_arguments_are_found_in_their_order():
    a, b = Remembered(2, ("heads", None)), Remembered(3, ("dim", None))
    x = torch.zeros(6)
    assert [o.value.attribute[0] for o in origins_of(torch.Tensor.view, (x, a, b), {})] == ["heads", "dim"]
    assert [o.value.attribute[0] for o in origins_of(F.layer_norm, (x, (b,)), {"eps": a})] == ["dim"]
    assert origins_of(torch.conv2d, (x, x, x, a, b), {}) == []  # stride and padding are no sizes


class Kept(nn.Module):
    """The same width is used by two views: both must be able to follow."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 6
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x).view(-1, self.width).relu()
        return self.c(self.b(x).view(-1, self.width).relu())


def test_an_attribute_that_sets_two_sizes_ties_them():
    model = Kept()
    structure = channels(model, torch.randn(3, 4))
    assert {name: group.size for name, group in structure.groups.items()} == {"a": 6}
    keep = {"a": torch.tensor([True, True, False, True, False, True])}
    assert structure.sizes(keep) == {"width": 4}
    small = cut(model, structure.kept(keep), structure.sizes(keep))
    assert small.width == 4 and small(torch.randn(3, 4)).shape == (3, 2) and model.width == 6
