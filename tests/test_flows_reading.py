"""flows/reading.py: which calls read, as rows of a matrix product, and in front of which sums they are fitted."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cases import Net
from secateur.flows.reading import Halting, Made, Reading, Readings, matrix_of, weight_of
from secateur.tree import Tree


def conv(a: int, b: int, **words: object) -> nn.Module:
    return nn.Conv2d(a, b, 3, padding=1, **words)  # type: ignore[arg-type]


def bn(size: int) -> nn.Module:
    norm = nn.BatchNorm2d(size)
    with torch.no_grad():
        for value in (norm.running_mean, norm.running_var, norm.weight, norm.bias):
            assert isinstance(value, Tensor)
            value.uniform_(0.5, 1.5)
    return norm


def leaves(model: nn.Module) -> Tree:
    return dict(model.named_parameters())


def found(model: nn.Module, x: Tensor) -> dict[str, Reading]:
    readings = Readings({name: None for name, _ in model.named_parameters()})
    with torch.no_grad(), readings.on(leaves(model)):
        model(x)
    return {reading.weight: reading for reading in readings.once().values()}


IMAGE, ROW = (2, 4, 6, 5), (3, 4)
NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], set[str]]] = {  # and which weights are fitted in front of a sum
    "linear": (lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)), ROW, set()),
    "residual": (lambda: Net(lambda n, x: n.a(x) + x, a=nn.Linear(4, 4)), ROW, {"a.weight"}),
    "residual, in place": (lambda: Net(lambda n, x: n.a(x).add_(x), a=nn.Linear(4, 4)), ROW, {"a.weight"}),
    "batch norm": (lambda: Net(lambda n, x: F.relu(n.n(n.a(x)) + x), a=conv(4, 4, bias=False), n=bn(4)), IMAGE, {"a.weight"}),
    "dropout": (lambda: Net(lambda n, x: x + F.dropout(n.a(x), 0.5, False), a=nn.Linear(4, 4)), ROW, {"a.weight"}),
    "scale": (lambda: Net(lambda n, x: x + n.a(x) * n.g, a=nn.Linear(4, 4), g=nn.Parameter(torch.randn(4))), ROW, {"a.weight"}),
    "a scale of channels": (
        lambda: Net(lambda n, x: x + n.a(x) * n.g, a=conv(4, 4), g=nn.Parameter(torch.randn(4, 1, 1))), IMAGE, {"a.weight"},
    ),
    "a gate of one sample": (
        lambda: Net(lambda n, x: x + n.a(x) * n.k(x).sigmoid(), a=nn.Linear(4, 4), k=nn.Linear(4, 4)), (1, 4), set(),
    ),
    "something in place": (lambda: Net(lambda n, x: n.a(x).relu_() + x, a=nn.Linear(4, 4)), ROW, set()),
    "a part in place": (lambda: Net(in_part, a=nn.Linear(4, 4)), ROW, set()),
    "a norm behind it": (lambda: Net(lambda n, x: n.n(n.a(x).relu_()), a=conv(4, 4, bias=False), n=bn(4)), IMAGE, set()),
    "twice a number": (lambda: Net(lambda n, x: x + 0.5 * n.a(x), a=nn.Linear(4, 4)), ROW, {"a.weight"}),
    "two branches": (lambda: Net(lambda n, x: n.a(x) + n.b(x), a=nn.Linear(4, 4), b=nn.Linear(4, 4)), ROW, {"b.weight"}),
    "something between": (lambda: Net(lambda n, x: n.a(x).tanh() + x, a=nn.Linear(4, 4)), ROW, set()),
    "a scale of positions": (lambda: Net(lambda n, x: x + n.a(x) * n.g, a=nn.Linear(4, 4), g=nn.Parameter(torch.randn(3, 1))), ROW, set()),
    "overwritten": (lambda: Net(overwriting, a=nn.Linear(4, 4)), ROW, set()),
    "other shapes": (lambda: Net(lambda n, x: n.a(x) + x[:, :1], a=nn.Linear(4, 4)), ROW, set()),
    "groups": (lambda: nn.Sequential(conv(4, 6, groups=2), nn.ReLU(), conv(6, 6, groups=6, stride=2)), IMAGE, set()),
    "transposed": (lambda: nn.ConvTranspose2d(4, 3, 3, 2, 1, 1), IMAGE, set()),
    "transposed, dilated": (lambda: nn.ConvTranspose2d(4, 3, (2, 3), 1, (3, 2), dilation=2), IMAGE, set()),
    "transposed, groups": (lambda: nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, groups=2), IMAGE, set()),
    "transposed, depthwise": (lambda: nn.ConvTranspose2d(4, 4, (2, 3), 1, (3, 2), groups=4, dilation=2), IMAGE, set()),
    "matrix": (lambda: Net(lambda n, x: x @ n.w + x, w=nn.Parameter(torch.randn(4, 4))), ROW, {"w"}),
}  # fmt: skip


def in_part(net: Net, x: Tensor) -> Tensor:
    y: Tensor = net.a(x)
    y[:, :2] *= 0.1
    return y + x


def overwriting(net: Net, x: Tensor) -> Tensor:
    x = x.clone()
    y = net.a(x)
    x.mul_(2)
    return y + x


@pytest.mark.parametrize("name", NETS)
def test_weights_are_fitted_in_front_of_the_sum_that_they_enter(name: str) -> None:
    build, shape, summed = NETS[name]
    torch.manual_seed(0)
    model = build().double().eval()
    weights = {key for key, value in model.named_parameters() if value.dim() > 1 and key != "g"}
    readings = found(model, torch.randn(shape, dtype=torch.float64))
    assert readings.keys() == weights
    assert {key for key, reading in readings.items() if reading.summed} == summed
    assert all(reading.mean == ("n.running_mean" if name == "batch norm" else None) for reading in readings.values())


@pytest.mark.parametrize("name", NETS)
def test_what_is_read_times_the_matrix_is_what_is_made(name: str) -> None:
    """And where a run halts, a change of the weight changes what it adds to the sum by the factor, and all that comes after."""
    build, shape, _ = NETS[name]
    torch.manual_seed(0)
    model, x = build().double().eval(), torch.randn(shape, dtype=torch.float64)
    readings, parameters, met = found(model, x), dict(model.named_parameters()), list[str]()
    expected = model(x)

    def halt(made: Made) -> None:
        reading = made.reading
        weight = parameters[reading.weight]
        met.append(reading.weight)
        assert reading.summed == (made.other is not None)
        matrix, u = matrix_of(weight, reading), made.read()
        bias = 0 if reading.bias is None else parameters[reading.bias].view(matrix.shape[0], 1, -1)
        torch.testing.assert_close(u @ matrix + bias, made.rows(made.func(*made.args, **made.kwargs)))
        some = torch.arange(made.positions)[1::2]
        torch.testing.assert_close(made.read(some) @ matrix + bias, made.rows(made.func(*made.args, **made.kwargs), some))
        torch.testing.assert_close(weight_of(matrix, weight, reading), weight)
        before, change = made.rows(made.out.clone()), torch.randn_like(matrix)
        weight += weight_of(change, weight, reading)
        torch.testing.assert_close(made.rows(made.again()) - before, u @ change * made.factor())

    by_call = {reading.call: reading for reading in readings.values()}
    with torch.no_grad(), Halting(by_call, halt).on(leaves(model)):
        changed = model(x)
    assert met == sorted(met, key=list(readings).index) and set(met) == readings.keys()
    torch.testing.assert_close(changed, model(x))
    assert not torch.allclose(changed, expected)


def test_a_weight_that_is_called_twice_is_left_out() -> None:
    model = Net(lambda n, x: n.b(n.a(n.a(x))), a=nn.Linear(4, 4), b=nn.Linear(4, 2))
    assert found(model, torch.randn(ROW)).keys() == {"b.weight"}


def test_what_two_weights_have_in_common_takes_no_shift() -> None:
    model = Net(lambda n, x: n.c(n.b(n.a(x))), a=nn.Linear(4, 4), b=nn.Linear(4, 4), c=nn.Linear(4, 2))
    model.b.bias = model.a.bias
    assert {name: reading.bias for name, reading in found(model, torch.randn(ROW)).items()} == {
        "a.weight": None, "b.weight": None, "c.weight": "c.bias",
    }  # fmt: skip
    model = Net(lambda n, x: n.n(n.b(n.n(n.a(x)))), a=conv(4, 4, bias=False), b=conv(4, 4, bias=False), n=bn(4))
    assert [reading.mean for reading in found(model.eval(), torch.randn(IMAGE)).values()] == [None, None]


@pytest.mark.parametrize("way", [lambda y: y.split(2, -1), lambda y: [y.relu()], lambda y: torch.chunk(y, 2, -1)])
def test_what_has_gone_on_to_something_else_is_let_go(way: Callable[[Tensor], list[Tensor]]) -> None:
    """Else the outputs of all layers would be held, a fused query, key and value among them."""
    model = Net(lambda n, x: n.b(torch.cat([*way(n.a(x))], -1)), a=nn.Linear(4, 4), b=nn.Linear(4, 4))
    readings = Readings({name: None for name, _ in model.named_parameters()})
    with torch.no_grad(), readings.on(leaves(model)):
        model(torch.randn(3, 4))
    assert [made.reading.weight for made in readings.pending] == ["b.weight"]  # what the model gives back
