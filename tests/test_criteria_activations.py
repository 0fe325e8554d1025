"""criteria/activations.py, against what hooks and loops say."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cases import Net, conv
from secateur.criteria.activations import apoz, hrank, mean_activation, wanda
from secateur.errors import BadInput
from secateur.structure import channels, weights
from secateur.task import Task
from test_criteria import KINDS


@pytest.fixture(autouse=True)
def the_same_chance() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def convolutions() -> tuple[nn.Sequential, Tensor, Tensor]:
    """A net of two convolutions, an input, and what the second one reads."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(conv(2, 4), nn.ReLU(), conv(4, 3)).double()
        x = torch.randn(5, 2, 6, 6, dtype=torch.float64)
    return model, x, model[:2](x).detach()


def task_of(model: nn.Module, x: Tensor) -> Task:
    return Task(model, [(x, x)], F.mse_loss)


def test_wanda_is_the_weight_times_the_norm_of_its_input() -> None:
    model, x, read = convolutions()
    (scores,) = wanda(task_of(model, x), weights(model))
    for index, value in ((0, x), (2, read)):
        norm = value.square().sum((0, 2, 3)).sqrt()
        torch.testing.assert_close(scores[f"{index}.weight"], model[index].weight.detach().abs() * norm[None, :, None, None])
    (units,) = wanda(task_of(model, x), channels(model, x))
    torch.testing.assert_close(units["0"], scores["0.weight"].sum((1, 2, 3)) + scores["2.weight"].sum((0, 2, 3)))


def test_wanda_of_a_depthwise_convolution_reads_its_own_channel() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(conv(3, 6, groups=3), nn.ReLU(), conv(6, 2)).double()
        x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    (scores,) = wanda(task_of(model, x), weights(model))
    norm = x.square().sum((0, 2, 3)).sqrt().repeat_interleave(2)
    torch.testing.assert_close(scores["0.weight"], model[0].weight.detach().abs() * norm[:, None, None, None])


def test_mean_activation_and_zeros_are_those_of_what_is_read() -> None:
    model, x, read = convolutions()
    structure = channels(model, x)
    torch.testing.assert_close(next(mean_activation(task_of(model, x), structure))["0"], read.mean((0, 2, 3)))
    torch.testing.assert_close(next(apoz(task_of(model, x), structure))["0"], 1 - (read == 0).double().mean((0, 2, 3)))


def test_a_unit_that_several_weights_read_has_the_mean_over_them() -> None:
    model = Net(lambda n, x: n.b(n.a(x)) + n.c(n.a(x).relu()), a=nn.Linear(3, 4), b=nn.Linear(4, 2), c=nn.Linear(4, 2)).double()
    x = torch.randn(6, 3, dtype=torch.float64)
    (scores,) = mean_activation(task_of(model, x), channels(model, x))
    a = model.a(x).detach()
    torch.testing.assert_close(scores["a"], (a.abs().mean(0) + a.relu().mean(0)) / 2)


def test_hrank_is_the_mean_rank_of_the_maps() -> None:
    model, x, read = convolutions()
    with torch.no_grad():
        model[0].weight[1].zero_()
        model[0].bias[1] = 2.0  # the same number everywhere: rank 1
        model[0].weight[2].zero_()
        model[0].bias[2] = -1.0  # never on: rank 0
        read = model[:2](x)
    (scores,) = hrank(task_of(model, x), channels(model, x), threshold=1e-2)
    expected = []
    for channel in range(4):
        values = [torch.linalg.svdvals(sample[channel]) for sample in read]
        expected.append(sum(int((s > 1e-2 * s[0]).sum()) for s in values) / len(values))
    assert scores["0"].tolist() == pytest.approx(expected) and expected[1:3] == [1, 0]
    (strict,) = hrank(task_of(model, x), channels(model, x), threshold=0.5)
    assert strict["0"][0] < scores["0"][0]


def test_the_map_of_a_sequence_is_that_of_the_batch_and_values_alone_have_rank_one() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    with torch.no_grad():
        model[0].weight[1].zero_()
        model[0].bias[1] = -1.0
    x = torch.randn(5, 7, 3, dtype=torch.float64)
    read = model[:2](x).detach()
    (scores,) = hrank(task_of(model, x), channels(model, x))
    assert scores["0"].tolist() == [int(torch.linalg.matrix_rank(read[:, :, c], rtol=1e-2)) for c in range(4)]
    (flat,) = hrank(task_of(model, x[:, 0]), channels(model, x[:, 0]))
    assert flat["0"].tolist() == [float(read[:, 0, c].any()) for c in range(4)] and flat["0"][1] == 0 < flat["0"].sum()


def test_a_threshold_is_a_fraction() -> None:
    model, x, _ = convolutions()
    with pytest.raises(BadInput, match=r"in 0..1, but it is 1.5"):
        list(hrank(task_of(model, x), channels(model, x), threshold=1.5))


def test_a_weight_whose_input_is_not_seen_is_said() -> None:
    model, data = KINDS["hidden states"].model(), KINDS["hidden states"].data()
    with pytest.raises(BadInput, match=r"wanda looks at .* of some units of rnn.weight_ih_l0 none was seen.*Choose taylor"):
        list(wanda(Task(model, data, F.cross_entropy), weights(model)))
