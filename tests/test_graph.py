"""A model as a graph: the same function under the same names, in which every size follows."""

# ruff: noqa: E501 (a table reads by its columns)

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import secateur as sc
from cases import CASES, Net, conv, halves, option_a
from laws import left_alone, outputs, same, shrunk_equals_masked, small_of
from oracles import random_keep
from secateur.structure import channels
from secateur.structure.channels import ALL_KINDS
from secateur.structure.rules import flat
from secateur.task import call
from test_api import batches, residual
from test_mask import plan_for

EVERY = pytest.mark.parametrize("case", [case for case in CASES if case.name != "reads a value"], ids=str)


def linear(a: int, b: int) -> nn.Linear:
    return nn.Linear(a, b, dtype=torch.float64)


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def again(value: object, times: int = 2) -> object:
    """A batch that is so many times as large, of other numbers."""
    if isinstance(value, dict):
        return {key: again(item, times) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(again(item, times) for item in value)
    assert isinstance(value, Tensor)
    return torch.cat([value + (number if value.is_floating_point() else 0) for number in range(times)])


# the same function ----------------------------------------------------------------------------------------------------------------------


@EVERY
def test_a_graph_computes_what_the_class_computes_under_the_same_names(case):
    model, inputs = case.model(), case.inputs()
    graph = left_alone(model, lambda: sc.as_graph(model, inputs))
    assert isinstance(graph, nn.Module)
    same(outputs(model, inputs), outputs(graph, inputs), 0)
    assert [(name, value.shape) for name, value in graph.named_parameters()] == [(n, v.shape) for n, v in model.named_parameters()]
    assert graph.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, graph.state_dict()[name]) for name, value in model.state_dict().items())
    with torch.no_grad():  # nothing is shared
        for value in graph.state_dict().values():
            value.zero_()
    assert any(value.abs().sum() > 0 for value in model.parameters())


BATCHES = [c for c in CASES if c.name in ("conv", "residual", "option a", "layer norm", "lstm", "keyword arguments", "shuffle by views")]


@pytest.mark.parametrize("case", BATCHES, ids=str)
def test_the_batch_stays_free(case):
    model, inputs = case.model(), case.inputs()
    graph = sc.as_graph(model, inputs)
    for times in (2, 3):
        same(outputs(model, again(inputs, times)), outputs(graph, again(inputs, times)))


def test_a_batch_of_one_is_no_constant_either():
    case = next(case for case in CASES if case.name == "conv")
    model, inputs = case.model(), case.inputs()
    graph = sc.as_graph(model, inputs[:1])
    same(outputs(model, inputs), outputs(graph, inputs))


def test_ties_and_buffers_stay_what_they_are():
    body, table = linear(6, 6), nn.Embedding(11, 6, dtype=torch.float64)
    model = Net(lambda n, x: n.head(n.body(n.table(x)) + n.shift + n.scratch), table=table, body=body, head=linear(6, 11))
    model.head.weight = table.weight
    model.register_buffer("shift", random(6))
    model.register_buffer("scratch", random(6), persistent=False)
    graph = sc.as_graph(model, torch.arange(6).view(2, 3))
    assert graph.head.weight is graph.table.weight and graph.head.weight is not table.weight
    assert isinstance(graph.head.weight, nn.Parameter)
    assert graph.state_dict().keys() == model.state_dict().keys()
    assert {name for name, _ in graph.named_buffers()} == {"shift", "scratch"}


def test_only_what_is_trained_in_the_model_is_trained_in_the_graph():
    model = nn.Sequential(linear(4, 6), nn.ReLU(), linear(6, 2))
    model[0].requires_grad_(False)
    graph = sc.as_graph(model, random(3, 4))
    assert {name: value.requires_grad for name, value in graph.named_parameters()} == {
        "0.weight": False, "0.bias": False, "2.weight": True, "2.bias": True,
    }  # fmt: skip


@dataclass
class Answer:
    score: Tensor
    parts: tuple[Tensor, dict[str, Tensor]]


OUTPUTS: dict[str, Callable[[Net, Tensor], object]] = {
    "dataclass": lambda n, x: Answer(n.b(n.a(x)), (n.a(x).sum(1), {"x": x})),
    "dict": lambda n, x: {"score": n.b(n.a(x)), "parts": [x, {"nothing": None, "deep": n.a(x)}]},
    "tuple": lambda n, x: (n.b(n.a(x)), (x, 3)),
}


