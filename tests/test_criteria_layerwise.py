"""criteria/layerwise.py: Optimal Brain Surgeon layer by layer, against the loss of a layer that is really solved anew."""

from __future__ import annotations

import copy
import itertools
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.criteria.layerwise import exact_obs
from secateur.criteria.removal import in_order
from secateur.criteria.sweep import swept_runs
from secateur.errors import BadInput

DAMPING = 1e-9


def no_label(outputs: object, targets: object) -> Tensor:
    raise AssertionError("it looks at no label")


def solved(u: Tensor, y: Tensor, kept: Tensor) -> float:
    """The squares that are left of one output when only these inputs are read, all of them fitted."""
    w = torch.linalg.lstsq(u[:, kept], y).solution if kept.any() else None
    return float((y - (0 if w is None else u[:, kept] @ w)).square().sum())


def linear(inputs: int = 5, outputs: int = 3, samples: int = 40) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(samples, inputs, dtype=torch.float64) @ torch.randn(inputs, inputs, dtype=torch.float64)
    return nn.Linear(inputs, outputs).double(), x


def task(model: nn.Module, x: Tensor) -> sc.Task:
    return sc.Task(model, [(part, torch.zeros(len(part))) for part in x.split(16)], no_label)


def test_the_score_of_a_connection_is_the_measured_increase_of_the_squares() -> None:
    model, x = linear()
    (scores,) = exact_obs(task(model, x), sc.weights(model), DAMPING)
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
            assert float(scores["weight"][output, at]) == pytest.approx(worst / len(x) / 2, rel=1e-6)
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
    structure = sc.channels(model, x[:2])
    (scores,) = exact_obs(task(model, x), structure, DAMPING)
    (name,) = structure.groups
    layers = read(model, x)
    size = structure.groups[name].size
    kept, squares, worst = torch.ones(size, dtype=torch.bool), [0.0] * len(layers), 0.0
    for _ in range(size):
        tried = {}
        for at in kept.nonzero().flatten().tolist():
            without = kept.clone()
            without[at] = False
            tried[at] = [sum(solved(u, y, without.repeat(u.shape[1] // size)) for y in ys.T) for u, ys in layers]
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


def read(model: nn.Module, x: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Of every weight that reads the units: the rows it reads (places first, units behind), what it makes of them."""
    if isinstance(model, Readers):
        hidden = model.a(x).tanh().detach()
        return [(hidden, hidden @ one.weight.detach().T) for one in (model.b, model.c)]
    assert isinstance(model, nn.Sequential)
    hidden, last = model[:2](x).detach(), model[2]
    assert isinstance(last, (nn.Conv2d, nn.Linear))
    if isinstance(last, nn.Linear):
        return [(hidden, hidden @ last.weight.detach().T)]
    u = torch.nn.functional.unfold(hidden, 3).view(len(x), 4, 9, -1).permute(0, 3, 2, 1).flatten(0, 1).flatten(1)
    return [(u, u @ last.weight.detach().flatten(2).permute(2, 1, 0).flatten(0, 1))]


def test_a_copy_of_an_input_costs_nothing_and_both_cost_what_they_are() -> None:
    _, x = linear()
    x = torch.cat([x, x[:, :1]], 1)  # the sixth input is the first
    model = nn.Linear(6, 2).double()
    (scores,) = exact_obs(task(model, x), sc.weights(model), 1e-7)
    for output, (first, sixth) in itertools.product(range(2), [(0, 5)]):
        row = scores["weight"][output]
        assert min(row[first], row[sixth]) < 1e-5 * max(row[first], row[sixth])


def test_what_the_outputs_do_not_feel_costs_less() -> None:
    """The last layer doubles one hidden output and takes a tenth of another: c is the mean square of what it multiplies by."""
    _, x = linear()
    model = nn.Sequential(nn.Linear(5, 2), nn.Linear(2, 2, bias=False)).double()
    with torch.no_grad():
        model[0].weight[1] = model[0].weight[0]
        model[1].weight.copy_(torch.tensor([[2.0, 0.0], [0.0, 0.1]]))
    (scores,) = exact_obs(task(model, x), sc.weights(model))
    torch.testing.assert_close(scores["0.weight"][0], 400 * scores["0.weight"][1])


@pytest.mark.parametrize(("kind", "inputs"), [("1x2", 6), ("2x1", 5), ("2x2", 5), ("1:3", 6), ("2:4", 8)])
@pytest.mark.parametrize("layer", ["linear", "convolution", "groups"])
def test_blocks_and_runs_are_taken_out_whole(kind: str, inputs: int, layer: str) -> None:
    """Each score is that of `in_order` over the rows of the weight's matrix; here they are laid out one by one."""
    torch.manual_seed(0)
    groups = 2 if layer == "groups" else 1
    model: nn.Module = nn.Linear(inputs, 4) if layer == "linear" else nn.Conv2d(groups * inputs, groups * 4, (1, 2), groups=groups)
    model, x = model.double(), torch.randn(50, groups * inputs, *(() if layer == "linear" else (2, 3)), dtype=torch.float64)
    high, wide = (1, 1) if ":" in kind else (int(part) for part in kind.split("x"))
    structure = sc.n_of_m(model, *(int(part) for part in kind.split(":"))) if ":" in kind else sc.blocks(model, (high, wide))
    (scores,) = exact_obs(task(model, x), structure)
    flat, weight = x[..., None, None] if layer == "linear" else x, next(iter(model.parameters())).detach()
    weight = weight[..., None, None] if layer == "linear" else weight
    places, found = weight.shape[3], scores["weight"].view(-1, -(-inputs // wide), 1, weight.shape[3])
    for group, bundle in itertools.product(range(groups), range(4 // high)):
        mine = flat[:, group * inputs : (group + 1) * inputs]
        u = torch.stack([mine[..., place : mine.shape[3] - places + 1 + place] for place in range(places)], 1)  # (n, place, input, ...)
        u = torch.nn.functional.pad(u.movedim((1, 2), (-2, -1)), (0, -inputs % wide)).reshape(-1, places * (inputs + -inputs % wide))
        outputs = slice(group * 4 + bundle * high, group * 4 + (bundle + 1) * high)
        w = torch.nn.functional.pad(weight[outputs, :, 0].movedim(2, 0), (0, 0)).movedim(1, 2)  # (place, input, output)
        w = torch.nn.functional.pad(w, (0, 0, 0, -inputs % wide)).flatten(0, 1)
        a = u.T @ u / len(x)
        real = u.any(0)
        a += torch.diag(torch.where(real, 1e-2 * a.diagonal()[real].mean(), 1))
        stay = tuple(int(part) for part in kind.split(":")) if ":" in kind else None
        expected = in_order(w[None], torch.linalg.inv(a)[None], wide, stay)[0] / 2  # type: ignore[arg-type]
        torch.testing.assert_close(found[group * (4 // high) + bundle, :, 0].T.flatten(), expected)


@pytest.mark.parametrize("layer", [nn.Linear(8, 4), nn.Conv2d(8, 6, (1, 2), groups=2)], ids=str)
def test_runs_of_wide_layers_are_swept(layer: nn.Module) -> None:
    """The scores of the weight's matrix, inputs last of a place, by `swept_runs`."""
    torch.manual_seed(0)
    model, plain = copy.deepcopy(layer).double(), isinstance(layer, nn.Linear)
    x = torch.randn(50, 8, *(() if plain else (2, 3)), dtype=torch.float64)
    with mock.patch("secateur.criteria.layerwise.EXACT", 0):
        (scores,) = exact_obs(task(model, x), sc.n_of_m(model, 2, 4))
    weight, groups = model.weight.detach(), 1 if plain else 2  # type: ignore[union-attr]
    rows = x[:, None] if plain else torch.stack([x[..., :2], x[..., 1:]], 1).movedim((2, 1), (-1, -2)).flatten(0, 2)  # (..., place, input)
    for group in range(groups):
        mine = rows[..., group * (8 // groups) : (group + 1) * (8 // groups)].flatten(-2).view(-1, 8)
        a = mine.T @ mine / len(x)
        a += 1e-2 * a.diagonal().mean() * torch.eye(8)
        outputs = slice(group * 3, group * 3 + 3) if groups == 2 else slice(None)
        w = weight[outputs].T if plain else weight[outputs, :, 0].permute(2, 1, 0).reshape(8, 3)
        expected = swept_runs(w[None], torch.linalg.inv(a)[None], 2, 4)[0] / 2
        found = scores["weight"][outputs]
        torch.testing.assert_close(found.T if plain else found[:, :, 0].permute(2, 1, 0).reshape(8, 3), expected)


def test_what_nothing_is_seen_to_read_is_refused() -> None:
    rnn = nn.GRU(3, 4, batch_first=True).double()
    x = torch.randn(2, 5, 3, dtype=torch.float64)
    with pytest.raises(BadInput, match="exact_obs"):
        list(exact_obs(task(rnn, x), sc.weights(rnn)))
