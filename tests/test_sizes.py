"""Integers that remember where they came from."""

# ruff: noqa: E501 (a table reads by its columns)

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cases import Net
from laws import shrunk_equals_masked
from oracles import random_keep
from secateur.structure import channels
from secateur.structure.channels import ALL_KINDS
from secateur.structure.cut import cut
from secateur.structure.sizes import Remembered, origins_of, remember


def test_a_remembered_integer_calculates_like_any_other():
    n = Remembered(6, ("width", None))
    assert n == 6 and n * 2 == 12 and type(n + 2) is int and [0] * n == [0] * 6 and torch.zeros(n).shape == (6,)
    assert type(n.__reduce__()[0](*n.__reduce__()[1])) is int and copy.deepcopy(n).attribute == ("width", None)


def test_attributes_and_tuples_of_modules_are_replaced():
    norm = nn.LayerNorm((3, 4))
    remember(norm)
    assert [n.attribute for n in norm.normalized_shape] == [("normalized_shape", 0), ("normalized_shape", 1)]


def test_the_sizes_among_a_calls_arguments_are_found_in_their_order():
    a, b = Remembered(2, ("heads", None)), Remembered(3, ("dim", None))
    x = torch.zeros(6)
    assert [o.value.attribute[0] for o in origins_of(torch.Tensor.view, (x, a, b), {})] == ["heads", "dim"]
    assert [o.value.attribute[0] for o in origins_of(F.layer_norm, (x, (b,)), {"eps": a})] == ["dim"]
    assert origins_of(torch.conv2d, (x, x, x, a, b), {}) == []  # stride and padding are no sizes


