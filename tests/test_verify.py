"""Comparing numbers finds what shapes do not show."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import secateur as sc
from cases import CASES
from laws import left_alone
from secateur.structure import Channels, channels
from secateur.surgery import unequal, verify
from test_sizes import Kept


def test_all_cases_agree():
    for case in CASES:
        model, inputs = case.model(), case.inputs()
        assert unequal(model, channels(model, inputs), inputs) == {}, case.name


def test_a_wrong_permutation_has_the_right_shapes_and_is_found():
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))
    inputs = torch.randn(2, 5)
    right = channels(model, inputs)
    index = dict(right.index)
    index["2.weight"] = (index["2.weight"][0], index["2.weight"][1].flip(1))
    found = unequal(model, replace(right, index=index), inputs)
    assert list(found) == ["0"] and ("computes something else" in found["0"] or "the order of its units matters" in found["0"])


class Casting(nn.Module):
    """Insists on float32, whatever it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x.float()).relu())


class Averaging(nn.Module):
    """Divides by a size, which changes with it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x).relu()
        return self.b(y / torch.tensor(float(y.shape[1])))


def test_a_model_that_insists_on_its_own_type_is_compared_in_that():
    assert unequal(Casting(), channels(Casting(), torch.randn(2, 5)), torch.randn(2, 5)) == {}


def test_a_number_that_depends_on_a_size_is_found_and_the_public_structure_leaves_the_group_whole():
    model, inputs = Averaging(), torch.randn(2, 5)
    assert list(unequal(model, channels(model, inputs), inputs)) == ["a"]
    assert "computes something else" in sc.channels(model, inputs).frozen["a"].frozen


class Dividing(Averaging):
    """The same with a plain number, which the trial on shapes sees."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x).relu()
        return self.b((y * y.softmax(1)) / y.shape[1])


def test_a_plain_number_that_depends_on_a_size_is_found_in_an_approximate_group_too():
    frozen = channels(Dividing(), torch.randn(2, 5)).frozen["a"].frozen
    assert "a number that is calculated from its size changes: div at test_verify.py" in frozen


def test_a_smaller_model_that_fails_is_not_called_equal():
    model, inputs = Kept(), torch.randn(3, 4)
    assert list(unequal(model, replace(channels(model, inputs), attributes={}), inputs)) == ["a"]


def test_a_model_that_is_not_finite_is_not_called_equal():
    model = nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 3))
    with torch.no_grad():
        model[1].bias.fill_(float("nan"))
    assert list(unequal(model, channels(model, torch.randn(2, 5)), torch.randn(2, 5))) == ["0"]


# groups whose units are permuted ---------------------------------------------------------------------------------------------------------


def normed(norm: nn.Module) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 6), norm, nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)).eval()


def in_another_order(structure: Channels, name: str, dim: int = 0) -> Channels:
    """The structure, but for one tensor whose units are the wrong way round."""
    dims = tuple(index.flip(1) if d == dim and index is not None else index for d, index in enumerate(structure.index[name]))
    return replace(structure, index={**structure.index, name: dims})


WAYS = [("0.bias", 0), ("1.weight", 0), ("1.bias", 0), ("2.weight", 1)]


@pytest.mark.parametrize("name, dim", WAYS)
def test_a_wrong_order_under_a_statistic_is_found_by_permuting(name: str, dim: int):
    model, inputs = normed(nn.LayerNorm(6)), torch.randn(4, 5)
    right = channels(model, inputs)
    assert right.groups["0"].approximate and unequal(model, right, inputs) == {}
    found = unequal(model, in_another_order(right, name, dim), inputs)
    assert list(found) == ["0"] and "the order of its units matters" in found["0"]


@pytest.mark.parametrize("norm, name", [(nn.LayerNorm(6), "1.weight"), (nn.LayerNorm(6), "1.bias"), (nn.BatchNorm1d(6), "1.running_var")])
def test_weights_are_shaken_since_ones_and_zeros_hide_their_order(norm: nn.Module, name: str, monkeypatch: pytest.MonkeyPatch):
    model, inputs = normed(norm), torch.randn(4, 5)
    wrong = in_another_order(channels(model, inputs), name)
    assert list(unequal(model, wrong, inputs)) == ["0"]
    monkeypatch.setattr(verify, "shaken", lambda value, generator, parameter: value)
    assert unequal(model, wrong, inputs) == {}  # as it was built, the model computes the same


