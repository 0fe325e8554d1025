"""Cutting a copy: indices, ties, attributes, and nothing of the original."""

from __future__ import annotations

import threading
from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from cases import Net
from secateur.structure import channels
from secateur.structure.cut import attribute_of, cut, twin
from test_sizes import Settings


def test_the_kept_indices_are_taken_and_sizes_follow():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, groups=1), nn.BatchNorm2d(8), nn.ConvTranspose2d(8, 4, 2), nn.GroupNorm(2, 4))
    index = torch.tensor([1, 4, 6])
    kept = {"0.weight": (index, None, None, None), "0.bias": (index,), "2.weight": (index, None, None, None)}
    kept |= {f"1.{name}": (index,) for name in ("weight", "bias", "running_mean", "running_var")}
    small = cut(model, kept, {"3.num_groups": 1})
    assert torch.equal(small[0].weight, model[0].weight[index]) and torch.equal(small[2].weight, model[2].weight[index])
    assert (small[0].out_channels, small[1].num_features, small[2].in_channels, small[3].num_groups) == (3, 3, 3, 1)
    assert (model[0].out_channels, model[3].num_groups) == (8, 2)
    assert small(torch.randn(1, 3, 8, 8)).shape == (1, 4, 7, 7)


def test_recurrent_layers_follow_their_weights():
    model = nn.LSTM(4, 6)
    hidden = torch.tensor([0, 2, 5])
    rows = torch.cat([hidden + 6 * gate for gate in range(4)])
    kept = {"weight_ih_l0": (rows, None), "weight_hh_l0": (rows, hidden), "bias_ih_l0": (rows,), "bias_hh_l0": (rows,)}
    small = cut(model, kept, {})
    assert small.hidden_size == 3 and small(torch.randn(5, 2, 4))[0].shape == (5, 2, 3)


def test_ties_stay_ties_and_nothing_is_shared_with_the_original():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    copy = twin(model, lambda _, value: value.clone())
    assert copy[0].weight is copy[1].weight and copy[0].weight is not model[0].weight
    with torch.no_grad():
        copy[0].weight.zero_()
    assert model[0].weight.abs().sum() > 0
    assert copy[0].weight.requires_grad and not twin(model.requires_grad_(False), lambda _, v: v.clone())[0].weight.requires_grad


