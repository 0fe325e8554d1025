"""repair/moments.py: the mean and variance of every output as they were."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from repairs import NETS, made, planned
from secateur.repair import match_moments
from secateur.repair.moments import scale_and_shift
from secateur.repair.side_by_side import Sums
from secateur.surgery import with_values


def rows(y: Tensor) -> Tensor:
    """(samples and positions, outputs): of images along dimension 1, else the last one."""
    return (y.movedim(1, -1) if y.dim() == 4 else y).flatten(0, -2)


@pytest.mark.parametrize("name", NETS)
def test_outputs_have_the_mean_and_variance_that_they_had(name: str) -> None:
    model, data, x = made(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    plan = planned(model, x)
    values = match_moments(model, plan, data)
    repaired = with_values(model, values)
    made_now, wanted, cut = (rows(one(x).detach()) for one in (sc.shrink(repaired, plan), model, sc.shrink(model, plan)))
    torch.testing.assert_close(made_now.var(0), wanted.var(0))
    if name not in ("without bias", "matrix"):
        torch.testing.assert_close(made_now.mean(0), wanted.mean(0))
    assert not torch.allclose(cut.var(0), wanted.var(0))
    torch.testing.assert_close(rows(sc.mask(repaired, plan)(x)), made_now)
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)


@pytest.mark.parametrize("name", NETS)
def test_where_nothing_leaves_nothing_moves(name: str) -> None:
    model, data, x = made(name)
    structure = sc.channels(model, x[:2])
    plan = sc.select({group: torch.rand(group_.shape) for group, group_ in structure.groups.items()}, structure, 0.0)
    own = model.state_dict()
    for key, value in match_moments(model, plan, data).items():
        torch.testing.assert_close(value, own[key], rtol=0, atol=0)


def test_factor_and_shift_are_those_of_the_rows() -> None:
    """An output that stands still in either model keeps its factor."""
    chance = torch.Generator().manual_seed(0)
    u, r, w = (torch.randn(2, *size, generator=chance, dtype=torch.float64) for size in ((50, 4), (50, 3), (4, 3)))
    w[:, :, 1] = 0
    made_ = u @ w
    r[:, :, 2] = 0.5 - made_[:, :, 2]
    sums = Sums.none(u, r)
    sums.add(u, r)
    scale, shift = scale_and_shift(w, sums)
    dense = made_ + r
    assert scale[:, 0, 1:].eq(1).all()
    torch.testing.assert_close((made_ * scale + shift).mean(1), dense.mean(1))
    torch.testing.assert_close((made_ * scale + shift).var(1)[:, 0], dense.var(1)[:, 0])


@pytest.mark.parametrize("mean", [1.0, 1e4, 1e6])
def test_rounding_is_no_variance(mean: float) -> None:
    """Inputs that stand still: nothing is scaled, only shifted."""
    chance = torch.Generator().manual_seed(0)
    w, r = (torch.randn(1, *size, generator=chance, dtype=torch.float64) for size in ((4, 3), (200, 3)))
    u = mean * torch.rand(1, 1, 4, generator=chance, dtype=torch.float64).expand(1, 200, 4)
    sums = Sums.none(u, r)
    sums.add(u, r)
    scale, shift = scale_and_shift(w, sums)
    assert scale.eq(1).all()
    torch.testing.assert_close(shift, r.mean(1, keepdim=True))


def test_prune_takes_it_by_name() -> None:
    model, data, x = made("linear")
    labelled = [(part, torch.arange(len(part)) % 3) for part, _ in data]
    pruned = sc.prune(model, x[:2], labelled, nn.functional.cross_entropy, amount=0.4, repair="moments")  # type: ignore[arg-type]
    torch.testing.assert_close(pruned.model(x).var(0), model(x).var(0))
    assert pruned.plan.made["repair"] == "moments"
