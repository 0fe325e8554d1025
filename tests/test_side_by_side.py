"""repair/side_by_side.py: both models halting at every weight, and what is summed there."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from cases import Net
from repairs import made, planned
from secateur.errors import BadInput
from secateur.repair import least_squares, match_moments, side_by_side
from secateur.repair.side_by_side import HELD_BY_A_RUN, Sums
from secateur.select import plan_of
from secateur.structure import all_kept

FITS = pytest.mark.parametrize("fit", [least_squares, match_moments])


def test_sums_of_half_precision_are_not_taken_in_it() -> None:
    u, y = (torch.randn(1, 500, size, generator=torch.Generator().manual_seed(0)).half() + 8 for size in (4, 3))
    sums, expected = Sums.none(u, y), Sums.none(u, y)
    sums.add(u, y)
    expected.add(u.double(), y.double())
    torch.testing.assert_close(sums.gram, expected.gram, rtol=1e-6, atol=0)
    torch.testing.assert_close(sums.cross, expected.cross, rtol=1e-6, atol=0)


def test_sums_of_what_leaves_are_those_of_the_rows() -> None:
    """sum of |(u, 1) D - (r + u lost)|^2, summed row by row."""
    chance = torch.Generator().manual_seed(0)
    u, r, change, lost = (torch.randn(2, *size, generator=chance, dtype=torch.float64) for size in ((30, 4), (30, 3), (5, 3), (5, 3)))
    lost[:, -1] = 0
    sums = Sums.none(u, r)
    sums.add(u, r)
    left = torch.cat([u, torch.ones(2, 30, 1).double()], -1) @ change - r - u @ lost[:, :-1]
    assert sums.without(lost).error(change) == pytest.approx(float(left.square().sum()))


def test_of_much_data_only_the_first_batches_are_looked_at() -> None:
    model, data, x = made("convolutions")
    plan, asked = planned(model, x), list[int]()

    class Endless:
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            for number in itertools.count():
                asked.append(number)
                yield data[number % len(data)]

    large = 8 * 8 * (8 + 3) * 36 * HELD_BY_A_RUN  # of a batch of eight images: eight channels are read, three made
    values = least_squares(model, plan, Endless(), memory=3 * large)
    assert max(asked) == 2
    for name, value in least_squares(model, plan, data[:3]).items():
        torch.testing.assert_close(values[name], value, rtol=0, atol=0)


def test_a_model_that_goes_another_way_is_refused() -> None:
    model = Net(lambda n, x: n.c(n.b(x) if x.sum() > 0 else n.a(x)), a=nn.Linear(5, 8), b=nn.Linear(5, 8), c=nn.Linear(8, 3)).double()
    plan = sc.select({name: torch.rand(group.shape) for name, group in sc.weights(model).groups.items()}, sc.weights(model), 0.5)
    with pytest.raises(BadInput, match="in another order for some inputs"):
        least_squares(model, plan, [(sign * torch.ones(4, 5).double(), torch.zeros(4)) for sign in (1, -1)])


def test_what_is_not_finite_is_said() -> None:
    model, data, x = made("linear")
    plan = planned(model, x)
    data[1][0][0, 0] = float("inf")
    with pytest.raises(BadInput, match=r"What 0\.weight reads or makes is not finite"):
        least_squares(model, plan, data)


@FITS
def test_plan_and_data_the_wrong_way_round(fit: Callable[..., object]) -> None:
    model, data, x = made("linear")
    with pytest.raises(BadInput, match=r"second argument is the plan, but this is a list\. Give \(model, plan, data\)"):
        fit(model, data, planned(model, x))


def test_of_many_small_batches_only_so_many_are_looked_at() -> None:
    model, data, x = made("linear")
    plan, asked = planned(model, x), list[int]()
    batches = (asked.append(number) or data[number % len(data)] for number in itertools.count())
    with mock.patch.object(side_by_side, "BATCHES", 3):
        values = least_squares(model, plan, batches)
    assert max(asked) == 2
    for name, value in least_squares(model, plan, data[:3]).items():
        torch.testing.assert_close(values[name], value, rtol=0, atol=0)


@FITS
def test_of_a_model_that_draws_both_draw_the_same(fit: Callable[..., dict[str, Tensor]]) -> None:
    """So noise is not taken for something that is missing: where nothing leaves, nothing moves."""
    _, data, x = made("linear")
    noisy = Net(lambda n, x: n.c(n.b(torch.randn_like(x) + n.a(x)).relu() * torch.rand(1).double()),
                a=nn.Linear(5, 5), b=nn.Linear(5, 8), c=nn.Linear(8, 3)).double().eval()  # fmt: skip
    structure = sc.channels(noisy, x[:2])
    whole = plan_of(structure, all_kept(structure), {})
    for name, value in fit(noisy, whole, data).items():
        torch.testing.assert_close(value, noisy.get_parameter(name), rtol=0, atol=0)
    assert fit(noisy, planned(noisy, x), data)


@FITS
def test_what_modules_keep_of_a_run_is_not_another_runs(fit: Callable[..., dict[str, Tensor]]) -> None:
    """Batches of two sizes, as a last one may be."""

    def keeping(net: Net, x: Tensor) -> Tensor:
        net.skip = net.a(x).relu()
        y = net.b(net.skip)
        return net.c(y * net.skip)  # type: ignore[no-any-return]

    def passing(net: Net, x: Tensor) -> Tensor:
        skip = net.a(x).relu()
        return net.c(net.b(skip) * skip)  # type: ignore[no-any-return]

    _, data, x = made("linear")
    torch.manual_seed(0)
    layers = {"a": nn.Linear(5, 8), "b": nn.Linear(8, 8), "c": nn.Linear(8, 3)}
    kept, passed = (Net(forward, **layers).double().eval() for forward in (keeping, passing))
    plan, uneven = planned(passed, x), [*data, (data[0][0][:3], data[0][1][:3])]
    expected = fit(passed, plan, uneven)
    assert expected
    for name, value in fit(kept, plan, uneven).items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0)


@FITS
def test_a_model_without_values_is_refused(fit: Callable[..., object]) -> None:
    model, data, x = made("linear")
    plan = planned(model, x)
    with pytest.raises(BadInput, match=r"no values .* prune_shards"):
        fit(model.to("meta"), plan, data)
