"""Optimizers of every kind, against loops that write their equations out."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam import Closed, Halves, by_hand
from secateur.errors import BadInput
from secateur.finetune import Tuned, finetune
from secateur.rates import RATES
from secateur.stepping import closed, in_halves, plainly, repeatable, step_of
from test_finetune import batches, net, same, shuffled, without_seconds

pytest.importorskip("accelerate")
SAM = {"rho": 0.1, "lr": 0.2, "momentum": 0.9}


def smooth() -> nn.Sequential:
    model = net().double()
    model[3].p = 0.0
    return model


def doubles() -> list[tuple[Tensor, Tensor]]:
    return [(x.double(), y) for x, y in batches()]


class Noisy(torch.optim.SGD):
    """It moves all weights, with a gradient or without."""

    def step(self, closure: Callable[[], Tensor] | None = None) -> None:  # type: ignore[override]
        super().step(closure)
        with torch.no_grad():
            for group in self.param_groups:
                for value in group["params"]:
                    value.add_(0.01)


class Bare(torch.optim.SGD):
    def step(self) -> None:  # type: ignore[override]
        super().step()


KINDS = {
    "plain": (lambda p: torch.optim.AdamW(p), plainly),
    "without a closure": (lambda p: Bare(p, lr=0.1), plainly),
    "a scheduler's": (lambda p: torch.optim.lr_scheduler.ConstantLR(torch.optim.SGD(p, lr=0.1)).optimizer, plainly),
    "lbfgs": (lambda p: torch.optim.LBFGS(p), closed),
    "sam in halves": (lambda p: Halves(p, **SAM), in_halves),
    "sam by closure": (lambda p: Closed(p, **SAM), closed),
}


@pytest.mark.parametrize(("make", "kind"), KINDS.values(), ids=KINDS)
def test_the_kind_is_seen(make, kind):
    assert step_of(make(net().parameters())) is kind


@pytest.mark.parametrize("kind", [Halves, Closed])
@pytest.mark.parametrize("rates", RATES)
def test_sharpness_aware_steps_are_the_equations(kind, rates):
    model, mask = smooth(), torch.rand(12, 6, generator=torch.Generator().manual_seed(0)) > 0.5
    model[0].weight.data.mul_(mask)
    oracle = copy.deepcopy(model).train()
    tuned = finetune(model, doubles(), F.cross_entropy, 2, optimizer=lambda p: kind(p, **SAM), rates=rates, masks={"0.weight": mask})
    losses = by_hand(oracle, doubles() * 2, F.cross_entropy, *SAM.values(), rate=lambda k: RATES[rates](k / 6), masks={"0.weight": mask})
    for name, value in oracle.state_dict().items():
        torch.testing.assert_close(tuned.model.state_dict()[name], value, rtol=1e-9, atol=1e-12)
    assert [epoch["loss"] for epoch in tuned.history] == pytest.approx([sum(losses[:3]) / 3, sum(losses[3:]) / 3])


def test_lbfgs_is_lbfgs():
    """Closures of a whole data set, as in its own manual."""
    model, data = smooth(), doubles()[:1]
    del model[1]  # no batch norm: its statistics would follow every pass of the plain loop
    oracle = copy.deepcopy(model).train()
    tuned = finetune(model, data, F.cross_entropy, 3, optimizer=lambda p: torch.optim.LBFGS(p, max_iter=4), rates="constant")
    optimizer = torch.optim.LBFGS(oracle.parameters(), max_iter=4)

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(oracle(data[0][0]), data[0][1])
        value.backward()
        return value

    losses = [optimizer.step(closure).item() for _ in range(3)]
    assert [epoch["loss"] for epoch in tuned.history] == pytest.approx(losses)
    for name, value in oracle.state_dict().items():
        torch.testing.assert_close(tuned.model.state_dict()[name], value, rtol=1e-9, atol=1e-12)


def test_all_passes_of_a_step_see_one_function():
    """Under dropout and with batch norm: the same weights give the same loss, and only the first pass moves the statistics."""
    model, (x, y) = net().train(), batches()[0]
    torch.manual_seed(3)
    run = repeatable(lambda: F.cross_entropy(model(x), y), model)
    first, statistics, chance = run(), model[1].running_mean.clone(), torch.get_rng_state()
    again = run()
    assert torch.equal(first, again) and torch.equal(model[1].running_mean, statistics) and statistics.abs().sum() > 0
    assert torch.equal(chance, torch.get_rng_state()), "and the next step has other chance"
    assert not torch.equal(F.cross_entropy(model(x), y), first)


@pytest.mark.parametrize("make", [lambda p: Noisy(p, lr=0.1), lambda p: Halves(p, **SAM), lambda p: torch.optim.LBFGS(p, max_iter=2)])
def test_masks_are_kept_at_every_step(make):
    mask, seen = torch.rand(12, 6, generator=torch.Generator().manual_seed(0)) > 0.5, []

    class Watching:
        def step(self, model: nn.Module, samples: int) -> None:
            seen.append(model[0].weight.detach().clone())

    tuned = finetune(net(), batches(), F.cross_entropy, 2, optimizer=make, masks={"0.weight": mask}, collect=Watching())
    assert len(seen) == 6 and all((weight[~mask] == 0).all() for weight in [*seen, tuned.model[0].weight])
    assert all((weight[mask] != 0).all() for weight in seen)


RESUMED: dict[str, dict[str, object]] = {
    "sam, its momentum inside": {"optimizer": lambda p: Halves(p, **SAM)},
    "sam by closure": {"optimizer": lambda p: Closed(p, **SAM)},
    "lbfgs, lists of tensors": {"optimizer": lambda p: torch.optim.LBFGS(p, max_iter=3)},
    "warm-up": {"warmup": 0.6, "rates": "constant"},
    "features": {"teacher": net(1), "features": {"0": 0.5, "2": 2.0}, "distill": 0.3},
}


@pytest.mark.parametrize("settings", RESUMED.values(), ids=RESUMED)
@pytest.mark.parametrize("at", [4, 6, 8])
def test_ctrl_c_and_then_the_same_bits(settings, at, tmp_path):
    def stopping(done: int, total: int, text: str) -> None:
        if done == at:
            raise KeyboardInterrupt

    def go(**more: object) -> Tuned:
        return finetune(net(), shuffled(), F.cross_entropy, 4, batches(1), **settings, **more)

    with pytest.raises(KeyboardInterrupt):
        go(checkpoint=tmp_path, progress=stopping)
    resumed, whole = go(checkpoint=tmp_path), go()
    assert same(resumed.model, whole.model) and same(resumed.last_model, whole.last_model)
    assert without_seconds(resumed) == without_seconds(whole) and resumed.best_epoch == whole.best_epoch


def test_scaled_gradients_are_not_for_several_passes():
    from accelerate import Accelerator

    from secateur.rates import rate_of
    from secateur.stepping import Step

    class Scaled(Accelerator):
        scaler = object()  # type: ignore[assignment]

        def __init__(self) -> None:
            pass

    class Wrapped:
        optimizer = Halves(net().parameters(), **SAM)

    with pytest.raises(BadInput, match="Take 'bf16' or 'no'"):
        Step(net(), Wrapped(), None, Scaled(), None, rate_of("cosine", 0.0))  # type: ignore[arg-type]
