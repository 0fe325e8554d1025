"""Zeros stay zero through a user's own loop, and the model looks the same from outside."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.errors import PlanMismatch
from secateur.surgery.hold import held, hold, masks_of, zeroed

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-2),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-2, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2, weight_decay=1e-2),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=1e-2, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=1e-1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.9, weight_decay=1e-2),
}


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))


def random_masks(model: nn.Module) -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {name: torch.rand(value.shape) > 0.5 for name, value in model.named_parameters()}


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 5) -> None:
    torch.manual_seed(2)
    dtype = next(model.parameters()).dtype
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(torch.randn(8, 1, 4, 4, dtype=dtype)), torch.randint(3, (8,))).backward()
        optimizer.step()


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_zeros_stay_zero_and_the_rest_trains(make):
    model, masks = net(), random_masks(net())
    hold(model, masks)
    before = copy.deepcopy(model.state_dict())
    train(model, make(model.parameters()))
    for name, value in model.named_parameters():
        assert (value[~masks[name]] == 0).all(), name
    assert all((value != before[name])[masks[name]].any() for name, value in model.named_parameters())


def test_of_a_model_without_values_too():
    model, masks = net(), random_masks(net())
    hold(model.to("meta"), masks)
    kept = held(model)
    assert kept and all(torch.equal(kept[name], masks[name]) for name in kept)


def test_training_follows_the_projected_gradient():
    """The oracle: a plain loop that multiplies weights and gradients by the masks itself."""
    model, oracle = net(), net()
    masks = random_masks(model)
    hold(model, masks)
    with torch.no_grad():
        for name, value in oracle.named_parameters():
            value.mul_(masks[name])
    optimizers = [OPTIMIZERS["sgd"](m.parameters()) for m in (model, oracle)]
    for step in range(4):
        torch.manual_seed(step)
        x, y = torch.randn(8, 1, 4, 4), torch.randint(3, (8,))
        for m, optimizer in zip((model, oracle), optimizers):
            optimizer.zero_grad()
            F.cross_entropy(m(x), y).backward()
        for name, value in oracle.named_parameters():
            value.grad.mul_(masks[name])
        for optimizer in optimizers:
            optimizer.step()
    for a, b in zip(model.parameters(), oracle.parameters()):
        assert torch.equal(a, b)


def test_names_types_and_keys_are_unchanged():
    model, plain = net(), net()
    hold(model, random_masks(model))
    assert list(model.state_dict()) == list(plain.state_dict())
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]
    assert all(type(p) is nn.Parameter and p.is_leaf for p in model.parameters())


def test_it_survives_a_change_of_type():
    model, masks = net(), random_masks(net())
    hold(model, masks)
    model.to(torch.float64)
    train(model, OPTIMIZERS["adamw"](model.parameters()))
    assert all((value[~masks[name]] == 0).all() for name, value in model.named_parameters())


def test_a_deep_copy_is_free_until_held_again():
    model, masks = net(), random_masks(net())
    hold(model, masks)
    assert all(torch.equal(mask, masks[name]) for name, mask in held(model).items()) and held(model)
    again = copy.deepcopy(model)
    assert held(again) == {}
    hold(again, held(model))
    train(again, OPTIMIZERS["sgd"](again.parameters()))
    assert all((value[~masks[name]] == 0).all() for name, value in again.named_parameters())


def test_holding_twice_holds_both():
    model = nn.Linear(4, 1)
    a, b = torch.tensor([[True, False, True, True]]), torch.tensor([[True, True, False, True]])
    hold(model, {"weight": a})
    hold(model, {"weight": b})
    assert torch.equal(held(model)["weight"], a & b)


def test_a_frozen_parameter_is_held_when_thawed():
    model = nn.Linear(4, 2)
    model.weight.requires_grad_(False)
    masks = random_masks(model)
    hold(model, {"weight": masks["weight"]})
    assert not model.weight.requires_grad
    model.weight.requires_grad_(True)
    model(torch.randn(3, 4)).square().sum().backward()
    assert (model.weight.grad[~masks["weight"]] == 0).all() and model.weight.grad.any()


def test_an_overflowed_gradient_of_a_removed_weight_is_zero():
    model = nn.Linear(2, 1, bias=False)
    hold(model, {"weight": torch.tensor([[True, False]])})
    (model.weight * torch.tensor([[1.0, float("inf")]])).sum().backward()
    assert model.weight.grad[0, 1] == 0


def test_sparse_gradients_are_held():
    model = nn.Embedding(5, 3, sparse=True)
    mask = random_masks(model)["weight"]
    hold(model, {"weight": mask})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.tensor([0, 1, 4])).square().add(1).sum().backward()
    optimizer.step()
    assert (model.weight[~mask] == 0).all()


def test_masks_of_a_model_from_disk():
    model = net()
    hold(model, {"4.weight": random_masks(model)["4.weight"]})
    loaded = net()
    loaded.load_state_dict(model.state_dict())
    masks = masks_of(loaded)
    assert list(masks) == ["4.weight"] and torch.equal(masks["4.weight"], loaded[4].weight != 0)


def test_masks_that_are_held_one_after_the_other_add_up():
    model, first, second = net(), random_masks(net()), {name: ~mask for name, mask in random_masks(net()).items()}
    second["0.weight"] = torch.ones_like(first["0.weight"])
    second["0.weight"][0] = False
    hold(model, first), hold(model, {"0.weight": second["0.weight"]})
    assert torch.equal(held(model)["0.weight"], first["0.weight"] & second["0.weight"])
    assert len(model[0].weight._backward_hooks) == 1
    train(model, OPTIMIZERS["adamw"](model.parameters()))
    assert torch.equal(model[0].weight != 0, first["0.weight"] & second["0.weight"])


def test_what_an_optimizer_moved_is_zeroed_again():
    model, masks = net(), random_masks(net())
    hold(model, masks)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(1)
    zeroed(model)
    assert all(((value == 0) == ~masks[name]).all() for name, value in model.named_parameters() if name == "4.weight")
    assert all((value[~masks[name]] == 0).all() for name, value in model.named_parameters())


def test_masks_that_do_not_fit_are_refused_and_nothing_is_changed():
    model = nn.Linear(4, 2)
    before = model.weight.clone()
    with pytest.raises(PlanMismatch, match="mask for wieght, but the model has no such parameter"):
        hold(model, {"weight": torch.zeros(2, 4, dtype=torch.bool), "wieght": torch.ones(2, 4, dtype=torch.bool)})
    with pytest.raises(PlanMismatch, match=r"mask of weight is of shape \(4, 2\), but the parameter of \(2, 4\)"):
        hold(model, {"weight": torch.ones(4, 2, dtype=torch.bool)})
    assert torch.equal(model.weight, before)
