"""The laws of the structure of channels, on every case."""

# ruff: noqa: E501 (a table reads by its columns)

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur as sc
from cases import CASES, Case, Net
from oracles import masked, over_kept, permuted, random_keep
from secateur.errors import BadInput
from secateur.structure import Channels, channels
from secateur.structure.channels import ALL_KINDS, gathered
from secateur.structure.cut import cut
from secateur.structure.rules import flat
from secateur.structure.run import traced
from secateur.task import call, evaluating

EVERY = pytest.mark.parametrize("case", CASES, ids=str)


def outputs(model: nn.Module, inputs: object) -> list[Tensor]:
    with torch.no_grad(), evaluating(model):
        return [value for value in flat(call(model, inputs)) if isinstance(value, Tensor)]


def same(a: list[Tensor], b: list[Tensor]) -> None:
    assert len(a) == len(b)
    for x, y in zip(a, b):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-9 * max(1.0, x.abs().max().item()) if x.numel() else 0)


@EVERY
def test_the_units_of_every_case_are_found(case: Case):
    structure = channels(case.model(), case.inputs())
    assert {name: group.size for name, group in structure.groups.items()} == case.units
    assert tuple(name for name, group in structure.groups.items() if group.approximate) == case.approximate
    for name, words in case.frozen.items():
        assert words in structure.frozen[name].frozen


@EVERY
@pytest.mark.parametrize("seed", range(3))
def test_shrunk_equals_masked(case: Case, seed: int):
    model, inputs = case.model(), case.inputs()
    structure = channels(model, inputs, exact=True)
    assert not any(group.approximate for group in structure.groups.values())
    keep = random_keep(structure, 0.5, seed)
    small = cut(model, structure.kept(keep), structure.sizes(keep))
    same(outputs(small, inputs), outputs(masked(model, structure, keep), inputs))


