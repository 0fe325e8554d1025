"""What flows through weights, against one backward pass a sample and weight by weight."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cases import CASES, Case
from secateur import tree
from secateur.errors import BadInput, BadLoss
from secateur.flows import gates, inputs, sums
from secateur.structure import Structure, channels, layers
from secateur.structure.rules import flat
from secateur.task import Task, arguments
from secateur.tree import Scores, Tree

UNFIT = {"in place": "modified by an inplace operation", "indexed": "out of bounds"}  # no derivative; exchanges samples
EVERY = pytest.mark.parametrize("case", [case for case in CASES if case.name not in UNFIT], ids=str)


def loss(outputs: object, targets: object) -> Tensor:
    """One a sample, of all outputs that are floating-point: smooth, and without symmetry."""
    parts = [value.flatten(1) for value in flat(outputs) if isinstance(value, Tensor) and value.requires_grad]
    return sum(((part - torch.linspace(-1, 1, part.shape[1], dtype=part.dtype)).square().mean(1) + part.sin().mean(1)) for part in parts)  # type: ignore[return-value]


def task_of(case: Case) -> Task:
    x = case.inputs()
    batch = x if isinstance(x, dict) else (x, torch.zeros(len(next(v for v in flat(x) if isinstance(v, Tensor)))))
    return Task(case.model(), [batch], loss)


def gradients_of(task: Task) -> list[list[Tree]]:
    """One backward pass a sample through the graph of the whole batch: per batch, per sample, dL_s/dw."""
    found = []
    for x, _ in task.batches():
        weights = {name: value.requires_grad_() for name, value in task.parameters().items()}
        losses = loss(torch.func.functional_call(task.model, weights, *arguments(x)), None)
        found.append([
            dict(zip(weights, torch.autograd.grad(one, [*weights.values()], retain_graph=True, allow_unused=True, materialize_grads=True)))
            for one in losses
        ])  # fmt: skip
    return found


def oracle(task: Task, structure: Structure) -> list[Scores]:
    w = task.parameters()
    batches = [[structure.reduce(tree.mul(w, gradients)) for gradients in batch] for batch in gradients_of(task)]
    return [{name: torch.stack([scores[name] for scores in batch]) for name in structure.groups} for batch in batches]


@EVERY
def test_gates_of_channels_are_those_of_one_backward_a_sample(case: Case) -> None:
    task = task_of(case)
    structure = channels(task.model, case.inputs())
    torch.testing.assert_close(list(gates(task, structure)), oracle(task, structure))


@pytest.mark.parametrize("name", UNFIT)
def test_models_that_have_no_gradient_of_a_sample_are_refused(name: str) -> None:
    task = task_of(next(case for case in CASES if case.name == name))
    with pytest.raises((BadInput, BadLoss), match=UNFIT[name]):
        list(gates(task, channels(task.model, task.data[0][0])))


@EVERY
def test_gathered_lines_are_what_reduce_gives(case: Case) -> None:
    structure = channels(case.model(), case.inputs())
    values = {name: torch.randn(3, *structure.shapes[name], dtype=torch.float64) for name in structure.numel}
    lines = {
        (name, dim): value.sum([d for d in range(1, value.dim()) if d != dim + 1]) if value.dim() > 2 else value
        for name, value in values.items()
        for dim in range(value.dim() - 1)
    }
    gathered = structure.gather(lines)
    for number in range(3):
        one = structure.reduce({name: value[number] for name, value in values.items()})
        torch.testing.assert_close({name: value[number] for name, value in gathered.items()}, one)
    torch.testing.assert_close(structure.gather({line: value[0] for line, value in lines.items()}), tree.apply(lambda v: v[0], gathered))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attention, self.out = nn.LayerNorm(8), nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return x + self.out(self.attention(y, y, y, need_weights=False)[0])


def test_gates_of_layers_are_those_of_one_backward_a_sample() -> None:
    """nn.MultiheadAttention puts samples along the second axis, and then merges them with positions; as many positions as samples."""
    torch.manual_seed(0)
    model = nn.Sequential(*(Block() for _ in range(3)), nn.Linear(8, 2)).double()
    x = torch.randn(4, 4, 8, dtype=torch.float64)
    task, structure = Task(model, [(x, torch.zeros(4))], loss), layers(model, x)
    assert structure.groups["layers"].size == 3
    torch.testing.assert_close(list(gates(task, structure)), oracle(task, structure))


@EVERY
@pytest.mark.parametrize("power", [1, 2])
def test_powers_of_every_samples_gradient_are_those_of_one_backward_a_sample(case: Case, power: int) -> None:
    task = task_of(case)
    for found, gradients in zip(sums(task, set(task.parameters()), power), gradients_of(task)):
        expected = {name: torch.stack([each[name].abs() ** power for each in gradients]).sum(0) for name in found}
        torch.testing.assert_close(found, expected)


class Twins(nn.Module):
    """One layer that reads two sequences, of their own lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.layer(a).mean(1) - self.layer(b).mean(1)


@pytest.mark.parametrize("shapes", [((4, 5, 3), (4, 5, 3)), ((4, 5, 3), (4, 7, 3)), ((4, 5, 3), (2, 7, 3))])
def test_what_a_weight_reads_in_several_calls_is_seen_as_one(shapes: tuple[tuple[int, ...], ...]) -> None:
    a, b = (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed, shape in enumerate(shapes))
    model = Twins() if len(a) == len(b) else Uneven()
    task = Task(model, [((a, b), torch.zeros(len(a)))], lambda out, y: out.sum())
    (lines,) = inputs(task, lambda x: x.movedim(1, 0).flatten(1).square().sum(1))
    expected = torch.cat([a.reshape(-1, 3), b.reshape(-1, 3)]).square().sum(0)
    torch.testing.assert_close(lines["layer.weight", 1], expected)


class Uneven(Twins):
    """The second has fewer samples."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.layer(a).mean((0, 1)) - self.layer(b).mean((0, 1))