class Kept(nn.Module):
    """The same width is used by two views: both must be able to follow."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 6
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x).view(-1, self.width).relu()
        return self.c(self.b(x).view(-1, self.width).relu())


def test_an_attribute_that_sets_two_sizes_ties_them():
    model = Kept()
    structure = channels(model, torch.randn(3, 4))
    assert {name: group.size for name, group in structure.groups.items()} == {"a": 6}
    keep = {"a": torch.tensor([True, True, False, True, False, True])}
    assert structure.sizes(keep) == {"width": 4}
    small = cut(model, structure.kept(keep), structure.sizes(keep))
    assert small.width == 4 and small(torch.randn(3, 4)).shape == (3, 2) and model.width == 6


def test_products_and_whole_quotients_remember_what_they_are_made_of():
    heads, dim = Remembered(4, ("heads", None)), Remembered(3, ("dim", None))
    for made, how in ((heads * dim, ("*", 4, 3)), (2 * heads, ("*", 4, 2)), (heads * 2, ("*", 4, 2)), (heads // 2, ("//", 4, 2))):
        assert isinstance(made, Remembered) and made.made == how and made.attribute is None
    assert (2 * (heads * dim)).made[1].made == ("*", 4, 3)
    for made in (heads // 3, 12 // heads, heads % 3, heads + dim, heads - 1, -heads, heads**2):
        assert type(made) is int
    assert (heads // 3, 13 // heads, heads % 3, heads / 8, heads * 0.5, 7 - heads) == (1, 3, 1, 0.5, 2.0, 3)
    assert torch.equal(heads * torch.ones(2), torch.full((2,), 4.0)) and heads * [0] == [0] * 4 and heads * "a" == "aaaa"


def test_keys_are_equal_for_what_will_always_be_equal():
    a, again, b = Remembered(4, ("a", None)), Remembered(4, ("a", None)), Remembered(4, ("b", None))
    first, second = Remembered(4, ("sizes", 0)), Remembered(4, ("sizes", 1))
    assert (
        a.key() == again.key()
        and (a * 2).key() == (again * 2).key()
        and (a * b).key() == (again * b).key()
        and (a // 2).key() == (again // 2).key()
    )
    different = [a, b, first, second, a * 2, a // 2, a * b, a * 1, b * 2]
    assert len({value.key() for value in different}) == len(different)


def test_lists_keep_being_lists_and_what_is_no_size_is_left_alone():
    module = nn.Module()
    module.sizes, module.pair, module.mixed, module.flag, module.one, module.empty = [3, 4], (5, 6), [1, "a"], True, 1, []
    remember(module)
    assert type(module.sizes) is list and [n.attribute for n in module.sizes] == [("sizes", 0), ("sizes", 1)]
    assert type(module.pair) is tuple and module.pair[1].attribute == ("pair", 1)
    assert module.mixed == [1, "a"] and module.flag is True and type(module.one) is int and module.empty == []
    assert module.training is True


class Settings:
    def __init__(self, **values: object) -> None:
        self.__dict__.update(values)


def test_a_configuration_that_several_modules_hold_is_looked_at_once():
    settings = Settings(width=6, sizes=[2, 4], name="net", rate=0.5, _hidden=7)
    outer, inner = nn.Module(), nn.Module()
    outer.inner = inner
    outer.config = inner.config = settings
    outer.kind, outer.function, outer.counts = Settings, len, Counter(a=3)
    remember(outer)
    assert outer.config is inner.config
    assert settings.width.attribute == ("config.width", None) and settings.sizes[1].attribute == ("config.sizes", 1)
    assert type(settings._hidden) is int and settings.rate == 0.5 and outer.counts == {"a": 3} and type(outer.counts["a"]) is int


def attention(net: Net, x: torch.Tensor) -> torch.Tensor:
    """A product where heads meet again, and a quotient where they part."""
    q, k, v = (layer(x).view(*x.shape[:2], net.heads, net.width // net.heads).transpose(1, 2) for layer in (net.q, net.k, net.v))
    y = (q @ k.transpose(2, 3)).softmax(-1) @ v
    return net.out(y.transpose(1, 2).reshape(*x.shape[:2], net.width))


def by_dimension(net: Net, x: torch.Tensor) -> torch.Tensor:
    q, k, v = (layer(x).view(*x.shape[:2], net.heads, net.dim).transpose(1, 2) for layer in (net.q, net.k, net.v))
    y = (q @ k.transpose(2, 3)).softmax(-1) @ v
    return net.out(y.transpose(1, 2).reshape(*x.shape[:2], net.heads * net.dim))


def attending(forward: Callable[..., object], **sizes: int) -> Net:
    return Net(forward, q=nn.Linear(5, 12), k=nn.Linear(5, 12), v=nn.Linear(5, 12), out=nn.Linear(12, 2), **sizes)


def settled(forward: Callable[..., object], **values: object) -> Net:
    net = Net(forward, a=nn.Linear(5, 8), b=nn.Linear(8, 2))
    net.config = Settings(**values)
    return net


def halved(forward: Callable[..., object], **sizes: object) -> Net:
    net = Net(forward, a=nn.Linear(5, 8), b=nn.Linear(4, 2), c=nn.Linear(4, 2))
    for name, value in sizes.items():
        setattr(net, name, value)
    return net


def parts(net: Net, sizes: object) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: net.b((y := net.a(x).split(sizes, -1))[0]) + net.c(y[1])


ROWS: dict[str, tuple[Callable[[], nn.Module], dict[str, int], dict[str, int | tuple[int, ...]]]] = {
    # model, its units, its sizes after the first unit of every group is gone
    "a product": (lambda: attending(by_dimension, heads=4, dim=3), {"q": 4, "q#2": 3}, {"heads": 3}),
    "a quotient": (lambda: attending(attention, heads=4, width=12), {"q": 4, "q#2": 3}, {"heads": 3, "width": 9}),
    "a list": (lambda: halved(lambda n, x: parts(n, n.sizes)(x), sizes=[4, 4]), {"a": 4, "a#2": 4}, {"sizes": (3, 3)}),
    "two attributes": (lambda: halved(lambda n, x: parts(n, [n.first, n.second])(x), first=4, second=4), {"a": 4, "a#2": 4}, {"first": 3, "second": 3}),
    "one attribute twice": (lambda: halved(lambda n, x: parts(n, [n.half, n.half])(x), half=4), {"a": 4}, {"half": 3}),
    "one attribute for all": (lambda: halved(lambda n, x: parts(n, n.half)(x), half=4), {"a": 4}, {"half": 3}),
    "half of an attribute": (lambda: halved(lambda n, x: parts(n, n.width // 2)(x), width=8), {"a": 4}, {"width": 6}),
    "half of it twice": (lambda: halved(lambda n, x: parts(n, [n.width // 2, n.width // 2])(x), width=8), {"a": 4}, {"width": 6}),
    "a configuration": (lambda: settled(lambda n, x: n.b(n.a(x).view(-1, n.config.width).relu()), width=8), {"a": 8}, {"config.width": 7}),
    "a list in it": (lambda: settled(lambda n, x: n.b(n.a(x).view(-1, n.config.widths[1]).relu()), widths=[3, 8]), {"a": 8}, {"config.widths": (3, 7)}),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_sizes_made_of_attributes_follow(name: str):
    build, units, sizes = ROWS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, inputs = build().double(), torch.randn(2, 3, 5, dtype=torch.float64)
    structure = channels(model, inputs, units=ALL_KINDS)
    assert {group: g.size for group, g in structure.groups.items()} == units
    keep = {group: torch.arange(g.size) > 0 for group, g in structure.groups.items() if g.kind != "head dimension"}
    keep |= {group: torch.ones(g.size, dtype=torch.bool) for group, g in structure.groups.items() if g.kind == "head dimension"}
    assert structure.sizes(keep) == sizes
    exact = channels(model, inputs, exact=True, units=ALL_KINDS)
    for seed in range(3):
        shrunk_equals_masked(model, inputs, exact, random_keep(exact, 0.5, seed))


def test_a_quotient_shrinks_along_either_of_its_numbers():
    model = attending(attention, heads=4, width=12)
    structure = channels(model, torch.randn(2, 3, 5), units=ALL_KINDS)
    keep = {"q": torch.tensor([True, False, True, True]), "q#2": torch.tensor([False, True, True])}
    assert structure.sizes(keep) == {"heads": 3, "width": 6}
    small = cut(model, structure.kept(keep), structure.sizes(keep))
    assert small.q.weight.shape == (6, 5) and small(torch.randn(2, 3, 5)).shape == (2, 3, 2)