@pytest.mark.parametrize("case", [case for case in CASES if case.approximate], ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_approximate_groups_equal_the_mask_with_statistics_over_what_is_kept(case: Case, seed: int):
    model, inputs = case.model(), case.inputs()
    structure = channels(model, inputs)
    keep = random_keep(structure, 0.5, seed)
    trace, _, _ = traced(model, inputs)
    again, numbers = gathered(model, trace, {}, exact=False)
    assert {name: group.size for name, group in again.groups.items()} == case.units
    gates = again._gates(keep).numpy()
    reads = [
        [gates[numbers[trace.labels.resolve(dim)]].all(0) for dim in step.read] for step in trace.steps
    ]  # what the first operand has kept
    small = cut(model, structure.kept(keep), structure.sizes(keep))
    same(outputs(small, inputs), over_kept(masked(model, structure, keep), inputs, reads))


@EVERY
def test_parts_are_what_reduce_sums(case: Case):
    """And they go with the unit: in another order of the units, each still consists of the same numbers."""
    model = case.model()
    structure = channels(model, case.inputs())
    values = {name: torch.randn(value.shape, dtype=torch.float64) for name, value in model.named_parameters()}
    torch.testing.assert_close({name: part.sum(1) for name, part in structure.parts(values).items()}, structure.reduce(values))
    for name, group in structure.groups.items():
        order = torch.randperm(group.size, generator=torch.Generator().manual_seed(0))
        moved = dict(permuted(model, structure, name, order.tolist()).named_parameters())
        before = structure.parts({key: value.detach() for key, value in model.named_parameters()})[name]
        after = structure.parts({key: value.detach() for key, value in moved.items()})[name]
        torch.testing.assert_close(after.sort(1).values, before[order].sort(1).values, rtol=0, atol=0)


@EVERY
def test_reduce_is_the_derivative_of_expand(case: Case):
    model, inputs = case.model(), case.inputs()
    structure = channels(model, inputs)
    values = {name: torch.randn(shape, dtype=torch.float64) for name, shape in structure.shapes.items() if name in structure.numel}
    gates = {name: torch.ones(group.size, dtype=torch.float64, requires_grad=True) for name, group in structure.groups.items()}
    if not gates:
        return
    inner = sum((values[name] * mask).sum() for name, mask in structure.expand(gates).items())
    expected = dict(zip(gates, torch.autograd.grad(inner, list(gates.values()))))
    for name, found in structure.reduce(values).items():
        torch.testing.assert_close(found, expected[name])


@EVERY
def test_finite_differences_agree(case: Case):
    structure = channels(case.model(), case.inputs())
    values = {name: torch.randn(structure.shapes[name], dtype=torch.float64) for name in structure.numel}
    found = structure.reduce(values)
    for name, group in structure.groups.items():
        ends = []
        for step in (1e-6, -1e-6):
            gates = {n: torch.ones(g.size, dtype=torch.float64) for n, g in structure.groups.items()}
            gates[name][group.size - 1] += step
            ends.append(sum((values[n] * mask).sum().item() for n, mask in structure.expand(gates).items()))
        assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(found[name][-1].item(), rel=1e-5, abs=1e-5)


@EVERY
def test_the_order_of_units_in_a_group_does_not_matter(case: Case):
    model, inputs = case.model(), case.inputs()
    structure = channels(model, inputs)
    for name, group in structure.groups.items():
        order = torch.randperm(group.size, generator=torch.Generator().manual_seed(1)).tolist()
        same(outputs(permuted(model, structure, name, order), inputs), outputs(model, inputs))


@EVERY
def test_the_counts_are_those_of_the_smaller_model(case: Case):
    model, inputs = case.model(), case.inputs()
    structure = channels(model, inputs)
    keep = random_keep(structure)
    small = cut(model, structure.kept(keep), structure.sizes(keep))
    assert structure.count(keep) == {name: value.numel() for name, value in small.named_parameters()}


@EVERY
def test_the_model_is_left_as_it_was(case: Case):
    model, inputs = case.model(), case.inputs()
    model.train()
    next(iter(model.modules())).training = True
    before, modes, state = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()], torch.get_rng_state()
    attributes = {name: dict(vars(module)) for name, module in model.named_modules()}
    channels(model, inputs)
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(value.grad is None for value in model.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            assert type(value) is type(attributes[name][key])
        assert not module._forward_hooks and not module._forward_pre_hooks


def test_all_of_a_unit_is_frozen_when_its_group_is_left_out():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    structure = channels(model, torch.randn(2, 4)).without({"0": "I say so"})
    assert list(structure.groups) == ["2"] and structure.frozen["0"].frozen == "I say so"
    keep = {"2": torch.tensor([True, False, True, True, False])}
    assert structure.count(keep) == {"0.weight": 24, "0.bias": 6, "2.weight": 18, "2.bias": 3, "4.weight": 6, "4.bias": 2}
    assert outputs(cut(model, structure.kept(keep), structure.sizes(keep)), torch.randn(2, 4))[0].shape == (2, 2)


def test_an_example_that_does_not_fit_is_named():
    with pytest.raises(BadInput, match="cannot run on the example"):
        channels(nn.Linear(4, 2), torch.randn(2, 3))


def test_inputs_may_be_named_tuples():
    class Pair(NamedTuple):
        x: Tensor
        y: Tensor

    class Adding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, pair: Pair) -> Tensor:
            return self.c(self.a(pair.x) + self.b(pair.y))

    assert {name: g.size for name, g in channels(Adding(), (Pair(torch.randn(2, 4), torch.randn(2, 4)),)).groups.items()} == {"a": 6}


def test_a_value_that_is_read_is_reported():
    case = next(case for case in CASES if case.name == "reads a value")
    assert any("reads a value at cases.py" in note for note in channels(case.model(), case.inputs()).notes)


def test_explain_names_units_coupling_and_what_is_frozen():
    case = next(case for case in CASES if case.name == "option a")
    text = channels(case.model(), case.inputs()).explain()
    assert (
        "c1: 4 units (channel)" in text
        and "through add at cases.py:" in text
        and "c3: 4 units, frozen: its size is fixed in the code and cannot follow: constant_pad_nd at cases.py:" in text
    )


