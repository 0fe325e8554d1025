"""criteria/layerwise.py: Optimal Brain Surgeon layer by layer, against the loss of a layer that is really solved anew."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.criteria.layerwise import exact_obs
from secateur.errors import BadInput

DAMPING = 1e-9


def mean_square(outputs: object, targets: object) -> Tensor:
    """Its gradient is the difference, so that of random targets all outputs are felt."""
    assert isinstance(outputs, Tensor) and isinstance(targets, Tensor)
    return (outputs - targets).square().flatten(1).sum(1).mean() / 2


def solved(u: Tensor, y: Tensor, kept: Tensor) -> float:
    """The squares that are left of one output when only these inputs are read, all of them fitted."""
    w = torch.linalg.lstsq(u[:, kept], y).solution if kept.any() else None
    return float((y - (0 if w is None else u[:, kept] @ w)).square().sum())


def linear(inputs: int = 5, outputs: int = 3, samples: int = 40) -> tuple[nn.Module, list[tuple[Tensor, Tensor]], Tensor]:
    torch.manual_seed(0)
    model = nn.Linear(inputs, outputs).double()
    x = torch.randn(samples, inputs, dtype=torch.float64) @ torch.randn(inputs, inputs, dtype=torch.float64)
    targets = model(x).detach() + torch.randn(samples, outputs, dtype=torch.float64) * torch.tensor([1.0, 2.0, 0.1][:outputs])
    return model, list(zip(x.split(16), targets.split(16))), x


def test_the_score_of_a_connection_is_the_measured_increase_of_the_squares() -> None:
    model, data, x = linear()
    (scores,) = exact_obs(sc.Task(model, data, mean_square), sc.weights(model), DAMPING)
    targets = torch.cat([y for _, y in data])
    felt = (model(x) - targets).detach().square().mean(0)
    for output in range(3):
        y = x @ model.weight[output].detach()
        kept, squares, worst = torch.ones(5, dtype=torch.bool), 0.0, 0.0
        for _ in range(5):
            tried = {}
            for at in kept.nonzero().flatten().tolist():
                without = kept.clone()
                without[at] = False
                tried[at] = solved(x, y, without)
            at = min(tried, key=tried.__getitem__)
            worst = max(worst, tried[at] - squares)
            assert float(scores["weight"][output, at]) == pytest.approx(float(felt[output]) * worst / len(x) / 2, rel=1e-6)
            kept[at], squares = False, tried[at]


@pytest.mark.parametrize("net", ["linear", "convolutions", "two readers"])
def test_the_score_of_a_unit_is_the_measured_increase_of_the_squares(net: str) -> None:
    torch.manual_seed(1)
    model: nn.Module
    if net == "linear":
        model, x = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)), torch.randn(40, 4)
    elif net == "convolutions":
        model, x = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Conv2d(4, 3, 3, bias=False)), torch.randn(12, 2, 7, 7)
    else:
        model, x = Readers(), torch.randn(40, 4)
    model, x = model.double(), x.double()
    targets = model(x).detach() + torch.randn_like(model(x))
    structure = sc.channels(model, x[:2])
    (scores,) = exact_obs(sc.Task(model, [(x, targets)], mean_square), structure, DAMPING)
    (name,) = structure.groups
    layers = read(model, x, targets)
    size = structure.groups[name].size
    kept, squares, worst = torch.ones(size, dtype=torch.bool), [0.0] * len(layers), 0.0
    for _ in range(size):
        tried = {}
        for at in kept.nonzero().flatten().tolist():
            without = kept.clone()
            without[at] = False
            tried[at] = [
                sum(float(c) * solved(u, y, without.repeat(u.shape[1] // size)) for c, y in zip(felt, ys.T)) for u, ys, felt in layers
            ]
        at = min(tried, key=lambda one: sum(tried[one]))
        worst = max(worst, sum(tried[at]) - sum(squares))
        assert float(scores[name][at]) == pytest.approx(worst / len(x) / 2, rel=1e-6)
        kept[at], squares = False, tried[at]


class Readers(nn.Module):
    """A hidden layer that two weights read."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 2), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.a(x).tanh()
        return torch.cat([self.b(hidden), self.c(hidden)], 1)


def read(model: nn.Module, x: Tensor, targets: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Of every weight that reads the units: the rows it reads (places first, units behind), what it makes of them, what is felt."""
    felt = (model(x) - targets).detach()
    if isinstance(model, Readers):
        hidden = model.a(x).tanh().detach()
        parts = felt.split([2, 3], 1)
        return [(hidden, hidden @ one.weight.detach().T, part.square().mean(0)) for one, part in zip((model.b, model.c), parts)]
    assert isinstance(model, nn.Sequential)
    hidden, last = model[:2](x).detach(), model[2]
    if isinstance(last, nn.Conv2d):
        u = torch.nn.functional.unfold(hidden, 3).view(len(x), 4, 9, -1).permute(0, 3, 2, 1).flatten(0, 1).flatten(1)
        w = last.weight.detach().flatten(2).permute(2, 1, 0).flatten(0, 1)
        return [(u, u @ w, felt.square().mean((0, 2, 3)))]
    assert isinstance(last, nn.Linear)
    return [(hidden, hidden @ last.weight.detach().T, felt.square().mean(0))]


def test_a_copy_of_an_input_costs_nothing_and_both_cost_what_they_are() -> None:
    model, _, x = linear()
    x = torch.cat([x, x[:, :1]], 1)  # the sixth input is the first
    model = nn.Linear(6, 2).double()
    data = [(x, model(x).detach() + torch.randn(len(x), 2).double())]
    (scores,) = exact_obs(sc.Task(model, data, mean_square), sc.weights(model), 1e-7)
    for output, (first, sixth) in itertools.product(range(2), [(0, 5)]):
        row = scores["weight"][output]
        assert min(row[first], row[sixth]) < 1e-4 * row[1:5].min()
        assert max(row[first], row[sixth]) > 1e-2 * row[1:5].min()


def test_what_nothing_is_seen_to_read_is_refused() -> None:
    rnn = nn.GRU(3, 4, batch_first=True).double()
    x = torch.randn(2, 5, 3, dtype=torch.float64)
    with pytest.raises(BadInput, match="exact_obs"):
        list(exact_obs(sc.Task(rnn, [(x, x)], lambda z, y: z[0].square().mean()), sc.weights(rnn)))  # type: ignore[index]
