"""One run of the smaller model finds every operator that does not make what the labels predict."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cases import CASES, Net
from secateur.structure.channels import ALL_KINDS, channels, gathered
from secateur.structure.cut import cut
from secateur.structure.labels import Dim
from secateur.structure.run import traced
from secateur.structure.trace import Step
from secateur.structure.trial import uneven
from secateur.structure.watch import FIXED, Fault, backward_fails, differentiate, like, like_the_trace, watch, wrong

FLAT = torch.randn(4, 5)


def whole(dim: Dim) -> int:
    return dim.shape[1]


def faults(model: nn.Module, inputs: object, backward: bool = False) -> tuple[list[Fault], list[Step]]:
    """What watching finds, with uneven parts of every group gone that the labels alone would let go."""
    trace, on_meta, given = traced(model, inputs)
    structure, numbers = gathered(model, trace, {}, False, ALL_KINDS)
    keep = uneven(structure, 0)
    gates = structure._gates(keep).numpy()
    small = cut(model, structure.kept(keep), structure.sizes(keep), on_meta)
    return watch(small, given, trace.steps, lambda dim: int(gates[numbers[trace.labels.resolve(dim)]].all(0).sum()), backward), trace.steps


def found(model: nn.Module, inputs: object = FLAT) -> list[tuple[str, tuple[int, ...]]]:
    """Operator and wrong dimensions of every fault."""
    every, steps = faults(model, inputs)
    assert all(fault.what == FIXED for fault in every)
    return [(steps[fault.step].op, fault.dims) for fault in every]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_where_all_sizes_follow_nothing_is_found(case):
    model, inputs = case.model(), case.inputs()
    structure = channels(model, inputs, units=ALL_KINDS)
    fixed = [group for group in structure.frozen.values() if group.frozen.startswith(FIXED)]
    assert bool(faults(model, inputs)[0]) == bool(fixed)


def test_several_faults_are_found_in_one_run_each_in_its_place():
    def forward(n: Net, x: Tensor) -> Tensor:
        y = n.b(n.a(x).view(-1, 6).relu()).reshape(4, 7).tanh()
        y = F.layer_norm(n.c(y), (8,)).sigmoid()
        return n.e(n.d(y).view(4, 9, 1).expand(4, 9, 2).flatten(1))

    layers = {name: nn.Linear(i, o) for name, i, o in (("a", 5, 6), ("b", 6, 7), ("c", 7, 8), ("d", 8, 9), ("e", 18, 2))}
    assert found(Net(forward, **layers)) == [
        ("aten::view", (1,)), ("aten::view", (1,)), ("aten::native_layer_norm", ()), ("aten::view", (1,)), ("aten::expand", (1,)),
    ]  # fmt: skip


REFUSED: dict[str, tuple[Callable[[Net, Tensor], Tensor], str, tuple[int, ...]]] = {
    "view": (lambda n, x: n.a(x).view(-1, 6), "aten::view", (1,)),
    "view in three": (lambda n, x: n.a(x).view(4, 2, 3).flatten(1), "aten::view", (1,)),
    "unflatten": (lambda n, x: n.a(x).unflatten(1, (6, 1)).squeeze(2), "aten::view", (1,)),
    "unflatten from the right": (lambda n, x: n.a(x).unflatten(-1, (3, 2)).flatten(1), "aten::view", (1,)),
    "expand": (lambda n, x: (n.a(x).sum(1, keepdim=True) * 0).expand(4, 6) + n.a(x), "aten::expand", (1,)),
    "broadcast": (lambda n, x: torch.broadcast_to(n.a(x), (4, 6)), "aten::expand", (1,)),
    "layer norm": (lambda n, x: F.layer_norm(n.a(x), (6,)), "aten::native_layer_norm", ()),
    "rms norm": (lambda n, x: F.rms_norm(n.a(x), (6,)), "aten::rms_norm", ()),
    "group norm": (lambda n, x: F.group_norm(n.a(x), 6), "aten::native_group_norm", ()),
    "zeros": (lambda n, x: n.a(x) + torch.zeros(4, 6, device=x.device), "aten::zeros", (1,)),
    "slice": (lambda n, x: F.pad(n.a(x)[:, :3], (0, 3)) + n.a(x), "aten::slice", (1,)),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_call_that_refuses_its_sizes_goes_on_with_the_predicted_shape(name: str):
    forward, op, dims = REFUSED[name]
    model = Net(lambda n, x: n.b(forward(n, x)).view(4, 7).tanh() @ n.last, a=nn.Linear(5, 6), b=nn.Linear(6, 7))
    model.last = nn.Parameter(torch.randn(7, 2))
    first, *others = found(model)
    assert first == (op, dims) and others[-1:] == [("aten::view", (1,))]  # the second fault is found behind the first


def test_a_model_that_catches_errors_hides_no_fault():
    def forward(n: Net, x: Tensor) -> Tensor:
        y = n.a(x)
        try:
            y = y.view(4, 6)
        except Exception:
            y = y.flatten(1)
        return n.b(y)

    assert found(Net(forward, a=nn.Linear(5, 6), b=nn.Linear(6, 2))) == [("aten::view", (1,))]


def test_an_error_that_is_no_size_of_a_view_ends_the_run_and_says_where():
    def forward(n: Net, x: Tensor) -> Tensor:
        y = n.a(x)
        if y.shape[1] != 6:
            raise KeyError("six")
        return n.b(y.relu())

    ((fault,), steps) = faults(Net(forward, a=nn.Linear(5, 6), b=nn.Linear(6, 2)), FLAT)
    assert fault.what == "the smaller model fails (KeyError) in" and steps[fault.step].op == "aten::relu" and fault.dims == ()


@pytest.mark.parametrize(
    "asked, predicted, dims",
    [
        ((2, 6), (2, 4), (1,)),
        ((3, 6), (2, 4), (0,)),  # only the first: the others may be right once that one is kept whole
        ((-1, 4), (2, 4), ()),
        ((-1, 6), (2, 4), (1,)),
        ((2, 3, 2), (2, 4), ()),
        ((), (), ()),
    ],
)
def test_the_first_dimension_of_another_size_is_at_fault(asked, predicted, dims):
    assert wrong(asked, predicted) == dims


# two ways of a run ----------------------------------------------------------------------------------------------------------------------


def against(forward: Callable[[Net, Tensor], Tensor], other: Callable[[Net, Tensor], Tensor]) -> list[Fault]:
    """A run of one model held against the steps of another, nothing removed."""
    first = Net(forward, a=nn.Linear(5, 6), b=nn.Linear(6, 2))
    trace, _, inputs = traced(first, FLAT)
    first.run = other
    return watch(cut(first, {}, {}, True), inputs, trace.steps, whole)


PLAIN: Callable[[Net, Tensor], Tensor] = lambda n, x: n.b(n.a(x).relu())


def test_steps_of_layout_may_be_left_out_or_come_in():
    moved: Callable[[Net, Tensor], Tensor] = lambda n, x: n.b(n.a(x)[:, None].expand(4, 1, 6).reshape(4, 6).t().t().relu())
    assert against(moved, PLAIN) == [] and against(PLAIN, moved) == [] and against(PLAIN, PLAIN) == []


def test_forms_of_a_view_are_one_step():
    assert against(lambda n, x: n.b(n.a(x).view(4, 6).relu()), lambda n, x: n.b(torch.ops.aten._unsafe_view(n.a(x), (4, 6)).relu())) == []


@pytest.mark.parametrize(
    "other, step",
    [
        (lambda n, x: n.b(n.a(x).tanh()), 1),  # steps are linear, relu, linear
        (lambda n, x: n.b(n.a(x).relu().relu()), 2),
        (lambda n, x: n.b(n.a(x)), 1),
        (lambda n, x: n.b(n.a(x).sin().relu()), 1),
    ],
)
def test_another_way_is_found(other: Callable[[Net, Tensor], Tensor], step: int):
    (fault,) = against(PLAIN, other)
    assert "takes another way" in fault.what and fault.step == step


def test_a_model_that_catches_errors_hides_no_other_way():
    def forward(n: Net, x: Tensor) -> Tensor:
        y = n.a(x)
        try:
            y = y.tanh()
        except Exception:
            y = y.relu()
        return n.b(y)

    (fault,) = against(PLAIN, forward)
    assert "takes another way" in fault.what


def test_a_result_of_another_size_is_found_where_it_is_made():
    (fault,) = against(PLAIN, lambda n, x: n.b(F.relu(n.a(x[:3]))))
    assert fault == Fault(0, FIXED, (0,))


# backward -------------------------------------------------------------------------------------------------------------------------------


class Backwards(torch.autograd.Function):
    """Whose derivative has a number in it."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return gradient.reshape(4, 6) * 2