def test_macs_are_those_that_torch_counts():
    from torch.utils.flop_counter import FlopCounterMode

    for case in CASES:
        if case.name in ("lstm", "gru"):  # torch's counter does not see into the fused kernel that runs on real numbers
            continue
        model, inputs = case.model(), case.inputs()
        structure = channels(model, inputs)
        keep = random_keep(structure)
        small = cut(model, structure.kept(keep), structure.sizes(keep))
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            call(small, inputs)
        batch = next(value for value in flat(inputs) if isinstance(value, Tensor)).shape[0]
        predicted = sum(number * structure.uses.get(name, 0) for name, number in structure.count(keep).items())
        assert predicted * batch == pytest.approx(counter.get_total_flops() / 2), case.name


def test_channels_without_units_are_still_a_structure():
    structure = channels(nn.Linear(3, 2), torch.randn(1, 3))
    assert (
        isinstance(structure, Channels)
        and not structure.groups
        and structure.expand({})["weight"].all()
        and structure.reduce({"weight": torch.ones(2, 3), "bias": torch.ones(2)}) == {}
    )


# kinds of units -------------------------------------------------------------------------------------------------------------------------


def attended(net: Net, x: Tensor) -> Tensor:
    q, k, v = (layer(x).view(*x.shape[:2], -1, net.dim).transpose(1, 2) for layer in (net.q, net.k, net.v))
    y = (q @ k.transpose(2, 3)).softmax(-1) @ v
    return net.out(y.transpose(1, 2).flatten(2))


def fused(net: Net, x: Tensor) -> Tensor:
    """The number of heads is in the code, so no head can go; what is within them can."""
    q, k, v = (layer(x).view(*x.shape[:2], 4, -1).transpose(1, 2) for layer in (net.q, net.k, net.v))
    y = (q @ k.transpose(2, 3)).softmax(-1) @ v
    return net.out(y.transpose(1, 2).flatten(2))


def routed(net: Net, x: Tensor) -> Tensor:
    """The best two of five experts, by their number."""
    weight, chosen = net.router(x).softmax(-1).topk(2, -1)
    into, out = net.into[chosen], net.out_of[chosen]  # (n, 2, inner, width), (n, 2, width, inner)
    y = (into @ x[:, None, :, None]).relu()
    return net.head(((out @ y)[..., 0] * weight[..., None]).sum(1))


def attention(forward: Callable[..., object]) -> Net:
    return Net(forward, q=nn.Linear(5, 12), k=nn.Linear(5, 12), v=nn.Linear(5, 12), out=nn.Linear(12, 2), dim=3)


def experts() -> Net:
    net = Net(routed, router=nn.Linear(6, 5), head=nn.Linear(6, 2))
    net.into, net.out_of = nn.Parameter(torch.randn(5, 7, 6)), nn.Parameter(torch.randn(5, 6, 7))
    return net


def recurrent(kind: type[nn.RNNBase], **options: object) -> Callable[[], Net]:
    return lambda: Net(lambda n, x: n.out(n.rnn(x)[0]), rnn=kind(5, 6, batch_first=True, **options), out=nn.LazyLinear(2))


SERIES, ROWS = torch.randn(2, 4, 5), torch.randn(8, 6)
KINDS_OF: dict[str, tuple[Callable[[], nn.Module], Tensor, dict[str, str], dict[str, str]]] = {
    # model, example, kinds by default, kinds when all are asked for
    "heads": (lambda: attention(attended), SERIES, {"q": "head"}, {"q": "head", "q#2": "head dimension"}),
    "heads in the code": (lambda: attention(fused), SERIES, {"q": "head dimension", "v": "head dimension"}, {"q": "head dimension", "v": "head dimension"}),
    "lstm": (recurrent(nn.LSTM), SERIES, {"rnn.weight_ih_l0": "hidden state"}, {"rnn.weight_ih_l0": "hidden state"}),
    "gru": (recurrent(nn.GRU), SERIES, {"rnn.weight_ih_l0": "hidden state"}, {"rnn.weight_ih_l0": "hidden state"}),
    "rnn": (recurrent(nn.RNN), SERIES, {"rnn.weight_ih_l0": "hidden state"}, {"rnn.weight_ih_l0": "hidden state"}),
    "experts": (experts, ROWS, {"into": "expert", "into#2": "channel", "out_of": "channel"}, {"into": "expert", "into#2": "channel", "out_of": "channel"}),
    "groups": (lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1, groups=4), nn.Conv2d(8, 2, 1)), torch.randn(2, 3, 4, 4),
        {"0": "group", "0#2": "within groups", "1": "within groups"}, {"0": "group", "0#2": "within groups", "1": "within groups"}),
}  # fmt: skip


