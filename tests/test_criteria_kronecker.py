"""criteria/kronecker.py, against the Kronecker product itself."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cases import Net, conv
from secateur.criteria import Criterion
from secateur.criteria.kronecker import kfac
from secateur.criteria.samples import fisher_diagonal, fisher_sample
from secateur.errors import BadInput
from secateur.structure import blocks, channels, weights
from secateur.task import Task
from test_criteria import KINDS
from toy import batches, mlp


@pytest.fixture(autouse=True)
def the_same_chance() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def quadratic(masked: Tensor, a: Tensor, g: Tensor) -> float:
    """w' (G x A) w, with the whole matrix."""
    return float(masked.reshape(-1) @ torch.kron(g, a) @ masked.reshape(-1))


@pytest.fixture
def measured() -> tuple[Task, list[tuple[Tensor, Tensor, Tensor]]]:
    """A net of two layers, and weight (with bias), A and G of each."""
    model = mlp(4, 5, 3)
    (batch,) = data = batches(1, 8, 4, 3)
    hidden = model[0](batch[0])
    out = model[2](torch.tanh(hidden))
    loss = F.cross_entropy(out, batch[1], reduction="sum")
    ones = torch.ones(8, 1, dtype=torch.float64)
    layers = []
    for layer, x, y in ((model[0], batch[0], hidden), (model[2], torch.tanh(hidden), out)):
        (g,) = torch.autograd.grad(loss, y, retain_graph=True)
        a = torch.cat([x.detach(), ones], 1)
        layers.append((torch.cat([layer.weight, layer.bias[:, None]], 1).detach(), a.T @ a / 8, g.T @ g / 8))
    return Task(model, data, F.cross_entropy), layers


def test_kfac_of_a_unit_is_the_quadratic_form_of_the_kronecker_product(measured: tuple[Task, list[tuple[Tensor, Tensor, Tensor]]]) -> None:
    task, ((w, a, g), (v, b, h)) = measured
    (scores,) = kfac(task, channels(task.model, task.data[0][0]))
    for unit in range(5):
        row, column = torch.zeros_like(w), torch.zeros_like(v)
        row[unit], column[:, unit] = w[unit], v[:, unit]
        assert scores["0"][unit].item() == pytest.approx((quadratic(row, a, g) + quadratic(column, b, h)) / 2)


def test_kfac_of_a_connection_is_the_diagonal(measured: tuple[Task, list[tuple[Tensor, Tensor, Tensor]]]) -> None:
    task, layers = measured
    (scores,) = kfac(task, weights(task.model))
    for name, (w, a, g) in zip(("0.weight", "2.weight"), layers):
        torch.testing.assert_close(scores[name], (w.square() * torch.outer(g.diag(), a.diag()) / 2)[:, :-1])


@pytest.mark.parametrize("shape", [(1, 4), (2, 2), (3, 3), (5, 1)])
def test_kfac_of_a_block_is_the_quadratic_form_of_its_connections(
    shape: tuple[int, int], measured: tuple[Task, list[tuple[Tensor, Tensor, Tensor]]]
) -> None:
    task, layers = measured
    (scores,) = kfac(task, blocks(task.model, shape))
    for name, (w, a, g) in zip(("0.weight", "2.weight"), layers):
        for row, column in torch.cartesian_prod(*map(torch.arange, scores[name].shape)).tolist():
            own = torch.zeros_like(w)
            rows = slice(row * shape[0], (row + 1) * shape[0])
            columns = slice(column * shape[1], min((column + 1) * shape[1], w.shape[1] - 1))  # the last is the bias
            own[rows, columns] = w[rows, columns]
            assert scores[name][row, column].item() == pytest.approx(quadratic(own, a, g) / 2)


@pytest.mark.parametrize("groups", [1, 2])
def test_kfac_of_blocks_of_a_convolution_is_that_of_its_patches(groups: int) -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, groups=groups, bias=False), nn.Flatten(), nn.Linear(64, 3)).double()
    x, target = torch.randn(4, 4, 4, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    made = model[0](x)
    (g,) = torch.autograd.grad(F.cross_entropy(model[1:](made), target, reduction="sum"), made)
    b = g.flatten(2).transpose(1, 2).flatten(0, 1)
    w, g = model[0].weight.detach(), b.T @ b / 4 / 16
    (scores,) = kfac(Task(model, [(x, target)], F.cross_entropy), blocks(model, (2, 2)))
    per = w.shape[1]
    for unit in torch.cartesian_prod(*map(torch.arange, scores["0.weight"].shape)).tolist():
        own = torch.zeros_like(w)
        place = (slice(2 * unit[0], 2 * unit[0] + 2), slice(2 * unit[1], 2 * unit[1] + 2), *unit[2:])
        own[place] = w[place]
        group = 2 * unit[0] // (4 // groups)
        patches = F.unfold(x[:, group * per : (group + 1) * per], 3, padding=1).transpose(1, 2).flatten(0, 1)
        expected = quadratic(own.flatten(1), patches.T @ patches / 4, g) / 2
        assert scores["0.weight"][tuple(unit)].item() == pytest.approx(expected)


def test_blocks_across_the_groups_of_a_convolution_are_refused() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), nn.Flatten(), nn.Linear(16, 3)).double()
    data = [(torch.randn(2, 4, 4, 4, dtype=torch.float64), torch.tensor([0, 1]))]
    with pytest.raises(BadInput, match=r"A block of 0\.weight lies across groups"):
        list(kfac(Task(model, data, F.cross_entropy), blocks(model, (4, 1))))


