"""repair/prune_shards.py: what comes out is what memory would give, whatever happens on the way."""

from __future__ import annotations

import os
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.errors import BadInput, NothingToPrune, PlanMismatch, Unreadable
from secateur.repair import least_squares, streamed
from secateur.select import plan_of
from secateur.structure import all_kept
from secateur.surgery import with_values
from shards import NETS, all_in, layers, stored_net, tensors_in

FIRST = {"attention": ("words.weight", "it is used 2 times"), "recurrent": ("r.weight_ih_l0", "no operator that is looked into"),
         "computed": ("a.parametrizations.weight.original1", "no operator that is looked into")}  # fmt: skip
CASES = [
    ("layers", {"amount": 0.5}), ("layers", {"structure": "2:4"}), ("layers", {"structure": "2x3", "amount": 0.4}),
    ("convolutions", {"amount": 0.6}), ("convolutions", {"structure": "2:4"}), ("convolutions", {"structure": "1x2", "amount": 0.5}),
    ("attention", {"amount": 0.5}), ("attention", {"structure": "2:4"}), ("from the right", {"amount": 0.5}),
    ("from the right", {"structure": "2:4"}), ("recurrent", {"amount": 0.5}), ("computed", {"amount": 0.5}), ("keeps", {"amount": 0.5}),
]  # fmt: skip
IDS = [f"{name} {' '.join(map(str, asked.values()))}" for name, asked in CASES]


@pytest.mark.parametrize(("name", "asked"), CASES, ids=IDS)
def test_it_is_what_least_squares_in_memory_gives_for_the_same_mask(name: str, asked: dict[str, object], tmp_path: Path) -> None:
    model, build, data = stored_net(name, tmp_path / "dense")
    source, chance = all_in(tmp_path / "dense"), torch.get_rng_state()
    seen: list[tuple[int, int | None]] = []
    found = sc.prune_shards(build, tmp_path / "dense", tmp_path / "out", data, **asked, progress=lambda *done: seen.append(done))  # type: ignore[arg-type]
    assert all_in(tmp_path / "dense") == source and torch.equal(torch.get_rng_state(), chance)
    assert seen == [(number + 1, len(found.weights)) for number in range(len(found.weights))]
    assert {*all_in(tmp_path / "out")} == {*source, "secateur.json"}
    new = tensors_in(tmp_path / "out")
    assert {key: (value.shape, value.dtype) for key, value in new.items()} == {
        key: (value.shape, value.dtype) for key, value in tensors_in(tmp_path / "dense").items()
    }

    structure = sc.weights(model)
    assert found.weights.keys() | found.left.keys() == structure.groups.keys()
    keep = all_kept(structure) | {key: new[key] != 0 for key in found.weights}
    if name in FIRST:
        assert FIRST[name][1] in found.left[FIRST[name][0]]
    for key, told in found.weights.items():
        assert told["removed"] == pytest.approx(float((~keep[key]).double().mean()))
        assert told["fitted"] <= told["masked"]
    assert sum(told["fitted"] for told in found.weights.values()) < sum(told["masked"] for told in found.weights.values())
    plan = plan_of(structure, keep, {})
    with mock.patch("secateur.repair.least_squares.masks", lambda plan: {key: keep[key] for key in found.weights}):
        expected = least_squares(model, plan, data, every=False)
    wanted = {**dict(model.state_dict()), **{key: value * keep[key] if key in keep else value for key, value in expected.items()}}
    for key, value in new.items():
        torch.testing.assert_close(value, wanted[key], rtol=1e-7, atol=1e-9)

    again = build()
    assert not again.load_state_dict(new, strict=False).unexpected_keys
    repaired = with_values(model, expected)
    with torch.no_grad():
        inputs = data[0][0]  # type: ignore[index]
        torch.testing.assert_close(again.eval()(inputs), sc.mask(repaired, plan)(inputs), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("name", "dims"), [("layers", (1,)), ("from the right", (0, 1)), ("convolutions", (1,))])