class Nowhere(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        raise NotImplementedError


def behind(function: type[torch.autograd.Function]) -> Net:
    return Net(lambda n, x: n.b(function.apply(n.a(x))), a=nn.Linear(5, 6), b=nn.Linear(6, 2))


def test_a_number_in_a_derivative_is_found_only_backward():
    model = behind(Backwards)
    assert faults(model, FLAT)[0] == []
    (fault,) = faults(model, FLAT, backward=True)[0]
    assert "fails" in fault.what
    assert "backward" in channels(model, FLAT).frozen["a"].frozen


def test_a_model_without_a_derivative_is_not_to_blame():
    assert channels(behind(Nowhere), FLAT).groups["a"].size == 6


def test_a_failure_backward_is_named_and_leaves_no_gradient():
    assert backward_fails(behind(Nowhere), FLAT) == "NotImplementedError"
    model = behind(Backwards)
    assert backward_fails(model, FLAT) == "" and all(value.grad is None for value in model.parameters())


def test_what_is_differentiated_is_the_sum_of_all_that_can_be():
    seen: list[Tensor] = []
    model = nn.Linear(3, 2)
    model.weight.register_hook(lambda gradient: seen.append(gradient))
    x = torch.randn(4, 3)
    differentiate(model, {"a": model(x), "b": [x, (2 * model(x)).sum(), 3]})
    torch.testing.assert_close(sum(seen), 3 * x.sum(0).expand(2, 3))
    differentiate(model, x)  # nothing depends on a weight


# the switches ---------------------------------------------------------------------------------------------------------------------------


def test_the_switches_are_set_within_and_as_they_were_afterwards():
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(2, 2)).train()
    model[1].eval()
    torch.backends.mha.set_fastpath_enabled(True)
    torch._C._set_mkldnn_enabled(True)
    state = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError), like_the_trace(model):
        assert not torch.backends.mha.get_fastpath_enabled() and not torch._C._get_mkldnn_enabled()
        assert not model.training and torch.empty(1).device.type == "cpu"
        torch.rand(3)
        raise ZeroDivisionError
    assert torch.backends.mha.get_fastpath_enabled() and torch._C._get_mkldnn_enabled()
    assert torch.equal(torch.get_rng_state(), state) and [m.training for m in model.modules()] == [True, True, False]
    with like_the_trace(model.to("meta")):
        assert torch.empty(1).device.type == "meta"


