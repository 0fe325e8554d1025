"""Masks that close step by step: the mask of every step against a slow walk through the units, in loops of all optimizers."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur as sc
from secateur.cost import cost
from secateur.errors import BadInput, PlanMismatch
from secateur.select import all_of, ranked
from secateur.structure import Structure
from secateur.surgery.mask import masks
from secateur.tree import Keep, Scores
from test_api import batches, residual
from test_hold import OPTIMIZERS

STEPS = 7


def made(kind: str, amount: float = 0.5, of: str = "units", scope: str = "global") -> tuple[nn.Module, Structure, Scores, sc.Plan]:
    model, data = residual(), batches()
    structure = sc.channels(model, data[0][0]) if kind == "channels" else sc.weights(model, data[0][0])
    generator = torch.Generator().manual_seed(1)
    scores = {name: torch.rand(group.shape, generator=generator) for name, group in structure.groups.items()}
    return model, structure, scores, sc.select(scores, structure, amount, of, scope)


def slow(structure: Structure, scores: Scores, plan: sc.Plan, of: str, scope: str, share: float) -> Keep:
    """One unit after the other, the lowest first, of those that the plan removes; the whole counted after each."""
    keep = {name: torch.ones_like(mask) for name, mask in plan.keep.items()}
    ranking = ranked(scores, all_of(structure), scope, structure)
    units = sorted(
        (value, g, i, name)
        for g, (name, values) in enumerate(ranking.items())
        for i, value in enumerate(values.tolist())
        if not plan.keep[name].flatten()[i]
    )
    whole = cost(structure, keep, of)
    goal = share * (whole - cost(structure, plan.keep, of)) * (1 - 1e-12)
    for _, _, i, name in units:
        if whole - cost(structure, keep, of) >= goal and share < 1:
            break
        keep[name].view(-1)[i] = False
    return keep


@pytest.mark.parametrize("kind", ["channels", "weights"])
@pytest.mark.parametrize("schedule", ["linear", "cubic", "one-shot"])
@pytest.mark.parametrize(("of", "scope"), [("units", "global"), ("macs", "global"), ("parameters", "layer")])
def test_after_every_step_the_mask_is_that_of_the_schedules_share(kind, schedule, of, scope):
    model, structure, scores, plan = made(kind, 0.5, of, scope)
    gradual = sc.gradual(model, plan, structure, scores, STEPS, schedule)
    for step in range(1, STEPS + 1):
        gradual.step()
        expected = slow(structure, scores, plan, of, scope, sc.SCHEDULES[schedule](step / STEPS))
        assert all(torch.equal(gradual.keep[name], mask) for name, mask in expected.items())
    assert all(torch.equal(gradual.keep[name], mask) for name, mask in plan.keep.items())


@pytest.mark.parametrize("kind", ["channels", "weights"])
def test_the_mask_is_the_plan_of_the_amount_at_that_time(kind):
    """By units: what `select` makes of amount * s(t)."""
    model, structure, scores, plan = made(kind)
    gradual, size = sc.gradual(model, plan, structure, scores, STEPS, "linear"), sum(group.size for group in structure.groups.values())
    gone = size - plan.cost["units"][1]
    for step in range(1, STEPS + 1):
        gradual.step()
        now = sc.select(scores, structure, math.ceil(step / STEPS * gone - 1e-9) / size)
        assert all(torch.equal(gradual.keep[name], mask) for name, mask in now.keep.items())


def train(model: nn.Module, optimizer: torch.optim.Optimizer, gradual: sc.Gradual, steps: int) -> list[dict[str, Tensor]]:
    seen = []
    for number in range(steps):
        x, y = batches()[number % 3]
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        gradual.step()
        seen.append({name: value.detach().clone() for name, value in model.named_parameters()})
    return seen


@pytest.mark.parametrize("kind", ["channels", "weights"])
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_in_a_loop_what_is_gone_is_zero_after_every_step_whatever_the_momentum(kind, make):
    model, structure, scores, plan = made(kind)
    gradual = sc.gradual(model, plan, structure, scores, STEPS, "linear")
    seen = train(model, make(model.parameters()), gradual, STEPS + 3)
    for number, values in enumerate(seen, 1):
        keep = slow(structure, scores, plan, "units", "global", min(1.0, number / STEPS))
        for name, inside in structure.expand(keep).items():
            assert (values[name][inside == 0] == 0).all(), (number, name)
    assert any((seen[0][name][~mask] != 0).any() for name, mask in masks(plan).items() if name in seen[0]), "not all at once"
    x = batches()[0][0]
    torch.testing.assert_close(sc.shrink(model, plan).eval()(x), model.eval()(x))


def test_a_loop_is_the_loop_that_masks_by_hand():
    model, structure, scores, plan = made("channels")
    oracle = copy.deepcopy(model)
    train(model, torch.optim.SGD(model.parameters(), 0.1, 0.9), sc.gradual(model, plan, structure, scores, STEPS, "linear"), STEPS)
    optimizer, keep = torch.optim.SGD(oracle.parameters(), 0.1, 0.9), {name: torch.ones_like(mask) for name, mask in plan.keep.items()}
    for number in range(STEPS):
        x, y = batches()[number % 3]
        optimizer.zero_grad()
        F.cross_entropy(oracle(x), y).backward()
        inside = structure.expand(keep)
        for name, value in oracle.named_parameters():
            value.grad[inside[name] == 0] = 0
        optimizer.step()
        keep = slow(structure, scores, plan, "units", "global", (number + 1) / STEPS)
        with torch.no_grad():
            for name, inside in structure.expand(keep).items():
                oracle.get_parameter(name)[inside == 0] = 0
    for a, b in zip(model.parameters(), oracle.parameters()):
        assert torch.equal(a, b)


def test_whole_layers_and_a_plan_from_elsewhere():
    """Any plan will do, one by hand, too; and layers leave whole."""
    torch.manual_seed(0)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.f(x)

    model = nn.Sequential(nn.Linear(3, 4), Block(), Block(), Block(), nn.Linear(4, 2))
    structure = sc.layers(model, torch.randn(2, 3))
    scores = {name: torch.arange(float(group.size)).flip(0) for name, group in structure.groups.items()}
    plan = sc.select(scores, structure, threshold=1.5)
    gradual, x = sc.gradual(model, plan, structure, scores, 2, "linear"), torch.randn(5, 3)
    gradual.step()
    assert [int(block.f.weight.abs().sum() > 0) for block in model[1:4]] == [1, 1, 0]
    gradual.step()
    torch.testing.assert_close(sc.shrink(model, plan)(x), model(x))


def test_a_plan_that_removes_nothing_does_nothing():
    model, structure, scores, _ = made("channels")
    before = copy.deepcopy(model.state_dict())
    gradual = sc.gradual(model, sc.select(scores, structure, 0.0), structure, scores, 2)
    gradual.step(), gradual.step(), gradual.step()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_trainers_count_or_our_own():
    model, structure, scores, plan = made("channels")
    size = sum(int((~mask).sum()) for mask in plan.keep.values())
    for steps, expected in ((None, size // 2), (10, size)):
        gradual = sc.gradual(copy.deepcopy(model), plan, structure, scores, steps, "linear")
        gradual.reached(10, 20)
        assert gradual.gone == pytest.approx(expected, abs=1)
        gradual.reached(5, 20)
        assert gradual.gone == pytest.approx(expected, abs=1), "what is gone stays gone"


def test_what_does_not_fit_is_refused():
    model, structure, scores, plan = made("channels")
    less = {name: values[:-1] for name, values in scores.items()}
    for arguments, options, sentence in [
        ((nn.Linear(2, 2), plan, structure, scores), {}, "The plan was made for a model"),
        ((model, plan, sc.weights(model), scores), {}, "Use scores that were measured on this structure"),
        ((model, plan, structure, less), {}, "Use scores that were measured on this structure"),
        ((model, plan, structure, scores), {"schedule": "square"}, "There is no schedule 'square'"),
        ((model, plan, structure, scores), {"steps": 0}, "steps= must be a whole number of at least 1, but it is 0"),
        ((model, plan, structure, scores), {"schedule": lambda t: 2 * t, "steps": 1}, r"The schedule gives 2.0 at 1.00"),
        ((model, plan, structure, scores), {"schedule": lambda t: t / 2, "steps": 1}, r"The schedule gives 0.5 at 1.00"),
        ((model, plan, structure, scores), {"of": "dollars"}, "There is no cost 'dollars'"),
    ]:
        with pytest.raises((BadInput, PlanMismatch), match=sentence):
            sc.gradual(*arguments, **options).reached(1, 1)
    with pytest.raises(BadInput, match=r"Give secateur.gradual\(..., steps=\)"):
        sc.gradual(model, plan, structure, scores).step()
    with pytest.raises(BadInput, match="does not know how many steps"):
        sc.gradual(model, plan, structure, scores).reached(1, math.inf)
