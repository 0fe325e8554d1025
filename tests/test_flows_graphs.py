"""A model as an exported graph has the same flows as the model itself, by the same rules: nothing of it is slower."""

# ruff: noqa: E501 (a table reads by its columns)

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur as sc
from cases import CASES, Case, Net, conv, image
from secateur.criteria import CRITERIA
from secateur.flows import Lines, inputs, operator_of, sums
from secateur.flows.gates import per_sample
from secateur.structure import Structure, channels, weights
from secateur.task import Task
from secateur.tree import Tree
from test_flows import task_of
from test_flows_watch import spied

OWN = [
    Case("self-attention", lambda: Net(lambda n, x: n.b(n.norm(n.attend(x, x, x, need_weights=False)[0] + x)), attend=nn.MultiheadAttention(8, 2, batch_first=True), norm=nn.LayerNorm(8), b=nn.Linear(8, 2)), lambda: torch.randn(3, 5, 8), {}),
    Case("scales of many kinds", lambda: Net(lambda n, x: n.b(n.rms(x) * n.rms.weight / n.layer.weight + n.layer.bias) @ n.b.weight, rms=nn.RMSNorm(8), layer=nn.LayerNorm(8), b=nn.Linear(8, 2)), lambda: torch.randn(3, 5, 8), {}),
    Case("padded alike", lambda: nn.Sequential(nn.Conv2d(3, 6, 3, padding="same"), nn.BatchNorm2d(6), nn.ReLU(), conv(6, 2)), image(), {}),
]  # fmt: skip
NAMES = ("conv", "conv1d", "transposed in groups", "grouped", "depthwise", "depth multiplier", "group norm", "layer norm", "instance norm", "lstm", "tied", "called twice", "bare parameters", "keyword arguments")  # fmt: skip
EVERY = pytest.mark.parametrize("case", [*OWN, *(case for case in CASES if case.name in NAMES)], ids=str)


def both(case: Case) -> tuple[Task, Task]:
    task = task_of(case)
    return task, Task(sc.as_graph(task.model, case.inputs()), task.data, task.loss)


def norms(x: Tensor) -> Tensor:
    return x.transpose(0, 1).flatten(1).norm(dim=1)


def lines(task: Task) -> list[Lines]:
    wanted = {(name, dim) for name, value in task.parameters().items() for dim in range(min(value.dim(), 2)) if "embed" not in name}
    return list(per_sample(task, frozenset(wanted)))


def squares(task: Task) -> list[Tree]:
    return list(sums(task, set(task.parameters())))


@EVERY
@pytest.mark.parametrize(("made", "module"), [(lines, "secateur.flows.gates"), (squares, "secateur.flows.elements")])
def test_graphs_give_what_the_model_gives_and_no_parameter_is_slower(case: Case, made: Callable[[Task], object], module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, graph = both(case)
    seen = spied(monkeypatch, module)
    expected = made(model)
    slow = set().union(*seen)
    seen.clear()
    torch.testing.assert_close(made(graph), expected)
    assert set().union(*seen) <= slow


@EVERY
def test_weights_read_the_same_in_a_graph(case: Case) -> None:
    model, graph = both(case)
    torch.testing.assert_close(list(inputs(graph, norms)), list(inputs(model, norms)))


def convolutions() -> nn.Module:
    torch.manual_seed(0)
    blocks = [conv(2, 4), nn.BatchNorm2d(4), nn.ReLU(), conv(4, 3), nn.BatchNorm2d(3), nn.ReLU()]
    model = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d((2, 1)), nn.Flatten(), nn.Linear(6, 3)).double().eval()
    for number in (1, 4):
        model[number].weight.data.uniform_(0.3, 1.5)
    return model


UNITS = ("wanda", "mean_activation", "apoz", "hrank", "kfac", "bn_scale", "fisher_sample", "taylor_sample", "fisher_diagonal", "gradient_activation")
CONNECTIONS = ("wanda", "kfac", "fisher_sample", "taylor_sample", "fisher_diagonal")


@pytest.mark.parametrize(("name", "structure"), [*((name, channels) for name in UNITS), *((name, weights) for name in CONNECTIONS)])
def test_criteria_serve_a_graph(name: str, structure: Callable[[nn.Module, Tensor], Structure]) -> None:
    model, x, y = convolutions(), torch.randn(6, 2, 4, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2])
    data = [(x, y)]
    one, other = (
        [[*scores.values()] for scores in CRITERIA[name](Task(each, data, F.cross_entropy), structure(each, x))]
        for each in (model, sc.as_graph(model, x))
    )
    torch.testing.assert_close(one, other)


def test_operators_of_others_are_not_taken_for_ours() -> None:
    assert operator_of(torch.ops.aten.linear.default) == operator_of(F.linear) == "linear"
    assert operator_of(torch.ops.prims.mul.default) == ""
