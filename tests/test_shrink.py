"""Really smaller, in the user's own classes."""

from __future__ import annotations

import torch
from torch import nn

import secateur as sc
from test_mask import plan_for


def test_the_smaller_model_trains_on():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    small = sc.shrink(model, plan_for(model, sc.channels(model, torch.randn(1, 3, 8, 8))))
    assert type(small) is type(model) and small[0].out_channels < 8
    small.train()(torch.randn(4, 3, 8, 8)).sum().backward()
    assert all(value.grad is not None for value in small.parameters())


def test_single_connections_leave_the_size():
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    structure = sc.weights(model)
    plan = sc.select({name: torch.rand(group.shape) for name, group in structure.groups.items()}, structure, amount=0.5)
    assert sc.shrink(model, plan)[0].weight.shape == (3, 4)