@pytest.mark.parametrize("strides", [(20, 5, 1), (20, 1, 4), (1, 2, 8), (5, 10, 1)])
def test_what_stands_in_has_the_order_of_memory_of_what_it_stands_for(strides):
    made = like((2, 4, 5), strides, torch.float64, torch.device("meta"))
    assert made.shape == (2, 4, 5) and made.dtype == torch.float64 and made.device.type == "meta"
    order = lambda line: sorted(range(3), key=lambda d: -line[d])
    assert order(made.stride()) == order(strides) and made.untyped_storage().nbytes() == 2 * 4 * 5 * 8


class Checked(nn.Module):
    """Refuses what is not as wide as it was built."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer, self.width = nn.Linear(6, 9), nn.Linear(9, 6), (9, "of the hidden layer")

    def forward(self, x: Tensor) -> dict[str, object]:
        y = self.inner(x).relu()
        assert y.shape[-1] == self.width[0]
        return {"made": [self.outer(y) + x, None]}


def test_a_run_goes_on_behind_the_modules_that_refuse_their_sizes():
    """In one run the fault of every module is found, and the last one's, behind them."""

    def forward(n: Net, x: Tensor) -> Tensor:
        for block in n.blocks:
            x = block(x)["made"][0]
        return n.last(n.first(x).view(-1, 7))

    layers = {"blocks": nn.Sequential(*(Checked() for _ in range(5))), "first": nn.Linear(6, 7), "last": nn.Linear(7, 2)}
    trace, on_meta, given = traced(model := Net(forward, **layers), torch.randn(4, 6))
    structure, numbers = gathered(model, trace, {}, False, ALL_KINDS)
    keep = uneven(structure, 0)
    gates = structure._gates(keep).numpy()
    small = cut(model, structure.kept(keep), structure.sizes(keep), on_meta)

    def size(dim: Dim) -> int:
        return int(gates[numbers[trace.labels.resolve(dim)]].all(0).sum())

    every = watch(small, given, trace.steps, size, spans=trace.spans)
    assert [fault.what for fault in every] == ["the smaller model fails (AssertionError) in"] * 5 + [FIXED]
    assert len(watch(small, given, trace.steps, size)) == 1
    found = channels(model, torch.randn(4, 6))
    assert {name for name, group in found.frozen.items() if "AssertionError" in group.frozen} == {f"blocks.{i}.inner" for i in range(5)}
