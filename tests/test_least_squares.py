"""repair/least_squares.py: weights that read removed units, fitted to what they made."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur as sc
from cases import Net
from repairs import NETS, made, planned
from secateur.api import structure_of
from secateur.errors import BadInput
from secateur.repair import least_squares
from secateur.repair.least_squares import GRID, fitted, solved
from secateur.repair.side_by_side import Sums
from secateur.select import select_each
from secateur.surgery import masks, with_values


def error(one: nn.Module, other: nn.Module, x: Tensor) -> float:
    return float((one(x) - other(x)).detach().square().sum())


@pytest.mark.parametrize("name", NETS)
def test_what_is_left_makes_up_for_what_went(name: str) -> None:
    model, data, x = made(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    plan = planned(model, x)
    values = least_squares(model, plan, data)
    assert values
    repaired = sc.shrink(with_values(model, values), plan)
    assert error(repaired, model, x) < 0.9 * error(sc.shrink(model, plan), model, x)
    torch.testing.assert_close(repaired(x), sc.mask(with_values(model, values), plan)(x))  # shrunk == masked
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["linear", "sequences", "matrix", "convolutions", "transposed", "flattened"])
def test_copies_of_a_unit_are_made_up_for_exactly(name: str) -> None:
    """The second half of the hidden units computes what the first half does, so all of it may go."""
    model, data, x = made(name)
    first = next(module for module in model.modules() if isinstance(module, (nn.Linear, nn.Conv2d)))
    with torch.no_grad():
        for value in first.parameters():
            value[4:] = value[:4]
    structure = sc.channels(model, x[:2])
    (group,) = structure.groups
    plan = sc.select({group: torch.arange(8.0).flip(0)}, structure, 0.5)
    repaired = sc.shrink(with_values(model, least_squares(model, plan, data)), plan)
    assert error(sc.shrink(model, plan), model, x) > 1e-2
    torch.testing.assert_close(repaired(x), model(x), rtol=1e-3, atol=1e-3)  # but for lambda, 1e-5 at the least


def test_it_is_the_solution_of_the_normal_equations() -> None:
    """Of one layer, by torch.linalg.lstsq on the rows themselves, lambda as more rows."""
    model, data, x = made("linear")
    plan = planned(model, x)
    kept = plan.kept["2.weight"][1]
    hidden = model[:2](x).detach()  # type: ignore[index]
    values = least_squares(model, plan, data)
    u, y = hidden[:, kept], model(x).detach()
    w0 = model[2].weight.detach()[:, kept]  # type: ignore[index]
    centred, deviations = u - u.mean(0), y - y.mean(0)
    found, none = [], torch.zeros(len(kept), 3, dtype=torch.float64)
    mean = centred.square().sum() / 8  # of all columns, removed ones being zero
    for share in GRID:
        rows = torch.cat([centred, (share * mean).sqrt() * torch.eye(len(kept), dtype=torch.float64)])
        found.append(w0 + torch.linalg.lstsq(rows, torch.cat([deviations - centred @ w0.T, none])).solution.T)
    assert any(torch.allclose(values["2.weight"][:, kept], w) for w in found)
    w = values["2.weight"][:, kept]
    torch.testing.assert_close(values["2.bias"], y.mean(0) - w @ u.mean(0))
    gone = torch.ones(8, dtype=torch.bool).index_fill(0, kept, False)
    assert not values["2.weight"][:, gone].any()


@pytest.mark.parametrize("norm", [nn.LayerNorm(8), nn.Softmax(-1), nn.GroupNorm(1, 8)], ids=str)
def test_behind_a_statistic_over_units_it_is_the_smaller_model_that_is_fitted(norm: nn.Module) -> None:
    """By torch.linalg.lstsq on what the smaller one, not the masked one, makes in front of the last layer."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), copy.deepcopy(norm), nn.Linear(8, 3)).double().eval()
    x = torch.randn(60, 5, dtype=torch.float64)
    data = [(part, torch.zeros(len(part))) for part in x.split(10)]
    plan = planned(model, x, 0.5)
    assert plan.approximate and sum(plan.removed()["0"]) == 4 + 8
    values = least_squares(model, plan, data)
    small = sc.shrink(with_values(model, values), plan)
    u, y = small[:2](x).detach(), model(x).detach()  # type: ignore[index]
    found = torch.linalg.lstsq(torch.cat([u, torch.ones_like(u[:, :1])], 1), y)
    best = float((torch.cat([u, torch.ones_like(u[:, :1])], 1) @ found.solution - y).square().sum())
    assert error(small, model, x) < 1.02 * best + 1e-9 < error(sc.shrink(model, plan), model, x)
    gone = ~plan.keep["0"]
    assert not values["0.weight"][gone].any() and not values["2.weight"][:, gone].any()


