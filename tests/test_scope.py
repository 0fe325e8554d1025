from __future__ import annotations

import torch

from secateur.scope import SCOPES, place


def test_global_leaves_scores_as_they_are() -> None:
    scores = {"a": torch.tensor([3.0, 1.0]), "b": torch.tensor([2.0])}
    assert SCOPES["global"](scores) is scores


def test_a_layers_scores_are_places_in_the_layer() -> None:
    scores = {"a": torch.tensor([30.0, 10.0, 20.0, 40.0]), "b": torch.tensor([[0.2, 0.1]])}
    places = SCOPES["layer"](scores)
    assert places["a"].tolist() == [5 / 8, 1 / 8, 3 / 8, 7 / 8]
    assert places["b"].tolist() == [[3 / 4, 1 / 4]]


def test_equal_scores_keep_their_order() -> None:
    assert place(torch.zeros(4)).tolist() == [1 / 8, 3 / 8, 5 / 8, 7 / 8]
    assert place(torch.zeros(0)).shape == (0,)
