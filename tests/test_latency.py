"""The table's arithmetic, on a clock that tells times by sizes; nothing here depends on how fast the machine is."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from laws import left_alone
from secateur import latency as clock
from secateur.activations import smaller
from secateur.errors import BadInput
from secateur.latency import Call, Checked, Latency, calls_of, check, measured_ms, operator_ms, side
from secateur.structure import all_kept


class Net(nn.Module):
    def __init__(self, hidden: int = 16, inner: int = 8) -> None:
        super().__init__()
        self.a, self.norm = nn.Linear(6, hidden), nn.LayerNorm(hidden)
        self.b, self.out = nn.Linear(hidden, inner), nn.Linear(inner, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.b(self.norm(self.a(x)).relu()).relu())


X = torch.randn(4, 6)
SLOWER, BESIDE = 1.5, 10.0


def by_sizes(call: Call) -> float:
    """Linear in each size of its own: products of sizes are bilinear, which the table keeps."""
    args, _ = call.rebuild(call.sizes)
    return math.prod(args[1].shape) / 8 if "linear" in str(call.function) else float(args[0].numel()) / 16


def whole(model: nn.Module) -> float:
    return BESIDE + SLOWER * sum(by_sizes(call) for call in calls_of(model, X))


@pytest.fixture
def told() -> Iterator[list[Call]]:
    asked: list[Call] = []

    def operator(call: Call) -> float:
        asked.append(call)
        return by_sizes(call)

    with (
        mock.patch.object(clock, "operator_ms", operator),
        mock.patch.object(clock, "whole_ms", lambda models, inputs, seconds: {name: whole(model) for name, model in models.items()}),
        mock.patch.object(clock, "measured_ms", lambda model, inputs, seconds: whole(model)),
    ):
        yield asked


@pytest.mark.parametrize("whole_model", [False, True])
@pytest.mark.parametrize(("hidden", "inner"), [(16, 8), (8, 4), (5, 8), (11, 3), (1, 1), (16, 7)])
def test_a_plan_takes_as_long_as_its_smaller_model(told: list[Call], hidden: int, inner: int, whole_model: bool) -> None:
    """Bilinear times come out exactly, on the grid and between."""
    model = Net()
    structure = sc.channels(model, X)
    keep = {"a": torch.arange(16) < hidden, "b": torch.arange(8) < inner}
    cost = Latency(model, X, whole=whole_model)
    assert left_alone(model, lambda: cost(structure, keep)) == pytest.approx(whole(Net(hidden, inner)))
    if not whole_model:
        assert cost.line == pytest.approx((BESIDE, SLOWER))


def test_an_operator_is_measured_once_a_size_of_the_grid(told: list[Call]) -> None:
    model = Net()
    structure = sc.channels(model, X)
    cost = Latency(model, X)
    for hidden in range(1, 17):
        cost(structure, {"a": torch.arange(16) < hidden, "b": torch.arange(8) < 8})
    first = len(told)
    assert len(set(told)) == first, "none twice"
    for inner in range(1, 9):
        cost(structure, {"a": torch.arange(16) < 3, "b": torch.arange(8) < inner})
    linear = [call for call in told[:first] if "linear" in str(call.function) and call.sizes[0:2] == (4, 6)]
    assert {call.sizes[2] for call in linear} == {1, 2, 4, 6, 8, 10, 12, 14, 16}, "one, and eighths of 16"
    assert len(told) < 120 and len(told) > first


@pytest.mark.parametrize(
    ("ratio", "sizes", "points"),
    [
        (0.5, [16], [(8, 16, 1.0)]),
        (0.4375, [16, 48], [(6, 16, 0.5), (8, 16, 0.5)]),
        (5 / 6, [6], [(5, 6, 1.0)]),
        (0.01, [64], [(1, 64, 1.0)]),
        (1 / 3, [3, 6], [(1, 3, 1.0)]),
        (1.0, [8], [(8, 8, 1.0)]),
    ],
)
def test_the_grid_points_next_to_a_ratio(ratio: float, sizes: list[int], points: list[tuple[int, int, float]]) -> None:
    assert side(ratio, sizes) == points


def test_select_meets_milliseconds(told: list[Call]) -> None:
    model = Net()
    structure = sc.channels(model, X)
    scores = {name: torch.rand(group.size) for name, group in structure.groups.items()}
    cost = Latency(model, X)
    plan = sc.select(scores, structure, {"macs": 0.1, "latency": 0.4}, {"latency": cost})
    before, after = plan.cost["latency"]
    assert before == pytest.approx(whole(model)) and after <= 0.6 * before
    assert after == pytest.approx(whole(sc.shrink(model, plan)))
    limit = sc.select(scores, structure, budget="30 ms", of=cost)
    assert limit.cost["latency"][1] <= 30


def test_layers_that_are_skipped_take_no_time(told: list[Call]) -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.f(x)

    model = nn.Sequential(Block(), Block(), Block())
    structure = sc.structure.layers(model, X)
    cost = Latency(model, X)
    keep = all_kept(structure)
    keep["layers"][1] = False
    assert cost(structure, keep) == pytest.approx(whole(model[:2]))


def timed(dense: float, half: float, asked: list[float]) -> mock._patch[object]:
    """Whole models that take so long, whatever they are."""

    def whole_ms(models: dict[str, nn.Module], inputs: object, seconds: float) -> dict[str, float]:
        asked.append(seconds)
        return {"dense": dense, "half": half}

    return mock.patch.object(clock, "whole_ms", whole_ms)


@pytest.mark.parametrize(("dense", "half"), [(50.0, 50.5), (50.0, 90.0), (1000.0, 1.0), (20.0, 60.0), (3.0, 4.0), (50.0, 49.9)])
def test_a_smaller_model_is_never_slower_however_noisy_the_clock(told: list[Call], dense: float, half: float) -> None:
    """Slopes beyond 1/4..4 are measured again, and then the nearest is taken, and said."""
    model, asked = Net(), list[float]()
    structure = sc.channels(model, X)
    cost = Latency(model, X, seconds=0.5)
    with timed(dense, half, asked), pytest.warns(UserWarning, match=r"taken for noise.*more seconds=.*whole=True"):
        times = [cost(structure, {"a": torch.arange(16) < n, "b": torch.arange(8) < n / 2}) for n in range(16, 0, -1)]
    assert asked == [1.0, 3.0, 9.0], "three times, ever longer"
    assert times[0] == pytest.approx(dense) and times[-1] > 0
    assert all(small < large for large, small in itertools.pairwise(times)), "strictly: otherwise a budget could not be met"
    assert cost.line is not None and cost.line[0] >= -1e-9 and cost.line[1] > 0


def test_a_clock_that_comes_to_its_senses_is_believed(told: list[Call]) -> None:
    model, calls = Net(), iter([5.0, -10.0])
    structure = sc.channels(model, X)
    truth = clock.whole_ms

    def noisy(models: dict[str, nn.Module], inputs: object, seconds: float) -> dict[str, float]:
        off = next(calls, 0.0)
        return {name: value + off * 20 * (name == "half") for name, value in truth(models, inputs, seconds).items()}

    cost = Latency(model, X)
    with mock.patch.object(clock, "whole_ms", noisy):
        cost(structure, all_kept(structure))
    assert cost.line == pytest.approx((BESIDE, SLOWER))


def test_no_plan_takes_less_than_no_time(told: list[Call]) -> None:
    """A line through both models that goes below zero is left at the half for one through nothing."""
    model = Net()
    structure = sc.channels(model, X)
    dense, half = (sum(by_sizes(call) for call in calls_of(net, X)) for net in (model, Net(8, 4)))
    cost = Latency(model, X)
    with timed(2 * dense, 2 * dense - 3 * (dense - half), []):
        assert cost(structure, all_kept(structure)) == pytest.approx(2 * dense)
        keep = {"a": torch.arange(16) < 8, "b": torch.arange(8) < 4}
        assert cost(structure, keep) == pytest.approx(2 * dense - 3 * (dense - half))
        few = cost(structure, {"a": torch.arange(16) < 1, "b": torch.arange(8) < 1})
    assert cost.line is not None and cost.line[0] < 0 < few < cost(structure, keep)


def test_zeros_are_no_speed(told: list[Call]) -> None:
    model = Net()
    structure = sc.weights(model)
    scores = {name: torch.rand(group.shape) for name, group in structure.groups.items()}
    with pytest.raises(sc.BudgetUnreachable, match="at most 0 of latency"):
        sc.select(scores, structure, 0.1, Latency(model, X))


def test_predictions_are_held_against_whole_models(told: list[Call]) -> None:
    model = Net()
    structure = sc.channels(model, X)
    keep = {"a": torch.arange(16) < 5, "b": torch.arange(8) < 3}
    dense, small = check(Latency(model, X), structure, [keep])
    assert small.measured == whole(smaller(model, structure, keep)) and dense.measured == whole(model)
    assert dense.error == pytest.approx(0) and small.error == pytest.approx(0)
    assert Checked(3.0, 2.0).error == 0.5


def test_a_real_clock_tells_positive_times() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.Conv1d(3, 2, 1), nn.ReLU(inplace=True)).eval()
    x = torch.tensor([[1, 2, 3]])
    found = calls_of(model, x)
    assert ["embedding" in str(call.function) for call in found].count(True) == 1
    assert all(operator_ms(call, seconds=0.0) > 0 for call in found)
    assert measured_ms(model, x, seconds=0.0) > 0


def test_an_operator_that_does_not_run_at_sizes_of_the_grid_is_measured_at_its_own(told: list[Call]) -> None:
    """11 of 16 lie between 10 and 12."""

    def particular(call: Call) -> float:
        if "linear" in str(call.function) and call.sizes[2] in (10, 12):
            raise RuntimeError("a kernel that takes no such size")
        return by_sizes(call)

    failing = mock.Mock(side_effect=particular)
    model = Net()
    structure = sc.channels(model, X)
    with mock.patch.object(clock, "operator_ms", failing):
        cost = Latency(model, X)
        value = cost(structure, {"a": torch.arange(16) < 11, "b": torch.arange(8) < 8})
    assert value == pytest.approx(whole(Net(11, 8)))
    assert any(call.args[0].sizes[:3] == (4, 6, 11) for call in failing.call_args_list)


def test_a_model_without_values_cannot_be_timed() -> None:
    with pytest.raises(BadInput, match="meta device"):
        Latency(Net().to("meta"), X)
    with pytest.raises(BadInput, match=r"does not run on the example of shape \(2, 7\)"):
        calls_of(Net(), torch.randn(2, 7))