@pytest.mark.parametrize("kind", OUTPUTS)
def test_outputs_keep_their_make(kind: str):
    model = Net(OUTPUTS[kind], a=linear(4, 6), b=linear(6, 2))
    expected, made = model(random(3, 4)), sc.as_graph(model, random(3, 4))(random(3, 4))
    assert type(made) is type(expected)
    for one, other in zip(flat(expected), flat(made), strict=True):
        assert torch.equal(one, other) if isinstance(one, Tensor) else one == other


def test_inputs_by_name_in_any_order():
    model = Net(lambda n, x, y=None: n.a(x) - (0 if y is None else n.b(y)), a=linear(4, 2), b=linear(5, 2))
    inputs = {"y": random(3, 5), "x": random(3, 4)}
    graph = sc.as_graph(model, inputs)
    same([model(**inputs)], [graph(**inputs)], 0)
    same([model(**inputs)], [graph(x=inputs["x"], y=inputs["y"])], 0)


def test_a_model_that_branches_on_a_value_is_refused_in_one_sentence():
    case = next(case for case in CASES if case.name == "reads a value")
    with pytest.raises(sc.BadInput, match="cannot be exported as a graph") as error:
        sc.as_graph(case.model(), case.inputs())
    assert "\n" not in str(error.value) and "as_graph=False" in str(error.value)


def test_what_the_exporter_has_to_say_about_a_failure_is_not_on_the_screen(capfd: pytest.CaptureFixture[str]):
    case = next(case for case in CASES if case.name == "reads a value")
    with pytest.raises(sc.BadInput):
        sc.as_graph(case.model(), case.inputs())
    assert capfd.readouterr() == ("", "")


def test_chance_and_the_switches_of_torch_stay_as_they_were():
    model, state = nn.Sequential(linear(4, 4), nn.Dropout(0.5)), torch.get_rng_state()
    switch = torch.backends.mha.get_fastpath_enabled()
    model.train()
    graph = left_alone(model, lambda: sc.as_graph(model, random(3, 4)))
    assert graph.training and torch.equal(torch.get_rng_state(), state) and torch.backends.mha.get_fastpath_enabled() == switch


# training and evaluation ----------------------------------------------------------------------------------------------------------------


def test_batch_norm_follows_train_and_eval():
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 2, 3)).double()
    inputs = random(4, 3, 8, 8) * 3 + 1
    graph = sc.as_graph(model.eval(), inputs)
    for mode in (False, True, False):  # the run in training moves the statistics, which the last run shows
        model.train(mode), graph.train(mode)
        same([model(inputs)], [graph(inputs)])
    same([model[1].running_mean, model[1].running_var], [*graph.get_submodule("1").buffers()][:2])
    assert model[1].running_mean.abs().sum() > 0


def test_dropout_follows_train_and_eval():
    model = nn.Sequential(linear(4, 50), nn.Dropout(0.5), nn.Dropout1d(0.5))
    inputs = random(3, 7, 4)
    graph = sc.as_graph(model, inputs)  # in training
    drawn = []
    for net in (model, graph):
        torch.manual_seed(0)
        drawn.append(net.train()(inputs))
    assert (drawn[1] == 0).any() and torch.equal(*drawn)
    assert not (graph.eval()(inputs) == 0).any() and torch.equal(graph(inputs), model.eval()(inputs))


def test_a_graph_trains():
    model, inputs = residual(), random(4, 3, 8, 8)
    graph = sc.as_graph(model, inputs)
    for net in (model, graph):
        F.cross_entropy(net(inputs), torch.tensor([0, 1, 2, 0])).backward()
    for (name, one), (_, other) in zip(model.named_parameters(), graph.named_parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, msg=name)


# sizes follow ---------------------------------------------------------------------------------------------------------------------------


def attended(net: Net, x: Tensor) -> Tensor:
    """Heads and their width as numbers in the code."""
    q, k, v = (layer(x).view(x.shape[0], x.shape[1], 4, 3).transpose(1, 2) for layer in (net.q, net.k, net.v))
    y = (q @ k.transpose(2, 3) * 3**-0.5).softmax(-1) @ v
    return net.out(y.transpose(1, 2).reshape(x.shape[0], x.shape[1], 12))


