"""Weights are found in whatever a checkpoint wraps them in, and fit the model or are refused before it is touched."""

from __future__ import annotations

import collections
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from secateur.errors import BadInput, SecateurError, Unreadable
from secateur.frontends.weights import load_weights, read_weights


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)
        self.head, self.tied = nn.Linear(2, 2, bias=False), nn.Linear(2, 2)
        self.tied.weight = self.head.weight
        self.register_buffer("positions", torch.arange(3), persistent=False)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("suffix", ["safetensors", "pt", "pth", "th", "bin"])
def test_every_kind_of_file_gives_the_state_dict(tmp_path: Path, suffix: str):
    path, state = tmp_path / f"w.{suffix}", state_of(Net())
    save_file(state, path) if suffix == "safetensors" else torch.save(collections.OrderedDict(state), path)
    assert same(read_weights(path), state)
    model = Net()
    load_weights(model, path)
    assert same(state_of(model), state) and model.tied.weight is model.head.weight


WRAPPED = {
    "state_dict": lambda state: {"state_dict": state, "epoch": 3},
    "model": lambda state: {"model": state, "optimizer": {"state": {}, "param_groups": []}},
    "nested twice": lambda state: {"model": {"state_dict": state}},
    "rather than ema": lambda state: {"ema": {name: value + 1 for name, value in state.items()}, "state_dict": state},
    "ema alone": lambda state: {"ema": state, "step": 1},
    "DataParallel": lambda state: {f"module.{name}": value for name, value in state.items()},
    "compiled": lambda state: {"net": {f"_orig_mod.module.{name}": value for name, value in state.items()}},
    "beside numbers": lambda state: {**state, "n_averaged": 3},
}


@pytest.mark.parametrize("case", WRAPPED)
def test_a_state_dict_is_found_in_what_is_around_it(tmp_path: Path, case: str):
    state = state_of(Net())
    torch.save(WRAPPED[case](state), tmp_path / "w.pt")
    assert same(read_weights(tmp_path / "w.pt"), state)


def test_a_prefix_that_only_some_names_have_is_part_of_them(tmp_path: Path):
    state = state_of(nn.ModuleDict({"module": nn.Linear(1, 1), "other": nn.Linear(1, 1)}))
    torch.save(state, tmp_path / "w.pt")
    assert same(read_weights(tmp_path / "w.pt"), state)


def test_a_model_whose_own_names_have_the_prefix_is_filled(tmp_path: Path):
    for wrapped, plain in ((nn.ModuleDict({"module": Net()}), Net()), (Net(), nn.ModuleDict({"module": Net()}))):
        torch.save(state_of(plain), tmp_path / "w.pt")
        load_weights(wrapped, tmp_path / "w.pt")
        assert all(torch.equal(a, b) for a, b in zip(wrapped.state_dict().values(), plain.state_dict().values()))


def test_buffers_may_be_missing_and_one_name_of_tied_weights_is_enough(tmp_path: Path):
    state = state_of(Net())
    for name in ("norm.running_mean", "norm.running_var", "norm.num_batches_tracked", "head.weight"):
        del state[name]
    save_file({**state, "positions": torch.zeros(3)}, tmp_path / "w.safetensors")  # a buffer that older versions saved
    model = Net()
    model.norm.running_mean.fill_(7)
    load_weights(model, tmp_path / "w.safetensors")
    assert (
        torch.equal(model.head.weight, state["tied.weight"])
        and model.norm.running_mean.eq(7).all()
        and torch.equal(model.positions, torch.arange(3))
    )


def test_the_model_keeps_its_types(tmp_path: Path):
    state = state_of(Net().half())
    save_file(state, tmp_path / "w.safetensors")
    model = Net()
    load_weights(model, tmp_path / "w.safetensors")
    assert model.conv.weight.dtype == torch.float32 and torch.equal(model.conv.weight, state["conv.weight"].float())


def test_weights_that_are_not_numbers_are_read_as_they_are(tmp_path: Path):
    state = state_of(Net())
    state["conv.bias"][0] = torch.nan
    save_file(state, tmp_path / "w.safetensors")
    load_weights(Net(), tmp_path / "w.safetensors")


MISFITS = {
    r"conv.weight is \(4, 1, 3, 3\) there, but \(2, 1, 3, 3\) in the model\. Give": {"conv.weight": torch.zeros(4, 1, 3, 3)},
    r"conv.bias is missing there \(and 1 more\)": {"conv.bias": None, "norm.weight": None},
    "extra is there, but not in the model": {"extra": torch.zeros(1)},
    "head.weight differs there from what the model ties it to": {"head.weight": torch.ones(2, 2)},
}


@pytest.mark.parametrize("said", MISFITS)
def test_the_first_misfit_is_named_and_nothing_is_changed(tmp_path: Path, said: str):
    state = {**state_of(Net()), **MISFITS[said]}
    save_file({name: value for name, value in state.items() if value is not None}, tmp_path / "w.safetensors")
    model = Net()
    before = state_of(model)
    with pytest.raises(BadInput, match=said):
        load_weights(model, tmp_path / "w.safetensors")
    assert same(state_of(model), before)


def test_a_whole_pickled_model_is_not_read(tmp_path: Path):
    torch.save(Net(), tmp_path / "w.pt")
    with pytest.raises(Unreadable, match=r"holds more than tensors.*safetensors.torch.save_file"):
        read_weights(tmp_path / "w.pt")


def test_what_holds_no_state_dict_says_what_it_holds(tmp_path: Path):
    for value, said in (({"epoch": 3, "lr": 0.1}, "a dict of epoch, lr"), ([1, 2], "a list"), (torch.zeros(2), "a Tensor"), ({}, "a dict")):
        torch.save(value, tmp_path / "w.pt")
        with pytest.raises(Unreadable, match=said):
            read_weights(tmp_path / "w.pt")
    with pytest.raises(Unreadable, match="There is no file"):
        read_weights(tmp_path / "nowhere.pt")


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_damaged_files_give_a_sentence(tmp_path: Path, suffix: str):
    path, state = tmp_path / f"w.{suffix}", state_of(Net())
    save_file(state, path) if suffix == "safetensors" else torch.save(state, path)
    whole = path.read_bytes()
    for seed in range(60):
        chance = random.Random(seed)
        place = chance.randrange(len(whole))
        changed = whole[:place] + (bytes([whole[place] ^ 1 << chance.randrange(8)]) + whole[place + 1 :] if seed % 2 else b"")
        path.write_bytes(changed)
        try:
            read_weights(path)
        except SecateurError as error:
            assert "\n" not in str(error)