def test_of_every_four_inputs_two_stay(name: str, dims: tuple[int, ...], tmp_path: Path) -> None:
    _, build, data = stored_net(name, tmp_path / "dense")
    found = sc.prune_shards(build, tmp_path / "dense", tmp_path / "out", data, structure="2:4")
    new = tensors_in(tmp_path / "out")
    for key in found.weights:
        along = 0 if key == "w" else 1  # x @ w
        assert (torch.unflatten(new[key].movedim(along, -1), -1, (-1, 4)).count_nonzero(-1) == 2).all()
    if name == "convolutions":
        assert found.left == {"0.weight": "its 2 inputs are no multiple of 4"}


class Stopped(BaseException):
    """A Ctrl-C, anywhere."""


class At:
    """What is called stops the run at the number-th call."""

    def __init__(self, number: int, call: Callable[[int], None] = lambda handle: None) -> None:
        self.left, self.call = number, call

    def __call__(self, handle: int, *others: object) -> None:
        self.left -= 1
        if self.left == 0:
            raise Stopped
        self.call(handle)


def test_stopped_wherever_it_writes_it_goes_on_and_ends_with_the_same_bytes(tmp_path: Path) -> None:
    """os.fsync is called before and behind every rename."""
    _, build, data = stored_net("convolutions", tmp_path / "dense")
    fsync, seen = os.fsync, list[int]()

    def prune(target: str, at: At) -> sc.PrunedShards:
        seen.clear()
        with mock.patch("os.fsync", at):
            return sc.prune_shards(build, tmp_path / "dense", tmp_path / target, data, 0.5, progress=lambda done, _: seen.append(done))

    calls = At(10**6, fsync)
    whole = prune("whole", calls)
    for number in range(1, 10**6 - calls.left + 1):
        with pytest.raises(Stopped):
            prune(f"out{number}", At(number, fsync))
        there = len(list((tmp_path / f"out{number}" / "parts").glob("*.safetensors")))
        found = prune(f"out{number}", At(-1, fsync))
        assert seen == [] if there == 0 and number > 6 else seen == list(range(there + 1, 4))  # what is there is not fitted again
        assert found == sc.PrunedShards(found.folder, whole.weights, whole.left)
        assert all_in(tmp_path / f"out{number}") == all_in(tmp_path / "whole")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["layers", "attention", "convolutions"])