def batched_heads(net: Net, x: Tensor) -> Tensor:
    """Batch and heads in one dimension."""
    n = x.shape[0]
    q, k, v = (layer(x).view(n, 4, 4, 3).transpose(1, 2).reshape(n * 4, 4, 3) for layer in (net.q, net.k, net.v))
    y = torch.bmm(torch.bmm(q, k.transpose(1, 2)).softmax(-1), v)
    return net.out(y.view(n, 4, 4, 3).transpose(1, 2).reshape(n, 4, 4 * 3))


def fused(net: Net, x: Tensor) -> Tensor:
    q, k, v = net.q(x).reshape(x.shape[0], x.shape[1], 3, 4, 3).permute(2, 0, 3, 1, 4)
    return net.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def states(net: Net, x: Tensor) -> Tensor:
    """A cell by hand, whose first state is made with a number."""
    h = x.new_zeros(x.shape[0], 6)
    for step in x.unbind(1):
        h = torch.tanh(net.a(step) + net.b(h))
    return net.out(torch.cat([h, torch.zeros(x.shape[0], 6, dtype=x.dtype)], 1))


def attending(forward: Callable[[Net, Tensor], Tensor]) -> Net:
    return Net(forward, q=linear(5, 12), k=linear(5, 12), v=linear(5, 12), out=linear(12, 2))


SERIES, FLAT = random(2, 4, 5), random(3, 4)
# model, example, units of the graph
SIZES: dict[str, tuple[Callable[[], nn.Module], Tensor, dict[str, int]]] = {
    "view": (lambda: Net(lambda n, x: n.b(n.a(x).view(-1, 6).relu()), a=linear(4, 6), b=linear(6, 2)), FLAT, {"a": 6}),
    "view of halves": (lambda: Net(lambda n, x: n.b(n.a(x).view(-1, 2, 3).sum(1)), a=linear(4, 6), b=linear(3, 2)), FLAT, {"a": 2, "a#2": 3}),
    "heads": (lambda: attending(attended), SERIES, {"q": 4, "q#2": 3, "v": 3}),
    "heads in the batch": (lambda: attending(batched_heads), SERIES, {"q": 4, "q#2": 3, "v": 3}),
    "heads in one layer": (lambda: Net(fused, q=linear(5, 36), out=linear(12, 2)), SERIES, {"q": 4, "q#2": 3}),
    "first state": (lambda: Net(states, a=linear(5, 6), b=linear(6, 6), out=linear(12, 2)), SERIES, {"a": 6, "out.weight": 6}),
    "padding": (lambda: Net(option_a, c1=conv(3, 4), b1=nn.BatchNorm2d(4), c2=conv(4, 8, stride=2), b2=nn.BatchNorm2d(8),
        c3=conv(8, 8), b3=nn.BatchNorm2d(8), head=nn.Linear(8, 3)).double().eval(), random(2, 3, 8, 8), {"c1": 4, "c2": 8, "c3": 4}),
    "expand": (lambda: Net(lambda n, x: n.b((n.a(x) + x.sum(1, keepdim=True).expand(-1, 6)).relu()), a=linear(4, 6), b=linear(6, 2)), FLAT, {"a": 6}),
    "split": (lambda: Net(lambda n, x: n.b(n.a(x).split([2, 4], 1)[1].relu()) + n.c(n.a(x).split([2, 4], 1)[0]), a=linear(4, 6), b=linear(4, 2), c=linear(2, 2)),
        FLAT, {"a": 2, "a#2": 4}),
    "halves": (lambda: Net(halves, a=conv(3, 8), b=conv(4, 2)).double(), random(2, 3, 4, 4), {"a": 4}),
    "slice": (lambda: Net(lambda n, x: n.b(n.a(x)[:, 2:]) + n.c(n.a(x)[:, :2]), a=linear(4, 6), b=linear(4, 2), c=linear(2, 2)), FLAT, {"a": 2, "a#2": 4}),
    "zeros": (lambda: Net(lambda n, x: n.b((n.a(x) + torch.zeros(x.shape[0], 6, dtype=x.dtype)).relu()), a=linear(4, 6), b=linear(6, 2)), FLAT, {"a": 6}),
    "norm": (lambda: Net(lambda n, x: n.b(F.layer_norm(n.a(x), (6,))), a=linear(4, 6), b=linear(6, 2)), FLAT, {"a": 6}),
    "groups": (lambda: Net(lambda n, x: n.b(F.conv2d(n.a(x), n.w, groups=6)), a=conv(3, 6), b=conv(6, 2)).double(), random(2, 3, 4, 4), {"w": 6}),
}  # fmt: skip


