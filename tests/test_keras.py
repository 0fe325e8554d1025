"""Keras 3 models on the torch backend."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import secateur as sc
from oracles import masked, random_keep

os.environ.setdefault("KERAS_BACKEND", "torch")
keras: Any = pytest.importorskip("keras", reason="keras is not installed")
if keras.config.backend() != "torch":
    pytest.skip("keras runs on another backend", allow_module_level=True)
L: Any = keras.layers


def net() -> nn.Module:
    return keras.Sequential([keras.Input((8, 8, 3)), L.Conv2D(6, 3), L.BatchNormalization(), L.ReLU(), L.Flatten(), L.Dense(2)])


def residual() -> nn.Module:
    x = first = L.Conv2D(6, 3, padding="same")(start := keras.Input((8, 8, 3)))
    for _ in range(2):
        x = L.Add()([x, L.Conv2D(6, 3, padding="same")(L.ReLU()(L.BatchNormalization()(x)))])
    return keras.Model(start, L.Dense(2)(L.GlobalAveragePooling2D()(L.Concatenate()([x, first]))))


def perceptron() -> nn.Module:
    return keras.Sequential([keras.Input((8, 8, 3)), L.Flatten(), L.Dense(9, "gelu"), L.Dense(7, "relu"), L.Dense(2)])


@pytest.mark.parametrize("build, sizes", [(net, [6]), (residual, [6]), (perceptron, [9, 7])])
def test_a_graph_of_a_keras_model_is_pruned(build: Callable[[], nn.Module], sizes: list[int]):
    model, x = build(), torch.rand(2, 8, 8, 3)
    graph = sc.as_graph(model, x)
    structure = sc.channels(graph, x, exact=True)
    assert sorted(group.size for group in structure.groups.values()) == sorted(sizes)
    keep = random_keep(structure)
    plan = sc.select({name: gates.float() + torch.rand(gates.shape) for name, gates in keep.items()}, structure, 0.4)
    small = sc.shrink(graph, plan)
    torch.testing.assert_close(small(x), masked(graph, structure, plan.keep)(x))
    assert sum(value.numel() for value in small.parameters()) < sum(value.numel() for value in graph.parameters())