def test_types_stay_and_stopped_at_every_weight_the_bytes_are_the_same(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    _, build, data = stored_net(name, tmp_path / "dense", dtype)
    whole = sc.prune_shards(build, tmp_path / "dense", tmp_path / "whole", data, structure="2:4")
    for _ in whole.weights:
        with pytest.raises(Stopped):
            sc.prune_shards(build, tmp_path / "dense", tmp_path / "out", data, structure="2:4", progress=At(1))
    assert sc.prune_shards(build, tmp_path / "dense", tmp_path / "out", data, structure="2:4").weights == whole.weights
    assert all_in(tmp_path / "out") == all_in(tmp_path / "whole")
    new = tensors_in(tmp_path / "out")
    assert {value.dtype for value in new.values() if value.is_floating_point()} == {dtype}
    for key in whole.weights:
        assert (torch.unflatten(new[key].movedim(1, -1), -1, (-1, 4)).count_nonzero(-1) <= 2).all()


def test_a_model_that_is_built_in_half_precision_runs_in_it(tmp_path: Path) -> None:
    _, _, data = stored_net("layers", tmp_path / "dense", torch.bfloat16)
    half: list[object] = [(inputs.bfloat16(), None) for inputs, _ in data]  # type: ignore[misc]
    found = sc.prune_shards(lambda: layers(3).bfloat16(), tmp_path / "dense", tmp_path / "out", half, amount=0.5)
    assert len(found.weights) == 6
    assert sum(told["fitted"] for told in found.weights.values()) < 0.8 * sum(told["masked"] for told in found.weights.values())


def test_a_pruned_folder_is_a_source_again_and_one_file_will_do(tmp_path: Path) -> None:
    _, build, data = stored_net("layers", tmp_path / "dense", shards=1)
    (tmp_path / "dense" / "config.json").write_text("{}")
    sc.prune_shards(build, tmp_path / "dense", tmp_path / "half", data, amount=0.5)
    found = sc.prune_shards(build, tmp_path / "half", tmp_path / "less", data, amount=0.75)
    assert {told["removed"] for told in found.weights.values()} == {0.75}
    assert {*all_in(tmp_path / "less")} == {"model.safetensors", "config.json", "secateur.json"}
    sc.prune_shards(build, tmp_path / "dense" / "model.safetensors", tmp_path / "alone", data, amount=0.5)
    assert {*all_in(tmp_path / "alone")} == {"model.safetensors", "secateur.json"}
    assert all_in(tmp_path / "alone")["model.safetensors"] == all_in(tmp_path / "half")["model.safetensors"]


KILLED = """
import os, signal, sys, torch
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import secateur as sc
from shards import NETS
folder, left, fsync = Path(sys.argv[1]), int(sys.argv[3]), os.fsync
def killing(handle):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    fsync(handle)
os.fsync = killing
torch.manual_seed(3)
data = [(NETS["layers"][1](), None) for _ in range(3)]
sc.prune_shards(NETS["layers"][0], folder / "dense", folder / sys.argv[4], data, amount=0.5)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_kill_9(tmp_path: Path) -> None:
    stored_net("layers", tmp_path / "dense", torch.float32)

    def run(target: str, left: int) -> int:
        words = (sys.executable, "-c", KILLED, str(tmp_path), str(Path(__file__).parent), str(left), target)
        return subprocess.run(words, capture_output=True, timeout=120).returncode

    assert run("whole", 10**6) == 0
    for left, there in ((1, 0), (4, 1), (7, 4), (5, 6), (5, 6)):  # the last two while it copies, and when all is there
        assert run("out", left) == -9
        assert len(list((tmp_path / "out").rglob("parts/0*"))) == there
    assert run("out", 10**6) == 0
    assert all_in(tmp_path / "out") == all_in(tmp_path / "whole")


@pytest.mark.parametrize("count", [2, 9])
def test_no_more_than_one_layer_is_in_memory(count: int, tmp_path: Path) -> None:
    """Two copies of a weight (dense, pruned) at a halt, and of the one behind it while runs go on to that."""
    NETS["many"] = (lambda: layers(count), NETS["layers"][1])
    _, build, data = stored_net("many", tmp_path / "dense", shards=count)
    alive, most, loaded = 0, 0, 0
    read = streamed.Shelf.take

    def freed(size: int) -> None:
        nonlocal alive
        alive -= size

    def take(shelf: streamed.Shelf, name: str) -> Tensor:
        nonlocal alive, most, loaded
        new = name not in shelf.held
        value = read(shelf, name)
        if new:
            alive += value.nbytes
            loaded += value.nbytes
            most = max(most, alive)
            weakref.finalize(value, freed, value.nbytes)
        return value

    with mock.patch.object(streamed.Shelf, "take", take):
        sc.prune_shards(build, tmp_path / "dense", tmp_path / "out", data, amount=0.5)
    assert alive == 0 and loaded > 4 * most / count
    assert most <= 4 * 8 * (12 * 8 + 12)


BAD: dict[str, tuple[dict[str, object], type[Exception], str]] = {
    "structure": ({"structure": "channels"}, BadInput, "no structure 'channels' for them. Choose weights, or by their sizes"),
    "nothing said": ({"amount": None}, BadInput, "How much of every weight is to leave is not said"),
    "said twice": ({"structure": "2:4"}, BadInput, "itself says how much goes"),
    "amount": ({"amount": 1.5}, BadInput, "fraction to remove, in 0..1"),
    "amount of one": ({"amount": {"up0.weight": -1}}, BadInput, "fraction to remove, in 0..1"),
    "pattern": ({"amount": {"*.mlp.*": 0.5}}, BadInput, r"No group is called '\*.mlp.\*'"),
    "keep": ({"keep": ["head"]}, BadInput, "No group is called 'head'"),
    "keep all": ({"keep": ["*"]}, NothingToPrune, r"No weight can be pruned \(up0.weight: keep=\)"),
    "no data": ({"data": []}, BadInput, "The data has no batch"),
    "other model": ({"build": lambda: layers(4)}, PlanMismatch, r"up3.weight is absent, but in the model of build\(\) \(12, 8\)"),
    "inputs": ({"data": [(torch.zeros(2, 5), None)]}, BadInput, "In batch 0 the model could not run"),
    "source": ({"source": "nowhere"}, Unreadable, "has neither model.safetensors nor"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_cannot_be_done_is_said_and_the_source_stays(what: str, tmp_path: Path) -> None:
    _, build, data = stored_net("layers", tmp_path / "dense")
    before = all_in(tmp_path / "dense")
    changed, kind, why = BAD[what]
    asked: dict[str, object] = {"build": build, "source": tmp_path / "dense", "target": tmp_path / "out", "data": data, "amount": 0.5}
    with pytest.raises(kind, match=why):
        sc.prune_shards(**asked | changed)  # type: ignore[arg-type]
    assert all_in(tmp_path / "dense") == before


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    _, build, data = stored_net("layers", tmp_path / "dense")

    def prune(target: str, amount: float = 0.5, data: list[object] = data) -> sc.PrunedShards:
        return sc.prune_shards(build, tmp_path / "dense", tmp_path / target, data, amount)

    with pytest.raises(BadInput, match="holds the weights that are read"):
        prune("dense")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(BadInput, match="is not empty, and no result of prune_shards"):
        prune("mine")
    found = prune("out")
    before = all_in(tmp_path / "out")
    with pytest.raises(BadInput, match=r"belongs to another run: its amount is 0\.5, now it is 0\.6"):
        prune("out", 0.6)
    with pytest.raises(BadInput, match="belongs to another run: its data is"):
        prune("out", data=data[:2])
    assert prune("out") == found and all_in(tmp_path / "out") == before  # nothing is left to do


def test_amounts_by_layer_and_what_is_kept(tmp_path: Path) -> None:
    model, build, data = stored_net("layers", tmp_path / "dense")
    found = sc.prune_shards(build, tmp_path / "dense", tmp_path / "out", data, {"up0.weight": 0.25, "down*": 0.75}, keep=["down2*"])
    removed = {name: told["removed"] for name, told in found.weights.items()}
    assert removed == {"up0.weight": 0.25, "down0.weight": 0.75, "down1.weight": 0.75}
    assert found.left == {"up1.weight": "amount=", "up2.weight": "amount=", "down2.weight": "keep="}
    new = tensors_in(tmp_path / "out")
    for name in found.left:
        assert torch.equal(new[name], model.state_dict()[name])


def test_blocks_that_span_groups_are_left_before_anything_is_done(tmp_path: Path) -> None:
    NETS["grouped"] = (lambda: nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 6, 3, groups=2)), lambda: torch.randn(6, 8, 4, 4))
    _, build, data = stored_net("grouped", tmp_path / "dense")
    found = sc.prune_shards(build, tmp_path / "dense", tmp_path / "out", data, amount=0.5, structure="2x1")
    assert found.left == {"2.weight": "blocks of 2 outputs span its groups of 3"} and found.weights.keys() == {"0.weight"}


def test_inputs_that_go_another_way_are_refused(tmp_path: Path) -> None:
    class Fork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x)) if len(x) > 4 else self.a(self.b(x))

    NETS["fork"] = (Fork, lambda: torch.randn(6, 8))
    _, build, data = stored_net("fork", tmp_path / "dense")
    with pytest.raises(BadInput, match="calls its weights in another order for some inputs"):
        sc.prune_shards(build, tmp_path / "dense", tmp_path / "out", [*data, (torch.randn(3, 8).double(), None)], amount=0.5)
