"""A sample's loss is its share of the batch's, times the number of samples: by rules, and without any, as in the graph of the batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from cases import Net
from secateur import tree
from secateur.criteria import CRITERIA
from secateur.errors import BadInput
from secateur.flows import FLOWS, gates, sums
from secateur.structure import Structure, channels, weights
from secateur.structure.rules import flat
from secateur.task import Task, arguments
from secateur.tree import Scores, Tree

X = torch.randn(4, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([[0, 1, 2, 0, 1], [2, 1, 0, -100, -100], [1, -100, -100, -100, -100], [-100] * 5])  # the last has no label at all
CLASSES = torch.tensor([0.1, 1, 10], dtype=torch.float64)


def tagger(net: Net, x: Tensor) -> Tensor:
    return net.o(net.r(net.e(x))[0])


def tags(outputs: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(outputs.flatten(0, 1), labels.flatten())


def weighted(outputs: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(outputs.flatten(0, 1), labels.flatten(), weight=CLASSES)


def several(net: Net, x: Tensor, labels: Tensor) -> dict[str, object]:
    """Features, what is computed from them, a loss, and a number that nobody needs."""
    h = net.r(net.e(x))[0]
    z = net.o(h)
    return {"loss": tags(z, labels), "parts": (h, [z]), "norm": h.square().mean()}


@dataclass(frozen=True)
class Shared:
    """A model and a loss that gives its samples unequal shares."""

    name: str
    forward: Callable[..., object]
    loss: Callable[..., Tensor]
    labels: Tensor = Y

    @property
    def inputs(self) -> object:
        return (X, self.labels) if self.forward is several else X

    def __str__(self) -> str:
        return self.name

    def task(self) -> Task:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            net = Net(self.forward, e=nn.Linear(3, 4), r=nn.GRU(4, 5, batch_first=True), o=nn.Linear(5, 3)).double()
        return Task(net, [(self.inputs, self.labels)] * 2, self.loss)


SHARED = [
    Shared("padded", tagger, tags),
    Shared("padded, classes weighted", tagger, weighted),
    Shared("classes weighted", lambda n, x: tagger(n, x)[:, -1], lambda z, y: F.cross_entropy(z, y, weight=CLASSES), Y[:, 0].clamp_min(1)),
    Shared("one ignored", lambda n, x: tagger(n, x)[:, -1], F.cross_entropy, torch.tensor([0, 1, -100, 1])),
    Shared("time first", lambda n, x: tagger(n, x).transpose(0, 1), lambda z, y: tags(z.transpose(0, 1), y)),
    Shared("flat", lambda n, x: tagger(n, x).flatten(0, 1), lambda z, y: F.cross_entropy(z, y.flatten(), weight=CLASSES)),
    Shared("several outputs", several, lambda z, y: weighted(z["parts"][1][0], y) + z["parts"][0].square().mean()),
    Shared("the model's own loss", several, lambda z, y: z["loss"]),
]  # fmt: skip
EVERY = pytest.mark.parametrize("shared", SHARED, ids=str)


def shares(task: Task) -> list[list[Tree]]:
    """Per batch and sample, dL_s/dw: through the graph of the batch, where a gradient comes to the sample's rows of the outputs only."""
    found = []
    for x, labels in task.batches():
        found.append([share(task, x, labels, sample) for sample in range(len(X))])
    return found


def share(task: Task, x: object, labels: object, sample: int) -> Tree:
    leaves = {name: value.requires_grad_() for name, value in task.parameters().items()}
    outputs = torch.func.functional_call(task.model, leaves, *arguments(x))
    loss = task.loss(outputs, labels)
    for value in flat(outputs):
        if isinstance(value, Tensor) and value.dim():
            axis = next(d for d in range(value.dim()) if value.shape[d] in (len(X), len(X) * 5))
            mine = torch.arange(value.shape[axis]) * len(X) // value.shape[axis] == sample
            mask = mine.double().view([-1 if d == axis else 1 for d in range(value.dim())])
            value.register_hook(lambda g, mask=mask: g * mask)
    gradients = torch.autograd.grad(loss, [*leaves.values()], materialize_grads=True, allow_unused=True)
    return {name: len(X) * gradient for name, gradient in zip(leaves, gradients)}


def expected(task: Task, structure: Structure) -> list[Scores]:
    w = task.parameters()
    batches = [[structure.reduce(tree.mul(w, gradients)) for gradients in batch] for batch in shares(task)]
    return [{name: torch.stack([scores[name] for scores in batch]) for name in structure.groups} for batch in batches]