def test_kfac_of_a_convolution_is_that_of_its_patches() -> None:
    model = nn.Sequential(conv(2, 3, bias=False), nn.Flatten(), nn.Linear(3 * 16, 3)).double()
    x, target = torch.randn(4, 2, 4, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    made = model[0](x)
    loss = F.cross_entropy(model[1:](made), target, reduction="sum")
    patches = F.unfold(x, 3, padding=1).transpose(1, 2)  # (samples, positions, features)
    (g,) = torch.autograd.grad(loss, made)
    b = g.flatten(2).transpose(1, 2).flatten(0, 1)
    a, g = patches.flatten(0, 1).T @ patches.flatten(0, 1) / 4, b.T @ b / 4 / 16
    w = model[0].weight.detach().flatten(1)
    (scores,) = kfac(Task(model, [(x, target)], F.cross_entropy), weights(model))
    torch.testing.assert_close(scores["0.weight"].flatten(1), w.square() * torch.outer(g.diag(), a.diag()) / 2)
    # of a unit, the part in the convolution: all else of it is in the linear layer
    (units,) = kfac(Task(model, [(x, target)], F.cross_entropy), channels(model, x))
    read = made.detach().flatten(1)
    (h,) = torch.autograd.grad(F.cross_entropy(out := model[2](read), target, reduction="sum"), out)
    v = model[2].weight.detach()
    for unit in range(3):
        row, columns = torch.zeros_like(w), torch.zeros_like(v)
        row[unit], columns[:, unit * 16 : unit * 16 + 16] = w[unit], v[:, unit * 16 : unit * 16 + 16]
        expected = quadratic(row, a, g) + quadratic(columns, read.T @ read / 4, h.T @ h / 4)
        assert units["0"][unit].item() == pytest.approx(expected / 2)


def test_an_embedding_reads_ones_and_zeros() -> None:
    model = Net(lambda n, x: n.out(n.embed(x).mean(1)), embed=nn.Embedding(5, 4), out=nn.Linear(4, 3)).double()
    tokens = torch.tensor([[0, 1], [1, 1], [3, 0]])
    task = Task(model, [(tokens, torch.tensor([0, 1, 2]))], F.cross_entropy)
    (scores,) = kfac(task, weights(model))
    made = model.embed(tokens)
    (g,) = torch.autograd.grad(F.cross_entropy(model.out(made.mean(1)), task.data[0][1], reduction="sum"), made)
    often = torch.bincount(tokens.flatten(), minlength=5).double() / 3
    expected = model.embed.weight.detach().square() * torch.outer(often, g.square().mean((0, 1))) / 2
    torch.testing.assert_close(scores["embed.weight"], expected)


def test_a_recurrent_weight_is_refused_by_name() -> None:
    model, data = KINDS["hidden states"].model(), KINDS["hidden states"].data()
    with pytest.raises(BadInput, match=r"of rnn.weight_hh_l0 it does not .*Choose fisher"):
        list(kfac(Task(model, data, F.cross_entropy), weights(model)))


class Casting(nn.Module):
    """Runs its layers in bfloat16 by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(conv(3, 4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 25, 3))

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.layers(x)


@pytest.mark.parametrize("criterion", [kfac, fisher_diagonal, fisher_sample])
def test_a_model_that_casts_by_itself_is_measured(criterion: Criterion) -> None:
    """Within the rounding of bfloat16, as the same model without."""
    torch.manual_seed(0)
    model, x = Casting(), torch.randn(6, 3, 5, 5)
    data = [(x, torch.arange(6) % 3)]
    (found,) = criterion(Task(model, data, lambda z, y: F.cross_entropy(z.float(), y)), weights(model))
    (exact,) = criterion(Task(model.layers, data, F.cross_entropy), weights(model.layers))
    for name, value in exact.items():
        assert torch.corrcoef(torch.stack([found[f"layers.{name}"].flatten(), value.flatten()]))[0, 1] > 0.99, name
