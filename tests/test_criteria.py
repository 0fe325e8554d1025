"""Every criterion, over every kind of unit, through the same laws: finite, repeatable, leaves no trace, sees the dead, knows no order."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cases import Net, conv
from oracles import masked, permuted
from secateur import as_graph, tree
from secateur.criteria import CRITERIA, criterion, name_of
from secateur.criteria.curvature import hessian
from secateur.errors import BadInput
from secateur.measure import measure
from secateur.structure import Structure, blocks, channels, layers, n_of_m, weights
from secateur.task import Task
from secateur.tree import Scores
from toy import Hidden, batches, mlp


class Attention(nn.Module):
    def __init__(self, width: int = 6, heads: int = 3) -> None:
        super().__init__()
        self.heads, self.dim = heads, width // heads
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).view(x.shape[0], -1, self.heads, self.dim).transpose(1, 2) for layer in (self.q, self.k, self.v))
        weight = (q @ k.transpose(-1, -2) / self.dim**0.5).softmax(-1)
        return self.out((weight @ v).transpose(1, 2).reshape(x.shape[0], -1, self.heads * self.dim))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.inner, self.outer = nn.LayerNorm(4), nn.Linear(4, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.outer(self.inner(self.norm(x)).relu())


def convolutions() -> nn.Module:
    blocks = [conv(2, 4), nn.BatchNorm2d(4), nn.ReLU(), conv(4, 3), nn.BatchNorm2d(3), nn.ReLU()]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d((2, 1)), nn.Flatten(), nn.Linear(6, 3))


def transformer() -> nn.Module:
    parts = {"embed": nn.Linear(4, 6), "attention": Attention(), "out": nn.Linear(6, 3)}
    return Net(lambda n, x: n.out(n.attention(n.embed(x)).relu().mean(1)), **parts)


def recurrent() -> nn.Module:
    return Net(lambda n, x: n.out(n.rnn(x)[0][:, -1]), rnn=nn.GRU(4, 5, batch_first=True), out=nn.Linear(5, 3))


def residual() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), *(Block() for _ in range(3)), nn.Linear(4, 3))


@dataclass(frozen=True)
class Kind:
    """A kind of unit, in a model that has it."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    structure: Callable[[nn.Module, Tensor], Structure]

    def model(self, seed: int = 0) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = self.build().double()
            for name, value in model.state_dict().items():
                if name.endswith("running_var"):
                    value.uniform_(0.5, 2)
                elif value.dim() == 1:
                    value.uniform_(-0.5, 1.5)
        return model

    def data(self, count: int = 2, size: int = 8) -> list[tuple[Tensor, Tensor]]:
        chance = torch.Generator().manual_seed(0)
        return [
            (torch.randn(size, *self.shape, generator=chance, dtype=torch.float64), torch.randint(0, 3, (size,), generator=chance))
            for _ in range(count)
        ]


KINDS = {
    "connections": Kind(convolutions, (2, 4, 4), lambda model, x: weights(model)),
    "blocks": Kind(convolutions, (2, 4, 4), lambda model, x: blocks(model, (2, 2))),  # of three outputs the last block has one
    "n of m": Kind(convolutions, (2, 4, 4), lambda model, x: n_of_m(model, 1, 2)),
    "channels": Kind(convolutions, (2, 4, 4), channels),
    "heads": Kind(transformer, (5, 4), lambda model, x: channels(model, x, units=["head"])),
    "hidden states": Kind(recurrent, (5, 4), channels),
    "layers": Kind(residual, (3,), layers),
}

AT_OLD_SIZE = ("connections", "blocks", "n of m")
SINGLE = ("connections", "n of m")

REFUSED = {  # (criterion, kind of unit) -> words of the reason
    **{("bn_scale", kind): "no unit here has one" for kind in AT_OLD_SIZE},
    ("bn_scale", "heads"): "no unit here has one",
    ("bn_scale", "hidden states"): "no unit here has one",
    ("exact_obs", "layers"): "sees no weight that reads the units of layers",
    ("kfac", "hidden states"): "of rnn.bias_hh_l0 it does not",
    **{("cosine", kind): "A single connection has no direction" for kind in SINGLE},
    **{("output_features", kind): "that layer's own connections do not move" for kind in AT_OLD_SIZE},
    **{
        (name, kind): f"{name} ranks attention heads, and nothing else"
        for name in ("confidence", "entropy")
        for kind in (*AT_OLD_SIZE, "channels", "hidden states", "layers")
    },
    **{
        (name, kind): f"{name} looks at the activation of a unit"
        for name in ("mean_activation", "apoz", "hrank", "gradient_activation")
        for kind in (*AT_OLD_SIZE, "layers")
    },
}