def test_a_branch_that_begins_at_zero_is_looked_at_too():
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.out = nn.Linear(5, 6), nn.Linear(6, 5), nn.Linear(5, 3)
            self.gain = nn.Parameter(torch.zeros(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(x + self.gain * self.b(self.a(x).tanh()))

    model, inputs = Gated(), torch.randn(4, 5)
    assert list(unequal(model, in_another_order(channels(model, inputs), "b.weight", 1), inputs)) == ["a"]


def test_a_scale_next_to_nothing_hides_no_branch_of_a_model_that_insists_on_its_own_type():
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.out = nn.Linear(5, 6), nn.Linear(6, 5), nn.Linear(5, 3)
            self.gain = nn.Parameter(torch.full((5,), 1e-6))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x.float()
            return self.out(x + self.gain * self.b(self.a(x).tanh()))

    model, inputs = Scaled(), torch.randn(4, 5)
    assert list(unequal(model, in_another_order(channels(model, inputs), "b.weight", 1), inputs)) == ["a"]


def test_only_the_group_in_the_wrong_order_is_blamed():
    model = nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.Linear(6, 9), nn.LayerNorm(9), nn.Linear(9, 8), nn.Tanh(), nn.Linear(8, 3))
    inputs = torch.randn(4, 5)
    right = channels(model, inputs)
    assert list(right.groups) == ["0", "2", "4"]
    assert list(unequal(model, in_another_order(right, "3.weight"), inputs)) == ["2"]
    assert sorted(unequal(model, in_another_order(in_another_order(right, "3.weight"), "6.weight", 1), inputs)) == ["2", "4"]


@pytest.mark.parametrize("size", [3, 4, 5, 6])
def test_a_wrong_order_of_a_few_units_is_found_whatever_chance_draws(size: int):
    model, inputs = nn.Sequential(nn.Linear(5, size), nn.LayerNorm(size), nn.Linear(size, 3)), torch.randn(4, 5)
    wrong = in_another_order(channels(model, inputs), "1.weight")
    assert all(unequal(model, wrong, inputs, seed) for seed in range(24))


def test_shaking_moves_every_number_a_little_and_leaves_what_is_no_number():
    generator = torch.Generator().manual_seed(0)
    value = torch.tensor([0.0, 1.0, -100.0, float("inf"), -float("inf"), float("nan")])
    moved = verify.shaken(value, generator, True)
    assert (moved[:3] != value[:3]).all() and ((moved - value)[:3].abs() <= 0.3 * (value[:3].abs() + 0.01)).all()
    for _ in range(10):
        assert torch.equal(verify.shaken(value, generator, True)[3:5], value[3:5])
    assert torch.equal(verify.shaken(torch.tensor([1, 2]), generator, True), torch.tensor([1, 2]))
    assert verify.shaken(value.half(), generator, True).dtype == torch.float16
    tiny = torch.full((100,), 1e-6)
    assert 0.05 < verify.shaken(tiny, generator, True).std() < 0.2 and verify.shaken(tiny, generator, False).std() < 0.01


def test_comparing_leaves_the_model_and_chance_alone():
    model, inputs = normed(nn.LayerNorm(6)).train(), torch.randn(4, 5)
    structure = channels(model, inputs)
    left_alone(model, lambda: unequal(model, structure, inputs))
    assert inputs.dtype == torch.float32


def test_a_model_without_values_has_nothing_to_compare():
    model, inputs = normed(nn.LayerNorm(6)), torch.randn(4, 5)
    wrong = in_another_order(channels(model, inputs), "1.weight")
    assert unequal(model.to("meta"), wrong, inputs.to("meta")) == {}


def test_a_channel_that_stands_still_freezes_nothing():
    """A variance next to nothing, as trained networks have them, must stay one when values are shaken."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 4, 3)).eval()
    model[1].running_var.fill_(1e-12)
    assert set(sc.channels(model, torch.randn(2, 3, 8, 8)).groups) == {"0"}