def built(name: str) -> tuple[nn.Module, Tensor]:
    build, inputs, _, _ = KINDS_OF[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build()
        model(inputs)  # lazy layers
    return model.double().eval(), inputs.double()


@pytest.mark.parametrize("name", KINDS_OF)
def test_units_are_called_what_they_are(name: str):
    model, inputs = built(name)
    _, _, usual, every = KINDS_OF[name]
    assert {group: g.kind for group, g in channels(model, inputs).groups.items()} == usual
    assert {group: g.kind for group, g in channels(model, inputs, units=ALL_KINDS).groups.items()} == every


@pytest.mark.parametrize("name", KINDS_OF)
def test_of_every_kind_shrunk_equals_masked(name: str):
    model, inputs = built(name)
    structure = channels(model, inputs, exact=True, units=ALL_KINDS)
    for seed in range(3):
        keep = random_keep(structure, 0.5, seed)
        same(outputs(cut(model, structure.kept(keep), structure.sizes(keep)), inputs), outputs(masked(model, structure, keep), inputs))


@pytest.mark.parametrize("kinds", [["head"], ["head dimension"], ["head", "head dimension"], ("channel",), set(), ["hidden state"]])
def test_only_the_kinds_that_are_asked_for_may_go(kinds):
    model, inputs = built("heads")
    every, some = channels(model, inputs, units=ALL_KINDS), channels(model, inputs, units=kinds)
    assert set(some.groups) == {name for name, group in every.groups.items() if group.kind in set(kinds)}
    for name in set(every.groups) - set(some.groups):
        assert "no unit that was asked for (units=)" in some.frozen[name].frozen
    keep = random_keep(some)
    small = cut(model, some.kept(keep), some.sizes(keep))
    assert outputs(small, inputs)[0].shape == (2, 4, 2)
    assert (small.dim == 3) == ("head dimension" not in kinds)


def test_heads_by_default_are_whole_and_what_is_within_stays():
    model, inputs = built("heads")
    structure = channels(model, inputs)
    keep = {"q": torch.tensor([True, False, False, True])}
    small = cut(model, structure.kept(keep), structure.sizes(keep))
    kept = torch.tensor([0, 1, 2, 9, 10, 11])
    assert torch.equal(small.q.weight, model.q.weight[kept]) and torch.equal(small.out.weight, model.out.weight[:, kept])


@pytest.mark.parametrize("kinds", [["neuron"], ["head", "heads"], "heads"])
def test_an_unknown_kind_is_refused_with_those_that_there_are(kinds):
    model, inputs = built("heads")
    with pytest.raises(BadInput, match=r"no kind of unit .*Choose among channel, .*head dimension") as error:
        channels(model, inputs, units=kinds)
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_of_a_cell_with_a_projection_the_projected_states_may_go():
    """The state that a cell keeps stays, since the one that it hands on must stay the smaller."""
    model = Net(lambda n, x: n.out(n.rnn(x)[0]), rnn=nn.LSTM(5, 6, batch_first=True, proj_size=3), out=nn.Linear(3, 2)).double().eval()
    inputs = SERIES.double()
    structure = channels(model, inputs, exact=True)
    assert {name: (g.size, g.kind) for name, g in structure.groups.items()} == {"rnn.weight_hr_l0": (3, "hidden state")}
    keep = {"rnn.weight_hr_l0": torch.tensor([True, False, True])}
    small = cut(model, structure.kept(keep), structure.sizes(keep))
    assert (small.rnn.proj_size, small.rnn.hidden_size) == (2, 6)
    same(outputs(small, inputs), outputs(masked(model, structure, keep), inputs))


class Picking(nn.Module):
    """Reads what it holds at positions that it holds."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 6), nn.Linear(6, 2)
        self.register_buffer("order", torch.tensor([0, 2, 3]))

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x)[:, self.order])


def test_a_buffer_of_positions_leaves_the_other_dimensions_alone():
    assert {name: group.size for name, group in channels(Picking(), SERIES).groups.items()} == {"a": 6}


class Positions(nn.Module):
    """A table of positions, longer than the example."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(1, 16, 8))
        self.first, self.last = nn.Linear(5, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x) + self.table[:, : x.shape[1]])