def test_of_dense_features_every_weight_is_fitted_by_itself() -> None:
    """Whatever leaves before it: by torch.linalg.lstsq on what the dense model makes, lambda as more rows."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 4)).double()
    x = torch.randn(40, 5, dtype=torch.float64)
    data = [(part, torch.zeros(len(part))) for part in x.split(8)]
    structure = sc.channels(model, x[:2])
    scores = {name: torch.arange(group.size).double() for name, group in structure.groups.items()}
    plan = select_each(scores, structure, dict.fromkeys(scores, 0.5))
    values = least_squares(model, plan, data, sequential=False)
    assert values.keys() == {"2.weight", "2.bias", "4.weight", "4.bias"}
    for layer in (2, 4):
        inputs = plan.kept[f"{layer}.weight"][1]
        outputs = plan.kept[f"{layer}.weight"][0] if layer == 2 else torch.arange(4)
        whole, wanted = model[:layer](x).detach(), model[: layer + 1](x).detach()[:, outputs]
        assert inputs is not None and outputs is not None
        u, w0 = whole[:, inputs], model[layer].weight.detach()[outputs][:, inputs]
        centred, deviations, found = u - u.mean(0), wanted - wanted.mean(0), []
        mean = (whole - whole.mean(0)).square().sum() / whole.shape[1]
        for share in GRID:
            rows = torch.cat([centred, (share * mean).sqrt() * torch.eye(len(inputs), dtype=torch.float64)])
            lacking = torch.cat([deviations - centred @ w0.T, torch.zeros(len(inputs), len(outputs), dtype=torch.float64)])
            found.append(w0 + torch.linalg.lstsq(rows, lacking).solution.T)
        now = values[f"{layer}.weight"][outputs][:, inputs]
        assert any(torch.allclose(now, w) for w in found)
        torch.testing.assert_close(values[f"{layer}.bias"][outputs], wanted.mean(0) - now @ u.mean(0))
    assert error(sc.shrink(with_values(model, values), plan), model, x) < error(sc.shrink(model, plan), model, x)


@pytest.mark.parametrize("rows", [1, 3, 50])
def test_nothing_is_changed_for_the_worse(rows: int) -> None:
    """Dead inputs, fewer rows than inputs, targets of pure noise: over all rows the error is at most that of the weight as it is."""
    chance = torch.Generator().manual_seed(rows)
    for case in range(30):
        u, y = (torch.randn(2, 2 * rows, size, generator=chance, dtype=torch.float64) for size in (6, 3))
        u[:, :, case % 6] = 0
        train, held = Sums.none(u, y), Sums.none(u, y)
        train.add(u[:, :rows], y[:, :rows])
        held.add(u[:, rows:], y[:, rows:])
        nothing = torch.zeros(2, 7, 3, dtype=torch.float64)
        for kept in (torch.ones(2, 6, 3).bool(), torch.rand(2, 6, 3, generator=chance) < 0.5):
            for shifts in (False, True):
                change = fitted(train, held, kept, shifts)
                assert torch.isfinite(change).all() and not change[:, :-1][~kept].any()
                if change.any():
                    assert (train + held).error(change) < (train + held).error(nothing)
                left = torch.cat([u, torch.ones(2, 2 * rows, 1).double()], -1) @ change - y
                assert held.error(change) == pytest.approx(float(left[:, rows:].square().sum()))


@pytest.mark.parametrize("mean", [1.0, 1e4, 1e6, 1e8])
@pytest.mark.parametrize("moves", [0, 2])
def test_inputs_that_stand_still_can_be_fitted(mean: float, moves: int) -> None:
    """What a sum of squares and a mean leave of their deviations is rounding, of any sign; only those that move are fitted."""
    chance = torch.Generator().manual_seed(0)
    for _ in range(20):
        u, r = (torch.randn(1, 60, size, generator=chance, dtype=torch.float64) for size in (6, 3))
        u[:, :, moves:] = mean * torch.rand(6 - moves, generator=chance, dtype=torch.float64)
        r += u[:, :, :2] @ torch.ones(2, 3, dtype=torch.float64) if moves else 5
        train, held = Sums.none(u, r), Sums.none(u, r)
        train.add(u[:, :40], r[:, :40])
        held.add(u[:, 40:], r[:, 40:])
        change = fitted(train, held, torch.ones(1, 6, 3).bool(), True)
        assert not change[:, moves:-1].any() and change[:, -1].any()
        left = torch.cat([u, torch.ones(1, 60, 1).double()], -1) @ change - r
        assert float(left.square().sum()) < 0.6 * float(r.square().sum())


@pytest.mark.parametrize("name", ["linear", "batch norm"])
def test_however_the_data_is_cut_into_batches(name: str) -> None:
    """Of batches of one, every fifth is held out."""
    model, _, x = made(name)
    plan = planned(model, x)
    single = [(one, torch.zeros(1)) for one in x.split(1)]
    repaired = sc.shrink(with_values(model, least_squares(model, plan, single)), plan)
    assert error(repaired, model, x) < 0.9 * error(sc.shrink(model, plan), model, x)


IN_PLACE: dict[str, Callable[[Tensor], object]] = {
    "relu_": lambda y: y.relu_(),
    "silu": lambda y: F.silu(y, inplace=True),
    "mul_": lambda y: y.mul_(y.mean((2, 3), keepdim=True)),
    "clamp_": lambda y: y.clamp_(-0.2, 0.2),
    "of a part": lambda y: y[:, :3].mul_(0.1),
    "written into": lambda y: y.__setitem__(slice(0, None, 2), 0),
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_what_is_done_in_place_in_front_of_a_sum_is_not_undone(name: str) -> None:
    """The same values as of the twin that writes to a copy."""
    torch.manual_seed(0)
    parts = {"a": nn.Conv2d(2, 6, 3, padding=1), "b": nn.Conv2d(6, 6, 3, padding=1), "c": nn.Conv2d(6, 3, 3, padding=1)}

    def net(copied: bool) -> nn.Module:
        def forward(n: nn.Module, x: Tensor) -> Tensor:
            start = n.a(x)
            y = n.b(start.tanh())
            y = y.clone() if copied else y
            IN_PLACE[name](y)
            return n.c(start + y)  # type: ignore[no-any-return]

        return Net(forward, **parts).double().eval()

    x = torch.randn(40, 2, 5, 5, dtype=torch.float64)
    data = [(part, torch.zeros(len(part))) for part in x.split(8)]
    one, other = net(False), net(True)
    structure = sc.weights(one)
    chance = torch.Generator().manual_seed(1)
    plan = sc.select({key: torch.rand(group.shape, generator=chance) for key, group in structure.groups.items()}, structure, 0.5)
    values, expected = least_squares(one, plan, data), least_squares(other, plan, data)
    assert values.keys() == expected.keys()
    for key, value in values.items():
        torch.testing.assert_close(value, expected[key])
    assert error(sc.mask(with_values(one, values), plan), one, x) < error(sc.mask(one, plan), one, x)


@pytest.mark.parametrize("outputs", ["alike", "each", "none"])
def test_systems_are_solved_over_what_each_output_keeps(outputs: str) -> None:
    chance = torch.Generator().manual_seed(0)
    rows = torch.randn(2, 20, 6, generator=chance, dtype=torch.float64)
    a, b = rows.mT @ rows, torch.randn(2, 6, 5, generator=chance, dtype=torch.float64)
    kept = torch.rand(2, 6, 1 if outputs == "alike" else 5, generator=chance).expand(2, 6, 5) < (0 if outputs == "none" else 0.5)
    expected = torch.zeros_like(b)
    for group, output in itertools.product(range(2), range(5)):
        index = kept[group, :, output].nonzero().flatten()
        expected[group, index, output] = torch.linalg.solve(a[group][index][:, index], b[group, index, output])
    torch.testing.assert_close(solved(a, b, kept), expected)
    with mock.patch("secateur.repair.least_squares.SYSTEMS", 1):  # one at a time
        torch.testing.assert_close(solved(a, b, kept), expected)


def test_prune_repairs_by_least_squares() -> None:
    model, data, x = made("batch norm")
    labelled = [(part, torch.arange(len(part)) % 3) for part, _ in data]

    def loss(z: object, y: object) -> Tensor:
        assert isinstance(z, Tensor) and isinstance(y, Tensor)
        return F.cross_entropy(z.mean((2, 3)), y)

    found = {repair: sc.prune(model, x[:2], labelled, loss, amount=0.4, repair=repair) for repair in (None, "statistics", "least-squares")}
    errors = {repair: error(pruned.model, model, x) for repair, pruned in found.items()}
    assert errors["least-squares"] < min(errors["statistics"], errors[None])  # type: ignore[type-var]
    with pytest.raises(BadInput, match="There is no repair 'lsq'"):  # before anything is looked at
        sc.prune(model, x[:2], [], loss, amount=0.4, repair="lsq")
    with pytest.raises(BadInput, match="There is no repair 'lsq'"):
        next(sc.rounds(model, x[:2], [], loss, amount=0.4, repair="lsq"))


@pytest.mark.parametrize("structure", ["weights", "2:4", "1x2", "layers"])
def test_whatever_left_is_made_up_for(structure: str) -> None:
    model, data, x = made("residual" if structure == "layers" else "convolutions")
    if structure == "layers":
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 8), *(Residual() for _ in range(3)), nn.Linear(8, 3)).double().eval()
        x = torch.randn(40, 5, dtype=torch.float64)
        data = [(part, torch.zeros(len(part))) for part in x.split(8)]
    found = structure_of(model, x[:2], structure)
    chance = torch.Generator().manual_seed(1)
    scores = {name: torch.rand(group.shape, generator=chance) for name, group in found.groups.items()}
    plan = sc.select(scores, found) if ":" in structure else sc.select(scores, found, 0.5)
    values = least_squares(model, plan, data)
    repaired = sc.shrink(with_values(model, values), plan)
    assert error(repaired, model, x) < 0.9 * error(sc.shrink(model, plan), model, x)
    for name, kept in masks(plan).items():
        assert not values.get(name, torch.zeros(kept.shape))[~kept].any()


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(self.a(x).tanh())