SIGNED = {  # criterion -> why a dead unit's score of zero is the last by magnitude only
    "grasp": "it is negative where a removal makes the gradient steeper",
    "movement": "it is negative where training shrinks the weights",
    **dict.fromkeys(("hessian", "obd", "hutch++", "exact_hessian"), "it is negative where the loss is curved downwards"),
}

BLIND = {  # criterion, or (criterion, kind) -> why a dead unit is not its last
    "random": "it is chance",
    "fpgm": "it looks for what others replace, and zero is not always in the middle",
    ("exact_obs", "n of m"): "of every run n stay until all others have gone, dead or not",
    **{("movement", kind): "a weight of zero begins to move" for kind in AT_OLD_SIZE},
    **{(name, kind): "a weight of zero may have a gradient" for name in ("gradient", "fisher", "fisher_diagonal") for kind in AT_OLD_SIZE},
}

ORDERED = {  # criterion, or (criterion, kind) -> why another order of the units gives other scores
    "random": "it is chance",
    "hessian": "its probes are drawn in the order of the weights",
    "obd": "as hessian",
    "hutch++": "as hessian",
    "obs": "its blocks are cut in the order of the weights",
    ("output_features", "hidden states"): "these are the features, and the signs are drawn in their order",
}

NO_BETTER = {  # criterion -> why it need not beat chance on a trained net
    "random": "it is chance",
    "grasp": "it keeps the gradient, which a trained net has none of",
    "movement": "it looks at where a training goes, and this one is over",
    "bn_scale": "the net has no norm",
    "confidence": "the net has no heads",
    "entropy": "the net has no heads",
    "apoz": "a tanh is never zero",
    "hrank": "its values have no positions",
}


def every(exceptions: Mapping[str | tuple[str, str], str], kinds: Collection[str] = tuple(KINDS)) -> pytest.MarkDecorator:
    """All criteria over all these kinds of units but those that are excepted."""
    pairs = [(name, kind) for name in CRITERIA for kind in kinds if name not in exceptions and (name, kind) not in exceptions]
    return pytest.mark.parametrize(("name", "kind"), pairs)


@functools.cache
def placed(kind: str) -> tuple[Task, Structure]:
    model, data = KINDS[kind].model(), KINDS[kind].data()
    return Task(model, data, F.cross_entropy, seed=1), KINDS[kind].structure(model, data[0][0])


@pytest.mark.parametrize(("name", "kind"), REFUSED)
def test_what_a_criterion_cannot_serve_is_said(name: str, kind: str) -> None:
    with pytest.raises(BadInput, match=REFUSED[name, kind]):
        list(CRITERIA[name](*placed(kind)))


def test_every_kind_of_unit_is_there() -> None:
    for kind in KINDS:
        assert {group.kind for group in placed(kind)[1].groups.values()} == {"connection" if kind in SINGLE else kind.removesuffix("s")}


@every(REFUSED)
def test_scores_are_finite_repeat_and_leave_no_trace(name: str, kind: str) -> None:
    task, structure = placed(kind)
    state, chance = {key: value.clone() for key, value in task.model.state_dict().items()}, torch.random.get_rng_state()
    first = list(CRITERIA[name](task, structure))
    second = list(CRITERIA[name](task, structure))
    assert len(first) in (1, 2)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    for scores in first:
        assert {group: tuple(v.shape) for group, v in scores.items()} == {group: v.shape for group, v in structure.groups.items()}
        assert all(torch.isfinite(value).all() and not value.requires_grad for value in scores.values())
        assert any(value.any() for value in scores.values())
    torch.testing.assert_close(dict(task.model.state_dict()), state, rtol=0, atol=0)
    assert torch.equal(torch.random.get_rng_state(), chance)
    assert task.model.training and all(value.grad is None and value.requires_grad for value in task.model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in task.model.modules())


@functools.cache
def placed_as_graph(kind: str) -> tuple[Task, Structure]:
    task, _ = placed(kind)
    graph = as_graph(task.model, task.data[0][0])  # type: ignore[index]
    return Task(graph, task.data, task.loss, seed=1), KINDS[kind].structure(graph, task.data[0][0])  # type: ignore[index]


@every(REFUSED, [kind for kind in KINDS if kind != "layers"])  # a graph has no layers that are modules
def test_an_exported_graph_has_the_scores_of_its_model(name: str, kind: str) -> None:
    expected, found = (list(CRITERIA[name](*place(kind))) for place in (placed, placed_as_graph))
    assert len(expected) == len(found)
    for one, other in zip(expected, found):
        torch.testing.assert_close([*other.values()], [*one.values()])