def sized(name: str) -> tuple[nn.Module, Tensor, dict[str, int]]:
    build, example, units = SIZES[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build()
        if name == "groups":
            model.w = nn.Parameter(random(6, 1, 3, 3))
    return model, example, units


@pytest.mark.parametrize("name", SIZES)
def test_a_number_in_the_code_follows(name: str):
    model, inputs, units = sized(name)
    graph = sc.as_graph(model, inputs)
    structure = channels(graph, inputs, units=ALL_KINDS)
    assert {group: g.size for group, g in structure.groups.items()} == units
    exact = channels(graph, inputs, exact=True, units=ALL_KINDS)
    for seed in range(3):
        shrunk_equals_masked(graph, inputs, exact, random_keep(exact, 0.5, seed))
    small = small_of(graph, structure, random_keep(structure))
    for times in (1, 2, 3):
        assert outputs(small, again(inputs, times))[0].shape == outputs(model, again(inputs, times))[0].shape
    small(inputs).sum().backward()


def test_the_very_numbers_do_not_follow_in_the_class():
    """Were they attributes there, the test above would show nothing."""
    for name in ("view", "heads", "first state", "padding", "split", "zeros", "norm"):
        model, inputs, units = sized(name)
        assert sum(group.size for group in channels(model, inputs, units=ALL_KINDS).groups.values()) < sum(units.values()), name


def test_attention_keeps_its_scale_when_its_heads_lose_dimensions():
    model, inputs, _ = sized("heads in one layer")
    graph = sc.as_graph(model, inputs)
    structure = channels(graph, inputs, units=["head dimension"])
    keep = {name: torch.tensor([True, False, True]) for name in structure.groups}
    small = small_of(graph, structure, keep)
    q, k, v = (part.unflatten(-1, (4, 3))[..., [0, 2]].transpose(1, 2) for part in model.q(inputs).chunk(3, -1))
    expected = (q @ k.transpose(2, 3) * 3**-0.5).softmax(-1) @ v  # of three dimensions, though two are left
    out = expected.transpose(1, 2).flatten(2) @ model.out.weight.unflatten(-1, (4, 3))[..., [0, 2]].flatten(1).T + model.out.bias
    same([out], outputs(small, inputs))


def test_heads_of_torchs_own_transformer_can_leave_as_a_graph_only():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(12, 4, 10, batch_first=True, dtype=torch.float64)
        model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    inputs = random(2, 5, 12)
    assert not [group for group in channels(model, inputs).groups.values() if group.kind == "head"]
    graph = sc.as_graph(model, inputs)
    same(outputs(model, inputs), outputs(graph, inputs))
    heads = {name: group.size for name, group in channels(graph, inputs).groups.items() if group.kind == "head"}
    assert list(heads.values()) == [4, 4]
    exact = channels(graph, inputs, exact=True)
    assert set(heads) <= set(exact.groups)
    keep = random_keep(exact)
    shrunk_equals_masked(graph, inputs, exact, keep)
    name = next(iter(heads))
    assert small_of(graph, exact, keep).get_parameter(name).shape == (3 * 3 * int(keep[name].sum()), 12)  # query, key, value of 3 each


# copies, files, plans -------------------------------------------------------------------------------------------------------------------


def pruned_graph(name: str = "heads") -> tuple[nn.Module, nn.Module, sc.Plan, Tensor]:
    """The class, its pruned graph, the plan and an example."""
    model, inputs, _ = sized(name)
    graph = sc.as_graph(model, inputs)
    plan = plan_for(graph, sc.channels(graph, inputs)).note(as_graph=True)
    return model, sc.shrink(graph, plan), plan, inputs


def test_a_pruned_graph_can_be_copied_and_the_copy_shares_nothing():
    _, small, _, inputs = pruned_graph()
    twin = copy.deepcopy(small)
    same(outputs(small, inputs), outputs(twin, inputs), 0)
    sizes = {key: value for key, value in vars(small).items() if key.startswith("sizes_")}
    assert sizes and {key: value for key, value in vars(twin).items() if key.startswith("sizes_")} == sizes
    before = outputs(small, inputs)
    with torch.no_grad():
        for value in twin.parameters():
            value.zero_()
    same(before, outputs(small, inputs), 0)
    assert copy.deepcopy(twin.train()).training


@pytest.mark.parametrize("name", ["view", "heads", "split", "padding"])
def test_a_pruned_graph_survives_the_disk(name: str, tmp_path):
    model, small, plan, inputs = pruned_graph(name)
    assert plan.sizes
    sc.save(tmp_path / "out", small, plan)
    restored = sc.load(tmp_path / "out", lambda: sc.as_graph(copy.deepcopy(model), inputs))
    for times in (1, 2):
        same(outputs(small, again(inputs, times)), outputs(restored, again(inputs, times)), 0)


def test_loading_a_graph_into_the_class_is_refused_in_a_sentence(tmp_path):
    model, small, plan, _ = pruned_graph()
    sc.save(tmp_path / "out", small, plan)
    with pytest.raises(sc.PlanMismatch, match="as_graph") as error:
        sc.load(tmp_path / "out", lambda: model)
    assert "\n" not in str(error.value)


def test_shrinking_the_class_by_the_plan_of_a_graph_is_refused_in_a_sentence():
    model, _, plan, _ = pruned_graph()
    with pytest.raises(sc.PlanMismatch, match="as_graph") as error:
        sc.shrink(model, plan)
    assert "\n" not in str(error.value)


def test_pruning_as_a_graph_from_end_to_end():
    model, data = residual(), batches()
    in_class = sc.prune(model, data[0][0], data, F.cross_entropy, amount=0.5, of="macs")
    pruned = left_alone(model, lambda: sc.prune(model, data[0][0], data, F.cross_entropy, amount=0.5, of="macs", as_graph=True))
    assert isinstance(pruned, sc.Pruned)
    assert "c3" in pruned.structure.groups and "c3" not in in_class.structure.groups
    assert pruned.plan.cost["macs"][1] <= 0.5 * pruned.plan.cost["macs"][0] and pruned.plan.made["as_graph"] is True
    assert sum(value.numel() for value in pruned.model.parameters()) == pruned.plan.cost["parameters"][1]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call(pruned.model, data[0][0])
    assert counter.get_total_flops() / 2 / len(data[0][0]) == pytest.approx(pruned.plan.cost["macs"][1])
    assert all(torch.equal(value, residual().state_dict()[name]) for name, value in model.state_dict().items())


def test_rounds_as_a_graph_each_meet_their_share_and_go_on_behind_the_last(tmp_path):
    model, data = residual(), batches()
    options = {"amount": 0.5, "of": "macs", "steps": 3, "schedule": "linear", "as_graph": True, "checkpoint": tmp_path}
    states = []
    for step in sc.rounds(model, data[0][0], data, F.cross_entropy, **options):
        assert step.plan.cost["macs"][1] <= (1 - 0.5 * step.number / 3) * step.plan.cost["macs"][0] + 1e-6
        with torch.no_grad():
            step.model.get_parameter("head.bias").add_(step.number)  # it is trained
        states.append({name: value.clone() for name, value in step.model.state_dict().items()})
        if step.number == 2:
            break
    assert "c3" in step.plan.keep
    later = list(sc.rounds(model, data[0][0], data, F.cross_entropy, **options))
    assert [step.number for step in later] == [2, 3]  # nobody asked for what comes after the second
    small = sc.shrink(sc.as_graph(model, data[0][0]), later[-1].plan)
    assert {name: value.shape for name, value in small.state_dict().items()} == {
        name: value.shape for name, value in later[-1].model.state_dict().items()
    }
    later[0].model.get_parameter("head.bias").data.add_(2)
    assert all(torch.equal(value, states[1][name]) for name, value in later[0].model.state_dict().items())


def test_the_optimizer_of_the_class_goes_on_with_the_first_rounds_graph():
    model, data = residual(), batches()
    optimizer: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for step in sc.rounds(model, data[0][0], data, F.cross_entropy, amount=0.5, of="macs", steps=2, as_graph=True):
        optimizer = step.rebind(optimizer)
        assert {id(value) for group in optimizer.param_groups for value in group["params"]} == set(map(id, step.model.parameters()))