def test_what_a_run_left_behind_does_not_stop_the_copy():
    class Remembering(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.seen = self.a(x)
            return self.b(self.seen.relu())

    model = Remembering()
    model(torch.randn(2, 4))
    assert not model.seen.is_leaf
    copy = twin(model, lambda _, value: value.clone())
    assert torch.equal(copy.seen, model.seen) and copy.seen is not model.seen


def twin_of(model: nn.Module) -> nn.Module:
    return twin(model, lambda _, value: value.clone())


class Wide(nn.Module):
    """Has a size and no tensors."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        return x.view(-1, self.width).relu()


HOLDERS: dict[str, Callable[[nn.Module], object]] = {
    "list": lambda module: [module],
    "tuple": lambda module: ("name", module),
    "dict": lambda module: {"first": module},
    "dict by number": lambda module: {7: module},
    "list of dicts": lambda module: [{"first": [module]}],
}


def inside(value: object) -> nn.Module:
    while not isinstance(value, nn.Module):
        value = next(iter(value.values())) if isinstance(value, dict) else value[-1]  # type: ignore[index]
    return value


@pytest.mark.parametrize("kind", HOLDERS)
def test_sizes_of_modules_that_a_plain_container_holds_follow(kind: str):
    held = Wide(6)
    model = Net(lambda n, x: n.b(inside(n.held)(n.a(x))), a=nn.Linear(5, 6), b=nn.Linear(6, 2))
    model.held = HOLDERS[kind](held)
    structure = channels(model, torch.randn(3, 5))
    keep = {"a": torch.tensor([True, False, True, True, False, True])}
    assert {name: group.size for name, group in structure.groups.items()} == {"a": 6}
    (where,) = structure.sizes(keep)
    assert where.startswith("held.") and structure.sizes(keep)[where] == 4
    small = cut(model, structure.kept(keep), structure.sizes(keep))
    assert inside(small.held).width == 4 and held.width == 6 and type(small.held) is type(model.held)
    assert small(torch.randn(3, 5)).shape == (3, 2)


def test_a_module_that_is_registered_and_listed_is_one_module_in_the_copy():
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    model.order = [model[1], model[0]]
    model.by_name = {"first": model[0]}
    copy = twin_of(model)
    assert copy.order[0] is copy[1] and copy.by_name["first"] is copy[0] and copy[0] is not model[0]


def test_what_is_shared_stays_shared_and_is_no_longer_the_originals():
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    for name, value in {"cache": {"a": [1, 2], 3: {}}, "config": Settings(width=3), "listed": [[1], "a"], "kinds": {1, 2}}.items():
        model[0].__dict__[name] = model[1].__dict__[name] = value
    model[0].itself = {"deep": {}}
    model[0].itself["deep"]["back"] = model[0].itself
    copy = twin_of(model)
    for name in ("cache", "config", "listed"):
        one, other = (getattr(layer, name) for layer in copy)
        assert one is other and one is not getattr(model[0], name)
    assert copy[0].cache == {"a": [1, 2], 3: {}} and copy[0].cache["a"] is not model[0].cache["a"]
    assert copy[0].config.width == 3 and copy[0].kinds == {1, 2} and copy[0].kinds is not model[0].kinds
    assert copy[0].itself["deep"]["back"] is copy[0].itself


def test_lists_and_configurations_get_their_sizes_and_the_originals_keep_theirs():
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    model.sizes, model.pair, model[0].config = [4, 3], (4, 3), Settings(width=3, sizes=[3, 5])
    model[1].config = model[0].config
    small = cut(model, {}, {"sizes": (2, 3), "pair": (4, 2), "0.config.width": 2, "0.config.sizes": (1, 5)})
    assert (small.sizes, small.pair) == ([2, 3], (4, 2))
    assert small[1].config is small[0].config and (small[0].config.width, small[0].config.sizes) == (2, [1, 5])
    assert (model.sizes, model.pair, model[0].config.width, model[0].config.sizes) == ([4, 3], (4, 3), 3, [3, 5])
    assert attribute_of(model, "0.config.width") == 3 and attribute_of(model, "1.config.height") is None
    assert attribute_of(model, "2.config") is None and attribute_of(model, "sizes.4") is None and attribute_of(model, "pair.x.y") is None


class Described(nn.Linear):
    """Copies itself from a description, as Keras's layers do: new weights, and nothing that was set later."""

    def __reduce__(self) -> tuple[type[Described], tuple[int, int]]:
        return Described, (self.in_features, self.out_features)

    def __setstate__(self, state: object) -> None:
        raise AssertionError("there is no state in a description")


def test_modules_that_are_copied_from_a_description_keep_their_tensors_and_what_was_set():
    model = nn.Sequential(Described(4, 3), nn.ReLU(), Described(3, 2))
    model[0].note = "mine"
    assert not torch.equal(deepcopy(model)[0].weight, model[0].weight)
    copy, inputs = twin_of(model), torch.randn(5, 4)
    assert torch.equal(copy(inputs), model(inputs)) and copy[0].note == "mine" and copy[0].weight is not model[0].weight
    small = cut(
        model, {"0.weight": (torch.tensor([0, 2]), None), "0.bias": (torch.tensor([0, 2]),), "2.weight": (None, torch.tensor([0, 2]))}, {}
    )
    assert type(small[0]) is Described and small[0].out_features == 2 and small(inputs).shape == (5, 2)


class Own(nn.Module):
    """Copies itself its own way."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.copies = inner, 0

    def __deepcopy__(self, memo: dict[int, object]) -> Own:
        new = Own(deepcopy(self.inner, memo))
        new.copies = self.copies + 1
        return new


class Restored(nn.Module):
    """Forgets what can be made anew."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 3)
        self.lock = threading.Lock()  # cannot be copied

    def __getstate__(self) -> dict[str, object]:
        return {key: value for key, value in self.__dict__.items() if key != "lock"}

    def __setstate__(self, state: dict[str, object]) -> None:
        super().__setstate__(state)
        self.lock = threading.Lock()


def test_modules_with_their_own_way_of_being_copied_take_it():
    own, restored = Own(nn.Linear(4, 3)), Restored()
    copy = twin_of(own)
    assert copy.copies == 1 and torch.equal(copy.inner.weight, own.inner.weight) and copy.inner.weight is not own.inner.weight
    again = twin_of(nn.Sequential(restored))
    assert again[0].lock is not restored.lock and torch.equal(again[0].inner.weight, restored.inner.weight)


def test_each_tensor_is_asked_for_once_and_under_its_first_name():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    asked: list[str] = []
    copy = twin(model, lambda name, value: (asked.append(name), value.clone())[1])
    assert asked == [name for name, _ in [*model.named_parameters(), *model.named_buffers()]] and len(set(asked)) == len(asked)
    assert isinstance(copy[0].weight, nn.Parameter) and not isinstance(copy[1].running_mean, nn.Parameter)


def test_hooks_and_modes_come_along():
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout())
    model[1].eval()
    seen: list[nn.Module] = []
    model[0].register_forward_hook(lambda module, args, out: seen.append(module))
    copy = twin_of(model)
    copy(torch.randn(2, 3))
    assert seen == [copy[0]] and (copy.training, copy[1].training) == (True, False)


def test_tensors_of_a_run_that_lie_in_a_container_do_not_stop_the_copy():
    model = nn.Sequential(nn.Linear(4, 3))
    model.states, model.by_name = [model[0](torch.randn(2, 4))], {"last": (model[0](torch.randn(2, 4)), 1)}
    copy = twin_of(model)
    assert torch.equal(copy.states[0], model.states[0]) and torch.equal(copy.by_name["last"][0], model.by_name["last"][0])


def test_a_copy_without_values_has_the_shapes_strides_and_types():
    model = nn.Sequential(nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last), nn.BatchNorm2d(8).half())
    index = torch.tensor([1, 4, 6])
    kept = {"0.weight": (index, None, None, None), "0.bias": (index,), "1.running_mean": (index,)}
    small, same = cut(model, kept, {}, shapes_only=True), cut(model, {}, {}, shapes_only=True)
    real = cut(model, kept, {})
    for (name, value), (_, other) in zip(small.state_dict().items(), real.state_dict().items(), strict=True):
        assert value.is_meta and (value.shape, value.dtype) == (other.shape, other.dtype), name
    for (name, value), (_, other) in zip(same.state_dict().items(), model.state_dict().items(), strict=True):
        assert value.is_meta and (value.shape, value.stride(), value.dtype) == (other.shape, other.stride(), other.dtype), name
    assert small[0].out_channels == real[0].out_channels == 3