@pytest.fixture(params=["with rules", "without any"])
def _rules(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "without any":
        for name in [*FLOWS]:
            monkeypatch.delitem(FLOWS, name)


@EVERY
@pytest.mark.usefixtures("_rules")
def test_gates_are_of_the_samples_shares(shared: Shared) -> None:
    task = shared.task()
    structure = channels(task.model, shared.inputs)
    assert {line[0] for group in structure.groups.values() for line in group.members} >= {"e.weight", "r.weight_ih_l0"}
    torch.testing.assert_close(list(gates(task, structure)), expected(task, structure))


@EVERY
@pytest.mark.usefixtures("_rules")
def test_powers_are_of_the_samples_shares(shared: Shared) -> None:
    task = shared.task()
    for found, batch in zip(sums(task, set(task.parameters())), shares(task)):
        torch.testing.assert_close(found, {name: torch.stack([each[name].square() for each in batch]).sum(0) for name in found})


@EVERY
def test_connections_have_the_samples_shares(shared: Shared) -> None:
    task = shared.task()
    structure = weights(task.model)
    torch.testing.assert_close(list(gates(task, structure)), expected(task, structure))


@EVERY
@pytest.mark.parametrize("name", ["fisher_sample", "taylor_sample", "fisher_diagonal"])
def test_criteria_take_a_sample_that_has_no_label(shared: Shared, name: str) -> None:
    task = shared.task()
    for scores in CRITERIA[name](task, channels(task.model, shared.inputs)):
        assert all(torch.isfinite(value).all() and value.any() for value in scores.values())


def test_outputs_that_are_one_number_are_taken_sample_by_sample_if_that_is_the_same() -> None:
    mean = Shared("", lambda n, x: tagger(n, x).square().mean(), lambda z, y: z).task()
    rows = Shared("", tagger, lambda z, y: z.square().mean()).task()
    structure = channels(mean.model, X)
    torch.testing.assert_close(list(gates(mean, structure)), list(gates(rows, structure)))


def test_outputs_that_are_one_number_and_hide_unequal_shares_are_refused() -> None:
    labels = Y.where(Y >= 0, torch.tensor([0, -100, -100, -100, -100]).where(torch.arange(5) > 0, 0))  # no sample without any label
    one = Shared("", lambda n, x, y: tags(tagger(n, x), y), lambda z, y: z, labels).task()
    task = Task(one.model, [((X, labels), labels)], one.loss)
    with pytest.raises(BadInput, match=r"the mean of its samples' losses is .* samples first, or choose"):
        list(gates(task, channels(task.model, (X, labels))))


def packed(total: int | None) -> Task:
    """A tagger that packs its sequences: of the last, the shortest, it makes less when it is alone."""
    lengths = torch.tensor([5, 5, 5, 3])

    def forward(net: Net, x: Tensor, n: Tensor) -> Tensor:
        made, _ = net.r(pack_padded_sequence(net.e(x), n, batch_first=True, enforce_sorted=False))
        return net.o(pad_packed_sequence(made, batch_first=True, total_length=total)[0])

    model = Shared("", forward, tags).task().model
    labels = torch.where(torch.arange(5) < lengths[:, None], torch.arange(5) % 3, -100)
    return Task(model, [((X, lengths), labels)], tags)


def test_sequences_that_are_cut_to_the_longest_are_told() -> None:
    task = packed(None)
    with pytest.raises(BadInput, match=r"shape \(3, 3\) of a sample alone, and \(5, 3\).*total_length="):
        list(sums(task, {"r.weight_ih_l0"}))
    task = packed(5)
    for found, batch in zip(sums(task, set(task.parameters())), shares(task)):
        torch.testing.assert_close(found, {name: torch.stack([each[name].square() for each in batch]).sum(0) for name in found})


@pytest.mark.parametrize("name", ["fisher_sample", "fisher_diagonal"])
def test_samples_that_are_not_independent_are_told(name: str) -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.ReLU(), nn.Linear(4, 3)).double()
    task = Task(net, [(X[:, 0], torch.tensor([0, 1, 2, 0]))], F.cross_entropy)
    with pytest.raises(BadInput, match=r"samples are not independent.*running statistics"):
        list(CRITERIA[name](task, channels(net, X[:, 0])))