def test_rows_that_the_example_does_not_reach_stay():
    structure = channels(Positions(), torch.randn(2, 9, 5))
    assert [set(group.members) for group in structure.groups.values()] == [
        {("table", 2), ("first.weight", 0), ("first.bias", 0), ("last.weight", 1)}
    ]
    assert any("for a longer input another one" in group.frozen for group in structure.frozen.values())


def test_outputs_in_a_plain_object_are_outputs():
    model = Net(lambda n, x: SimpleNamespace(logits=n.b(n.a(x).relu())), a=nn.Linear(5, 6), b=nn.Linear(6, 3))
    structure = channels(model, torch.randn(2, 5))
    assert list(structure.groups) == ["a"] and "an output" in structure.frozen["b"].frozen


class Auxiliary(nn.Module):
    """A second head that works in training only, and reads its width from the code."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.aux = nn.Linear(5, 6), nn.Linear(6, 4), nn.Linear(4, 3), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).relu()
        y = self.c(self.b(h).relu())
        return y + self.aux(h) if self.training else y


def test_what_training_needs_stays():
    structure = channels(Auxiliary(), torch.randn(2, 5))
    assert list(structure.groups) == ["b"] and structure.frozen["a"].frozen == "in training the smaller model fails"


TABLES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "its rows": lambda pos, n: pos[:n],
    "its last rows": lambda pos, n: pos[-n:],
    "with a batch in front": lambda pos, n: pos[None, :n],
    "unsqueezed": lambda pos, n: pos.unsqueeze(0)[:, :n],
    "transposed": lambda pos, n: pos.t()[:, :n].t(),
    "passed through a function": lambda pos, n: pos.relu()[:n],
    "twice, one after the other": lambda pos, n: torch.cat([pos, pos])[:n],
    "scaled by another": lambda pos, n: (pos * torch.ones(16, 1))[:n],
}


@pytest.mark.parametrize("part", TABLES.values(), ids=TABLES)
def test_rows_of_a_table_that_the_example_does_not_reach_stay(part: Callable[[Tensor, int], Tensor]):
    net = Net(lambda n, x: n.out((n.a(x) + part(n.pos, x.shape[1])).tanh()), a=nn.Linear(5, 6), out=nn.Linear(6, 2))
    net.pos = nn.Parameter(torch.randn(16, 6))
    for example, exact in ((torch.randn(2, 8, 5), True), (torch.randn(2, 8, 5), False)):
        found = sc.channels(net, example, exact=exact)
        assert [group.size for group in found.groups.values()] == [6]
        keep = random_keep(found)
        longer = torch.randn(2, 13, 5)
        small, mask = cut(net, found.kept(keep), found.sizes(keep)), masked(net, found, keep)
        torch.testing.assert_close(small(longer), mask(longer))


def test_a_square_table_keeps_both_its_sides():
    net = Net(lambda n, x: n.out(n.mix[: x.shape[1], : x.shape[1]] @ n.a(x).tanh()), a=nn.Linear(5, 6), out=nn.Linear(6, 2))
    net.mix = nn.Parameter(torch.randn(16, 16))
    assert list(sc.channels(net, torch.randn(2, 8, 5)).groups) == ["a"]


def test_one_index_left_would_vanish_in_a_squeeze():
    net = Net(lambda n, x: n.b(F.adaptive_avg_pool2d(n.a(x), 1).squeeze()), a=nn.Conv2d(3, 8, 3), b=nn.Linear(8, 2))
    x = torch.randn(2, 3, 6, 6)
    found = sc.channels(net, x, exact=True)
    assert found.groups["a"].least == 2
    plan = sc.select({"a": torch.rand(8)}, found, 0.7)
    assert sc.shrink(net, plan)(x).shape == (2, 2)
    for squeezed, least in ((lambda y: y.squeeze(-1).squeeze(-1), 1), (lambda y: y.squeeze((2, 3)), 1), (lambda y: y.squeeze(1).flatten(1), 2)):
        net = Net(lambda n, x, s=squeezed: n.b(s(F.adaptive_avg_pool2d(n.a(x), 1))), a=nn.Conv2d(3, 8, 3), b=nn.Linear(8, 2))
        assert sc.channels(net, x).groups["a"].least == least


def test_of_two_numbers_of_units_that_are_needed_the_larger_counts():
    def forward(n: Net, x: Tensor) -> Tensor:
        h = n.a(x)
        h = h / h.std(-1, keepdim=True)
        g = n.g(x)
        return n.b(h * g) + g.topk(4, -1).values.sum(-1, keepdim=True)

    found = sc.channels(Net(forward, a=nn.Linear(5, 8), g=nn.Linear(5, 8), b=nn.Linear(8, 2)), torch.randn(4, 5))
    assert found.groups["a"].least == 4


def test_a_function_that_keeps_the_model_itself_is_refused():
    """A copy would run, and train, the caller's layer."""

    def wrapped() -> nn.Module:
        net = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 2))
        old = net[0].forward
        net[0].forward = lambda *args: old(*args)
        return net

    def listed() -> nn.Module:
        net = Net(lambda n, x: n.b(n.steps[0](x)), a=nn.Linear(5, 6), b=nn.Linear(6, 2))
        net.steps = [lambda h: net.a(h).relu()]
        return net

    for net in (wrapped(), listed(), wrapped().to("meta")):
        with pytest.raises(BadInput, match=r"computes with (0|a)\.weight of the model itself"):
            channels(net, torch.randn(2, 5, device=next(net.parameters()).device))