@every(REFUSED | BLIND)
def test_planted_dead_units_come_last(name: str, kind: str) -> None:
    task, structure = placed(kind)
    for group in structure.groups.values():
        dead = torch.zeros(group.size, dtype=torch.bool)
        dead[torch.randperm(group.size, generator=torch.Generator().manual_seed(0))[: max(1, group.size // 3)]] = True
        keep = {other: torch.ones(one.shape) for other, one in structure.groups.items()}
        keep[group.name] = (~dead).double().view(group.shape)
        masks = structure.expand(keep)
        with torch.no_grad():
            model = KINDS[kind].model()
            for parameter, value in model.named_parameters():
                value.mul_(masks[parameter])
        for scores in CRITERIA[name](Task(model, task.data, task.loss, seed=1), structure):
            values = scores[group.name].flatten()
            values = values.abs() if name in SIGNED else values
            assert values[dead].max() <= values[~dead].min() + 1e-12 * values.abs().max()


@every(REFUSED | ORDERED, ["channels", "heads", "hidden states"])
def test_units_in_another_order_have_their_scores_in_that_order(name: str, kind: str) -> None:
    task, structure = placed(kind)
    before = list(CRITERIA[name](task, structure))
    group = next(iter(structure.groups))
    order = torch.randperm(structure.groups[group].size, generator=torch.Generator().manual_seed(3)).tolist()
    moved = Task(permuted(task.model, structure, group, order).train(), task.data, task.loss, seed=1)  # type: ignore[arg-type]
    for was, now in zip(before, CRITERIA[name](moved, structure)):
        torch.testing.assert_close(now, {**was, group: was[group][order]}, rtol=1e-6, atol=1e-9)


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    """A net of 24 hidden units that learned a task for which a few suffice, and a group lasso made it let go of the others."""
    chance = torch.Generator().manual_seed(0)
    x = torch.randn(512, 8, generator=chance, dtype=torch.float64)
    y = (x[:, 0] * 2 > x[:, 1]).long() + 2 * (x[:, 2] > 0.3).long()
    model = mlp(8, 24, 4)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(150):
        optimizer.zero_grad()
        lasso = (model[0].weight.square().sum(1) + model[2].weight.square().sum(0) + 1e-9).sqrt().sum()
        (F.cross_entropy(model(x), y) + 0.01 * lasso).backward()
        optimizer.step()
    return model, list(zip(x.split(64), y.split(64)))


@pytest.mark.parametrize("name", [name for name in CRITERIA if name not in NO_BETTER])
def test_every_criterion_beats_chance(name: str, trained: tuple[nn.Module, list[tuple[Tensor, Tensor]]]) -> None:
    model, data = trained
    structure = channels(model, data[0][0])
    task = Task(model, data, F.cross_entropy)

    def loss_without(scores: Scores, count: int = 12) -> float:
        keep = {"0": torch.ones(24, dtype=torch.bool)}
        keep["0"][scores["0"].argsort()[:count]] = False
        small = masked(model, structure, keep)
        with torch.no_grad():
            return sum(float(F.cross_entropy(small(x), y)) for x, y in data)

    by_chance = [loss_without(measure(Task(model, data, F.cross_entropy, seed=s), structure, "random").global_) for s in range(15)]
    assert loss_without(measure(task, structure, name).global_) < min(by_chance)


def test_every_exception_is_of_a_criterion_that_there_is() -> None:
    named = [key if isinstance(key, str) else key[0] for table in (REFUSED, SIGNED, BLIND, ORDERED, NO_BETTER) for key in table]
    assert set(named) <= set(CRITERIA)


def test_a_function_of_ones_own_is_a_criterion() -> None:
    def largest(task: Task, structure: Structure) -> Iterator[Scores]:
        yield structure.reduce(tree.square(tree.square(task.parameters())))

    model = mlp(6, 5, 4, 3)
    measured = measure(Task(model, batches(2, 8, 6, 3), F.cross_entropy), Hidden(model), largest)
    assert measured.criterion == "largest" and criterion(largest) is largest
    assert name_of(functools.partial(hessian, probes=3)) == "hessian"


@pytest.mark.parametrize("which", ["tailor", 3])
def test_an_unknown_criterion_is_said_with_those_there_are(which: object) -> None:
    with pytest.raises(BadInput, match=f"{which!r}.*gradient, taylor, .*, random"):
        criterion(which)  # type: ignore[arg-type]
