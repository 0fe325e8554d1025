from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur as sc
from laws import left_alone
from secateur.activations import Activations, peak
from secateur.errors import BadInput
from secateur.structure import all_kept


class Net(nn.Module):
    """(3, 8, 8) -> a: 6 channels, relu in place -> b: 4 channels, strided -> 5 classes."""

    def __init__(self, a: int = 6, b: int = 4) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Conv2d(3, a, 3, padding=1), nn.Conv2d(a, b, 3, 2, padding=1), nn.Linear(b, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu_(self.b(F.relu_(self.a(x)))).mean((2, 3)))


class Reads(Net):
    """Cannot run without values."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if float(x.sum()) > -1e9 else -x)


X = torch.randn(2, 3, 8, 8)


def by_hand(a: int, b: int) -> float:
    """While b runs, its input and its output live; before and behind it less."""
    return 4.0 * (a * 64 + b * 16)


@pytest.mark.parametrize("kind", [Net, Reads])
def test_the_peak_is_that_of_the_layer_with_the_largest_input_and_output(kind: type[Net]) -> None:
    model = kind()
    structure = sc.channels(model, X)
    cost = Activations(model, X)
    keep = all_kept(structure)
    assert left_alone(model, lambda: cost(structure, keep)) == by_hand(6, 4)
    keep["a"][:4], keep["b"][1] = False, False
    assert cost(structure, keep) == by_hand(2, 3) == peak(kind(2, 3), X)


def test_it_is_counted_per_sample_and_in_the_types_own_bytes() -> None:
    for model, x in ((Net(), X), (Net(), X[:1]), (Net().double(), X.double())):
        assert peak(model, x) == by_hand(6, 4) * x.element_size() / 4
    assert peak(Net(), {"x": X}) == by_hand(6, 4)


def test_what_is_freed_does_not_count_and_views_count_once() -> None:
    class Long(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            for _ in range(10):
                x = (x + 1).view(-1).view(x.shape)
            return x

    assert peak(Long(), X) == 2 * 4 * 3 * 64, "the one before and the one that is made"


def test_select_meets_a_peak() -> None:
    model = Net()
    structure = sc.channels(model, X)
    scores = {name: torch.rand(group.size) for name, group in structure.groups.items()}
    plan = sc.select(scores, structure, budget={"activations": 1200}, of={"activations": Activations(model, X)})
    before, after = plan.cost["activations"]
    assert before == by_hand(6, 4) and 1200 - 256 < after <= 1200
    assert plan.made["of"] == ["activations"] and peak(sc.shrink(model, plan), X) == after
    assert sc.select(scores, structure, 0.3, Activations(model, X)).made["of"] == "activations"


def test_connections_do_not_make_activations_smaller() -> None:
    model = Net()
    structure = sc.weights(model)
    scores = {name: torch.rand(group.shape) for name, group in structure.groups.items()}
    with pytest.raises(sc.BudgetUnreachable, match="at most 0 of activations"):
        sc.select(scores, structure, 0.1, Activations(model, X))


def test_an_example_that_does_not_fit_is_said() -> None:
    model = Net()
    structure = sc.channels(model, X)
    with pytest.raises(BadInput, match=r"does not run on the example of shape \(2, 4, 8, 8\)"):
        Activations(model, torch.randn(2, 4, 8, 8))(structure, all_kept(structure))