def test_what_hides_its_code_or_cannot_be_copied_is_said():
    class Locked(nn.Linear):
        def __init__(self) -> None:
            super().__init__(5, 2)
            self.lock = threading.Lock()

    x = torch.randn(2, 5)
    compiled = torch.compile(nn.Linear(5, 2))
    for find in (channels, sc.layers):
        with pytest.raises(BadInput, match="is compiled"):
            find(compiled, x)
        with pytest.raises(BadInput, match="cannot be copied: TypeError: cannot pickle"):
            find(Locked(), x)
    scripted = Net(lambda n, x: n.c(n.s(n.a(x)).relu()), a=nn.Linear(5, 6), s=torch.jit.script(nn.Linear(6, 6)), c=nn.Linear(6, 2))
    assert any("s is a ScriptModule" in note for note in channels(scripted, x).notes)
    sc.layers(scripted, x)


def test_arguments_by_their_names_in_python_and_results_written_elsewhere():
    net = Net(lambda n, x: n.out(torch.matmul(input=n.a(x), other=n.b)), a=nn.Linear(5, 6), out=nn.Linear(4, 2))
    net.b = nn.Parameter(torch.randn(6, 4))
    assert {group.size for group in sc.channels(net, torch.randn(3, 5)).groups.values()} == {6, 4}

    def into(n: Net, x: Tensor) -> Tensor:
        y = torch.empty(len(x), 4, dtype=x.dtype, device=x.device)
        with torch.no_grad():
            torch.matmul(n.a(x), n.b, out=y)
        return n.out(y)

    net = Net(into, a=nn.Linear(5, 6), out=nn.Linear(4, 2))
    net.b = nn.Parameter(torch.randn(6, 4))
    sc.channels(net, torch.randn(3, 5))


@pytest.mark.parametrize("rows", [4, 30])
def test_distances_between_few_and_between_many(rows: int):
    net = Net(lambda n, x: n.out(torch.cdist(n.a(x), n.b(x))), a=nn.Linear(5, 6), b=nn.Linear(5, 6), out=nn.Linear(rows, 2))
    assert [group.size for group in sc.channels(net, torch.randn(2, rows, 5)).groups.values()] == [6]
