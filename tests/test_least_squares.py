"""repair/least_squares.py and repair/reading.py: weights that read removed units, fitted to what they made."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur as sc
from cases import Net
from secateur.api import structure_of
from secateur.errors import BadInput
from secateur.repair import least_squares
from secateur.repair.least_squares import HELD_BY_A_RUN, Sums, fitted, solved
from secateur.surgery import masks, with_values


def conv(a: int, b: int, **words: object) -> nn.Module:
    return nn.Conv2d(a, b, 3, padding=1, **words)  # type: ignore[arg-type]


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)), (5,)),
    "without bias": (lambda: nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3, bias=False)), (5,)),
    "sequences": (lambda: nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)), (4, 5)),
    "matrix": (lambda: Net(lambda n, x: n.a(x).tanh() @ n.w, a=nn.Linear(5, 8), w=nn.Parameter(torch.randn(8, 3))), (5,)),
    "convolutions": (lambda: nn.Sequential(conv(2, 8), nn.ReLU(), conv(8, 3)), (2, 6, 6)),
    "strides": (lambda: nn.Sequential(conv(2, 8), nn.ReLU(), conv(8, 6, stride=2), nn.ReLU(), conv(6, 3, dilation=2)), (2, 9, 8)),
    "batch norm": (
        lambda: nn.Sequential(conv(2, 8), nn.ReLU(), conv(8, 6, bias=False), nn.BatchNorm2d(6), nn.ReLU(), conv(6, 3)), (2, 6, 6),
    ),
    "transposed": (lambda: nn.Sequential(conv(2, 8), nn.ReLU(), nn.ConvTranspose2d(8, 3, 3, 2, 1, 1)), (2, 6, 6)),
    "flattened": (lambda: nn.Sequential(conv(2, 8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 3)), (2, 4, 4)),
    "residual": (lambda: Net(lambda n, x: n.c(n.a(x) + n.b(n.a(x).relu()).tanh()), a=conv(2, 6), b=conv(6, 6), c=conv(6, 3)), (2, 5, 5)),
}  # fmt: skip


def made(name: str, samples: int = 40) -> tuple[nn.Module, list[tuple[Tensor, Tensor]], Tensor]:
    torch.manual_seed(0)
    build, shape = NETS[name]
    model = build().double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    x = torch.randn(samples, *shape, dtype=torch.float64)
    return model, [(part, torch.zeros(len(part))) for part in x.split(8)], x


def planned(model: nn.Module, x: Tensor, amount: float = 0.4) -> sc.Plan:
    structure = sc.channels(model, x[:2])
    chance = torch.Generator().manual_seed(1)
    scores = {name: torch.rand(group.shape, generator=chance) for name, group in structure.groups.items()}
    return sc.select(scores, structure, amount)


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
    for share in (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0):
        rows = torch.cat([centred, (share * mean).sqrt() * torch.eye(len(kept), dtype=torch.float64)])
        found.append(w0 + torch.linalg.lstsq(rows, torch.cat([deviations - centred @ w0.T, none])).solution.T)
    assert any(torch.allclose(values["2.weight"][:, kept], w) for w in found)
    w = values["2.weight"][:, kept]
    torch.testing.assert_close(values["2.bias"], y.mean(0) - w @ u.mean(0))
    gone = torch.ones(8, dtype=torch.bool).index_fill(0, kept, False)
    assert not values["2.weight"][:, gone].any()


@pytest.mark.parametrize("rows", [1, 3, 50])
def test_nothing_is_changed_for_the_worse(rows: int) -> None:
    """Dead inputs, fewer rows than inputs, targets of pure noise: the held-out error is at most that of the weight as it is."""
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


def test_sums_of_half_precision_are_not_taken_in_it() -> None:
    u, y = (torch.randn(1, 500, size, generator=torch.Generator().manual_seed(0)).half() + 8 for size in (4, 3))
    sums, expected = Sums.none(u, y), Sums.none(u, y)
    sums.add(u, y)
    expected.add(u.double(), y.double())
    torch.testing.assert_close(sums.gram, expected.gram, rtol=1e-6, atol=0)
    torch.testing.assert_close(sums.cross, expected.cross, rtol=1e-6, atol=0)


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
    with pytest.raises(BadInput, match="There is no repair 'lsq'"):
        sc.prune(model, x[:2], labelled, loss, amount=0.4, repair="lsq")


def test_of_much_data_only_the_first_batches_are_looked_at() -> None:
    model, data, x = made("convolutions")
    plan, asked = planned(model, x), list[int]()

    class Endless:
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            for number in itertools.count():
                asked.append(number)
                yield data[number % len(data)]

    large = 8 * 8 * (8 + 3) * 36 * HELD_BY_A_RUN  # of a batch of eight images: eight channels are read, three made
    values = least_squares(model, plan, Endless(), memory=3 * large)
    assert max(asked) == 2
    for name, value in least_squares(model, plan, data[:3]).items():
        torch.testing.assert_close(values[name], value, rtol=0, atol=0)


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


def test_a_model_that_goes_another_way_is_refused() -> None:
    model = Net(lambda n, x: n.c(n.b(x) if x.sum() > 0 else n.a(x)), a=nn.Linear(5, 8), b=nn.Linear(5, 8), c=nn.Linear(8, 3)).double()
    plan = sc.select({name: torch.rand(group.shape) for name, group in sc.weights(model).groups.items()}, sc.weights(model), 0.5)
    with pytest.raises(BadInput, match="in another order for some inputs"):
        least_squares(model, plan, [(sign * torch.ones(4, 5).double(), torch.zeros(4)) for sign in (1, -1)])


def test_what_is_not_finite_is_said() -> None:
    model, data, x = made("linear")
    plan = planned(model, x)
    data[1][0][0, 0] = float("inf")
    with pytest.raises(BadInput, match=r"What 0\.weight reads or makes is not finite"):
        least_squares(model, plan, data)
