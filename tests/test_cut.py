"""Cutting a copy: indices, ties, attributes, and nothing of the original."""

from __future__ import annotations

import torch
from torch import nn

from secateur.structure.cut import cut, twin


def test_the_kept_indices_are_taken_and_sizes_follow():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, groups=1), nn.BatchNorm2d(8), nn.ConvTranspose2d(8, 4, 2), nn.GroupNorm(2, 4))
    index = torch.tensor([1, 4, 6])
    kept = {"0.weight": (index, None, None, None), "0.bias": (index,), "2.weight": (index, None, None, None)}
    kept |= {f"1.{name}": (index,) for name in ("weight", "bias", "running_mean", "running_var")}
    small = cut(model, kept, {"3.num_groups": 1})
    assert torch.equal(small[0].weight, model[0].weight[index]) and torch.equal(small[2].weight, model[2].weight[index])
    assert (small[0].out_channels, small[1].num_features, small[2].in_channels, small[3].num_groups) == (3, 3, 3, 1)
    assert (model[0].out_channels, model[3].num_groups) == (8, 2)
    assert small(torch.randn(1, 3, 8, 8)).shape == (1, 4, 7, 7)


def test_recurrent_layers_follow_their_weights():
    model = nn.LSTM(4, 6)
    hidden = torch.tensor([0, 2, 5])
    rows = torch.cat([hidden + 6 * gate for gate in range(4)])
    kept = {"weight_ih_l0": (rows, None), "weight_hh_l0": (rows, hidden), "bias_ih_l0": (rows,), "bias_hh_l0": (rows,)}
    small = cut(model, kept, {})
    assert small.hidden_size == 3 and small(torch.randn(5, 2, 4))[0].shape == (5, 2, 3)


def test_ties_stay_ties_and_nothing_is_shared_with_the_original():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    copy = twin(model, lambda _, value: value.clone())
    assert copy[0].weight is copy[1].weight and copy[0].weight is not model[0].weight
    with torch.no_grad():
        copy[0].weight.zero_()
    assert model[0].weight.abs().sum() > 0
    assert copy[0].weight.requires_grad and not twin(model.requires_grad_(False), lambda _, v: v.clone())[0].weight.requires_grad


def test_what_a_run_left_behind_does_not_stop_the_copy():
    class Remembering(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.seen = self.a(x)
            return self.b(self.seen.relu())

    model = Remembering()
    model(torch.randn(2, 4))
    assert not model.seen.is_leaf
    copy = twin(model, lambda _, value: value.clone())
    assert torch.equal(copy.seen, model.seen) and copy.seen is not model.seen
