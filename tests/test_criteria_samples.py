"""Criteria of single samples: equal to a loop over samples, blind to how samples are batched, and where a batch's gradient is blind."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur import as_graph, tree
from secateur.contexts import by_sample
from secateur.criteria import CRITERIA
from secateur.measure import measure
from secateur.structure import Structure, blocks, channels, layers, n_of_m, weights
from secateur.task import Task
from secateur.tree import Scores
from test_flows_samples import SHARED, Shared, shares

DEFINED = {
    "fisher_sample": lambda structure, w, g: tree.square(structure.reduce(tree.mul(w, g))),
    "taylor_sample": lambda structure, w, g: tree.absolute(structure.reduce(tree.mul(w, g))),
    "fisher_diagonal": lambda structure, w, g: structure.reduce(tree.square(g)),
}


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.inner, self.outer = nn.BatchNorm2d(6), nn.Conv2d(6, 8, 3, padding=1), nn.Conv2d(8, 6, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.outer(self.inner(self.norm(x)).relu())


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3), Block(), Block(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)).double().eval()


X = torch.randn(7, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 0, 1, 2, 1])
STRUCTURES = {
    "channels": lambda net: channels(net, X), "layers": lambda net: layers(net, X), "weights": weights,
    "blocks": lambda net: blocks(net, (4, 4)), "2:4": n_of_m,
}  # fmt: skip


def loop(name: str, task: Task, structure: Structure) -> Scores:
    """One batch of one sample after the other."""
    singles = Task(task.model, [piece.batch for piece in by_sample(task.data)], task.loss)
    w = singles.parameters()
    scores = [DEFINED[name](structure, w, gradients) for gradients in singles.gradients()]
    return tree.apply(lambda *values: torch.stack(values).mean(0), *scores)


@pytest.mark.parametrize("name", DEFINED)
@pytest.mark.parametrize("kind", STRUCTURES)
@pytest.mark.parametrize("sizes", [(7,), (3, 4), (1, 1, 5)])
def test_the_mean_over_samples_is_that_of_one_backward_a_sample(name: str, kind: str, sizes: tuple[int, ...]) -> None:
    net = model()
    task, structure = Task(net, list(zip(X.split(sizes), Y.split(sizes))), F.cross_entropy), STRUCTURES[kind](net)
    scores = list(CRITERIA[name](task, structure))
    assert len(scores) == len(sizes)
    mean = tree.apply(lambda *values: sum(value * size for value, size in zip(values, sizes)) / 7, *scores)
    torch.testing.assert_close(mean, loop(name, task, structure))


@pytest.mark.parametrize("name", DEFINED)
def test_a_loss_for_every_sample_counts_like_its_mean(name: str) -> None:
    net = model()
    structure = channels(net, X)
    one, every = (
        list(CRITERIA[name](Task(net, [(X, Y)], lambda out, y, how=how: F.cross_entropy(out, y, reduction=how)), structure))
        for how in ("mean", "none")
    )
    torch.testing.assert_close(one, every)


@pytest.mark.parametrize("graph", [False, True], ids=["class", "graph"])
@pytest.mark.parametrize("shared", SHARED, ids=str)
def test_samples_count_by_their_share_in_a_loss_that_weighs_them(graph: bool, shared: Shared) -> None:
    """Padded and ignored targets, weights of classes: against the graph of the whole batch, and as an exported graph the same."""
    task = shared.task()
    of = replace(task, model=as_graph(task.model, shared.inputs)) if graph else task
    w, batches = task.parameters(), shares(task)
    for structure in (channels(of.model, shared.inputs), weights(of.model)):
        for name, defined in DEFINED.items():
            scores = [[defined(structure, w, gradients) for gradients in batch] for batch in batches]
            expected = [tree.apply(lambda *values: torch.stack(values).mean(0), *every) for every in scores]
            torch.testing.assert_close(list(CRITERIA[name](of, structure)), expected)


class Opposite(nn.Module):
    """Two units: one that all samples pull the same way, and one that each half of them pulls the other way."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False)
        self.a.weight.data, self.b.weight.data = torch.eye(2), torch.ones(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x))


def test_samples_that_cancel_in_a_batch_do_not_cancel_here() -> None:
    net = Opposite()
    x = torch.tensor([[0.1, 1.0], [0.1, -1.0]])
    task, structure = Task(net, [(x, torch.zeros(2))], lambda out, _: out[:, 0]), channels(net, x)
    (name,) = structure.groups
    first, second = measure(task, structure, "taylor").global_[name]
    assert second < 1e-6 * first
    for which in DEFINED:
        first, second = measure(task, structure, which).global_[name]
        assert second > first


def test_memory_holds_no_gradient_of_every_sample() -> None:
    """A tensor of samples x weights is never made: the largest that the backward pass makes are activations."""
    wide = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 3))
    x, y = torch.randn(300, 64), torch.randint(0, 3, (300,))
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            largest = max([largest, *(v.numel() for v in (out if isinstance(out, (tuple, list)) else [out]) if isinstance(v, Tensor))])
            return out

    with Watch():
        for name in DEFINED:
            list(CRITERIA[name](Task(wide, [(x, y)], F.cross_entropy), weights(wide)))
    assert largest == 300 * 256


