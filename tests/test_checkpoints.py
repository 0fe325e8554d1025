"""A checkpoint holds everything, and is whole at every moment."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch
from torch import nn

from secateur import checkpoints
from secateur.checkpoints import Standing
from secateur.errors import BadInput, Unreadable


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.b = nn.Linear(4, 4)
        self.b.weight = self.a.weight
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("scratch", torch.arange(3), persistent=False)


def trained() -> tuple[nn.Module, torch.optim.Optimizer, Standing]:
    torch.manual_seed(0)
    model = Tied()
    optimizer = torch.optim.NAdam(model.parameters(), lr=0.1)
    model.norm(model.b(model.a(torch.randn(5, 4)))).square().sum().backward()
    optimizer.step()
    tensors = checkpoints.tensors_of(model)
    return model, optimizer, Standing(tensors, tensors, {"": optimizer.state_dict()}, [{"epoch": 1, "loss": 0.5}], {"scale": 2.0})


def test_what_is_written_is_read(tmp_path):
    model, optimizer, now = trained()
    checkpoints.write(tmp_path / "new" / "run", now, {"seed": 1, "pair": (1, 2)})
    again = checkpoints.read(tmp_path / "new" / "run", {"seed": 1, "pair": (1, 2)}, model, optimizer)
    assert again is not None and again.history == now.history and again.scaler == now.scaler
    assert again.model.keys() == now.model.keys() and "scratch" in again.model and "b.weight" not in again.model
    assert all(torch.equal(again.model[name], now.model[name]) and torch.equal(again.best[name], now.best[name]) for name in now.model)
    twin = torch.optim.NAdam(model.parameters(), lr=0.1)
    twin.load_state_dict(again.optimizers[""])
    for parameter in model.parameters():
        for key, value in optimizer.state[parameter].items():
            assert torch.equal(twin.state[parameter][key], value), key


def test_filling_is_the_inverse_of_taking():
    model, _, now = trained()
    other = Tied()
    checkpoints.fill(other, now.model)
    assert all(torch.equal(a, b) for a, b in zip(other.state_dict().values(), model.state_dict().values()))
    assert other.a.weight is other.b.weight


@pytest.mark.parametrize("kept", [[torch.ones(2), [1, None]], {"a": torch.arange(3), "b": {"c": 2.5}}, (True, None)], ids=str)
def test_whatever_an_optimizer_keeps_comes_back(kept, tmp_path):
    """Lists and items of tensors and numbers, under keys that are parameters' numbers or words."""
    model, optimizer, now = trained()
    states = {"state": {0: {"mine": kept}, "all": {"step": 3}}, "param_groups": optimizer.state_dict()["param_groups"]}
    checkpoints.write(tmp_path, replace(now, optimizers={"": states}), {})
    again = checkpoints.read(tmp_path, {}, model, optimizer)
    assert again is not None and again.optimizers[""]["state"].keys() == {0, "all"}
    torch.testing.assert_close(again.optimizers[""]["state"][0]["mine"], [*kept] if isinstance(kept, tuple) else kept)


def test_what_no_checkpoint_can_hold_is_named(tmp_path):
    _, optimizer, now = trained()
    states = {"state": {0: {"hook": print}}, "param_groups": optimizer.state_dict()["param_groups"]}
    with pytest.raises(BadInput, match=r"The optimizer keeps a builtin_function_or_method \(optimizer\.0\.hook\)"):
        checkpoints.write(tmp_path, replace(now, optimizers={"": states}), {})


def test_where_nothing_was_written_there_is_nothing(tmp_path):
    model, optimizer, _ = trained()
    assert checkpoints.read(tmp_path, {}, model, optimizer) is None


def test_a_write_that_is_cut_short_leaves_the_one_before(tmp_path, monkeypatch):
    model, optimizer, now = trained()
    checkpoints.write(tmp_path, now, {})

    def cut_short(*_: object) -> None:
        raise KeyboardInterrupt

    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(os, name, cut_short)
            checkpoints.write(tmp_path, Standing(now.model, now.best, now.optimizers, [], {}), {})
        again = checkpoints.read(tmp_path, {}, model, optimizer)
        assert again is not None and len(again.history) == 1


def test_other_models_and_folders_that_cannot_be_written_are_refused(tmp_path):
    model, optimizer, now = trained()
    checkpoints.write(tmp_path, now, {"seed": 1})
    with pytest.raises(Unreadable, match="its seed is 1, now it is 2"):
        checkpoints.read(tmp_path, {"seed": 2}, model, optimizer)
    with pytest.raises(Unreadable, match="its tensors are not the model's"):
        checkpoints.read(tmp_path, {"seed": 1}, nn.Linear(2, 2), optimizer)
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="cannot be written"):
        checkpoints.claim(tmp_path / "file")
