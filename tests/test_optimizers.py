"""Training goes on after a cut as if nothing had been cut: shrunk == masked, through training."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from sam import Halves
from secateur.errors import BadInput, PlanMismatch
from secateur.optimizers import optimizers_in, rebind, restore
from secateur.plan import Plan
from secateur.surgery.hold import hold

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-2, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.9, centered=True),
}
KEPT = torch.tensor([0, 2, 3, 6])


def mlp(width: int = 7) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, width), nn.Tanh(), nn.Linear(width, 3)).double()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int, steps: int = 4) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        x, y = torch.randn(16, 5, generator=generator).double(), torch.randn(16, 3, generator=generator).double()
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()


def plan_for(model: nn.Module) -> Plan:
    keep = torch.zeros(7, dtype=torch.bool)
    keep[KEPT] = True
    kept = {"0.weight": (KEPT, None), "0.bias": (KEPT,), "2.weight": (None, KEPT)}
    shapes = {name: tuple(value.shape) for name, value in model.named_parameters()}
    return Plan("channels", {"hidden": keep}, kept, {"0.out_features": 4, "2.in_features": 4}, shapes, "", {})


def shrunk(model: nn.Sequential) -> nn.Sequential:
    small = mlp(4)
    with torch.no_grad():
        small[0].weight.copy_(model[0].weight[KEPT])
        small[0].bias.copy_(model[0].bias[KEPT])
        small[2].weight.copy_(model[2].weight[:, KEPT])
        small[2].bias.copy_(model[2].bias)
    return small


def masked(model: nn.Sequential) -> nn.Sequential:
    again = copy.deepcopy(model)
    rows = torch.zeros(7, 5, dtype=torch.bool)
    rows[KEPT] = True
    hold(again, {"0.weight": rows, "0.bias": rows[:, 0], "2.weight": rows[:, :1].T.expand(3, 7)})
    return again


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_shrunk_and_masked_train_alike(make):
    model = mlp()
    optimizer = make(model.parameters())
    train(model, optimizer, seed=1)
    plan, small, big = plan_for(model), shrunk(model), masked(model)
    for cut in (small, big):
        train(cut, rebind(optimizer, model, cut, plan), seed=2)
    for a, b in zip(small.parameters(), shrunk(big).parameters()):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    gone = torch.tensor([1, 4, 5])
    assert not big[0].weight[gone].any() and not big[0].bias[gone].any() and not big[2].weight[:, gone].any()


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_momentum_of_a_removed_connection_is_gone(make):
    model = mlp()
    optimizer = make(model.parameters())
    train(model, optimizer, seed=1)
    mask = torch.rand(7, 5, generator=torch.Generator().manual_seed(0)) > 0.5
    plan = Plan("weights", {"0.weight": mask}, {}, {}, plan_for(model).shapes, "", {})
    again = copy.deepcopy(model)
    hold(again, {"0.weight": mask})
    train(again, rebind(optimizer, model, again, plan), seed=2)
    assert (again[0].weight[~mask] == 0).all() and (again[0].weight[mask] != 0).all()


def test_where_nothing_is_cut_training_goes_on_bit_for_bit():
    model = mlp()
    optimizer = OPTIMIZERS["adam"](model.parameters())
    train(model, optimizer, seed=1)
    again = copy.deepcopy(model)
    rebound = rebind(optimizer, model, again, Plan("channels", {}, {}, {}, plan_for(model).shapes, "", {}))
    train(model, optimizer, seed=2)
    train(again, rebound, seed=2)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters()))


def test_groups_hyperparameters_and_foreign_parameters_are_kept():
    model, temperature = mlp(), nn.Parameter(torch.ones((), dtype=torch.float64))
    model[2].bias.requires_grad_(False)
    first = [model[0].bias, model[0].weight]
    groups = [{"params": [model[2].weight], "lr": 0.5}, {"params": first, "weight_decay": 0.1}, {"params": [temperature]}]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    temperature.square().backward()
    train(model, optimizer, seed=1, steps=1)
    small = shrunk(model)
    rebound = rebind(optimizer, model, small, plan_for(model))
    assert type(rebound) is torch.optim.SGD and rebound is not optimizer
    assert [[id(p) for p in group["params"]] for group in rebound.param_groups] == [
        [id(small[2].weight)], [id(small[0].bias), id(small[0].weight)], [id(temperature)]
    ]  # fmt: skip
    for new, old in zip(rebound.param_groups, optimizer.param_groups):
        assert {k: v for k, v in new.items() if k != "params"} == {k: v for k, v in old.items() if k != "params"}
    rebound.param_groups[0]["lr"] = 7.0
    assert optimizer.param_groups[0]["lr"] == 0.5
    momentum = optimizer.state[model[0].weight]["momentum_buffer"]
    assert torch.equal(rebound.state[small[0].weight]["momentum_buffer"], momentum[KEPT]) and len(momentum) == 7


def test_a_scheduler_of_the_old_optimizer_does_not_bind_the_new_one():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    train(model, optimizer, seed=1, steps=1)
    scheduler.step()
    small = shrunk(model)
    scheduler.optimizer = rebound = rebind(optimizer, model, small, plan_for(model))
    before, old = small[0].weight.clone(), model[0].weight.clone()
    train(small, rebound, seed=2, steps=1)
    scheduler.step()
    assert not torch.equal(small[0].weight, before) and torch.equal(model[0].weight, old)
    assert rebound.param_groups[0]["lr"] == pytest.approx(0.001)


def test_an_optimizer_in_an_optimizer_goes_along():
    """SAM, with its momentum in the SGD that it holds: shrunk and masked train alike, and the old model stays as it is."""
    model = mlp()
    optimizer = Halves(model.parameters(), 0.1, lr=0.05, momentum=0.9, weight_decay=1e-2)

    def train_sharply(model: nn.Module, optimizer: Halves, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for _ in range(4):
            x, y = torch.randn(16, 5, generator=generator).double(), torch.randn(16, 3, generator=generator).double()
            for half in (optimizer.first_step, optimizer.second_step):
                (model(x) - y).square().mean().backward()
                half(zero_grad=True)

    train_sharply(model, optimizer, seed=1)
    plan, small, big, before = plan_for(model), shrunk(model), masked(model), copy.deepcopy(model.state_dict())
    for cut in (small, big):
        rebound = rebind(optimizer, model, cut, plan)
        assert rebound.inner is not optimizer.inner and rebound.param_groups[0] is rebound.inner.param_groups[0]
        assert all("momentum_buffer" in rebound.inner.state[value] for value in cut.parameters())
        train_sharply(cut, rebound, seed=2)
    for a, b in zip(small.parameters(), shrunk(big).parameters()):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_restored_optimizer_shares_what_it_shared():
    """Groups and states stay the objects that they were, so that a rate that is set for SAM reaches the SGD in it."""
    model = mlp()
    optimizer = Halves(model.parameters(), 0.1, lr=0.05, momentum=0.9)
    states = {name: copy.deepcopy(one.state_dict()) for name, one in optimizers_in(optimizer).items()}
    assert [*states] == ["", "inner"] and states["inner"]["param_groups"][0]["momentum"] == 0.9
    states[""]["param_groups"][0]["lr"] = states["inner"]["param_groups"][0]["lr"] = 0.5
    states["inner"]["state"] = {0: {"momentum_buffer": torch.ones(7, 5, dtype=torch.float64)}}
    group, state = optimizer.param_groups[0], optimizer.inner.state
    restore(optimizer, states)
    assert optimizer.param_groups[0] is optimizer.inner.param_groups[0] is group and optimizer.inner.state is state
    assert group["lr"] == 0.5 and torch.equal(state[model[0].weight]["momentum_buffer"], torch.ones(7, 5, dtype=torch.float64))
    assert [id(value) for value in group["params"]] == [id(value) for value in model.parameters()]


def test_state_summed_over_a_dimension_is_cut_along_the_other():
    model = mlp()
    optimizer = torch.optim.Adafactor(model.parameters())
    train(model, optimizer, seed=1, steps=1)
    small = shrunk(model)
    rebound = rebind(optimizer, model, small, plan_for(model))
    old, new = optimizer.state[model[0].weight], rebound.state[small[0].weight]
    assert torch.equal(new["row_var"], old["row_var"][KEPT]) and torch.equal(new["col_var"], old["col_var"])
    train(small, rebound, seed=2, steps=1)


def test_what_does_not_fit_is_refused():
    model = mlp()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    train(model, optimizer, seed=1, steps=1)
    with pytest.raises(PlanMismatch, match=r"made for a model whose 0\.weight"):
        rebind(optimizer, mlp(6), mlp(4), plan_for(model))
    with pytest.raises(PlanMismatch, match="no parameter of the old model"):
        rebind(optimizer, copy.deepcopy(model), mlp(4), plan_for(model))
    with pytest.raises(PlanMismatch, match=r"0\.weight becomes \(4, 5\), but the new model's is \(3, 5\)"):
        rebind(optimizer, model, mlp(3), plan_for(model))
    lbfgs = torch.optim.LBFGS(model.parameters(), max_iter=2)
    x = torch.randn(4, 5, dtype=torch.float64)

    def closure() -> torch.Tensor:
        lbfgs.zero_grad()
        value = model(x).square().mean()
        value.backward()
        return value

    lbfgs.step(closure)
    with pytest.raises(BadInput, match="not known how to cut it"):
        rebind(lbfgs, model, shrunk(model), plan_for(model))
