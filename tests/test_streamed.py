"""repair/streamed.py: models whose parameters lie on disk run as they do in memory."""

from __future__ import annotations

import weakref
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from secateur.errors import BadInput, PlanMismatch
from secateur.flows.reading import Readings
from secateur.repair.stored import stored
from secateur.repair.streamed import Loading, Shelf, built, names_in, with_buffers
from secateur.task import split_batch
from shards import NETS, stored_net


@pytest.mark.parametrize("name", NETS)
def test_a_model_on_disk_gives_the_same_outputs_and_holds_nothing(name: str, tmp_path: Path) -> None:
    model, build, data = stored_net(name, tmp_path / "dense")
    files, bare = stored(tmp_path / "dense"), built(build).eval()
    names = names_in(bare, files)
    assert all(value.is_meta for value in bare.parameters())
    assert [*names] == [key for key, _ in [*model.named_parameters(), *model.named_buffers()] if key != "scale"]
    alive: list[weakref.ref[Tensor]] = []

    def load(name: str) -> Tensor:
        value = files.read(names[name][0])
        alive.append(weakref.ref(value))
        return value

    shelf, watch = Shelf(with_buffers(bare, names, files.read), load), Readings({})
    for batch in data:
        inputs, _ = split_batch(batch)
        with torch.no_grad():
            with watch, Loading(shelf, watch):
                found = bare(inputs)
            torch.testing.assert_close(found, model(inputs), rtol=1e-12, atol=1e-12)  # watched, PyTorch's attention goes another way
        watch.pending.clear()
    assert alive and all(ref() is None for ref in alive) and not shelf.held and not watch.names
    assert all(value.is_meta for value in bare.parameters())


def test_ties_stay_ties_and_what_is_made_twice_is_loaded_once(tmp_path: Path) -> None:
    _, build, _ = stored_net("attention", tmp_path / "dense")
    bare = built(build)
    assert bare.head.weight is bare.words.weight  # type: ignore[union-attr]
    shelf = Shelf(bare, stored(tmp_path / "dense").read)
    one = shelf.take("words.weight")
    assert shelf.take("words.weight") is one


def test_building_leaves_chance_and_other_modules_alone() -> None:
    before = torch.get_rng_state()
    built(lambda: nn.Linear(3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert not nn.Linear(3, 4).weight.is_meta
    with pytest.raises(RuntimeError, match="fails"):
        built(lambda: (_ for _ in ()).throw(RuntimeError("fails")))  # type: ignore[arg-type]
    assert not nn.Linear(3, 4).weight.is_meta


def test_what_cannot_be_left_on_disk_is_refused(tmp_path: Path) -> None:
    made = nn.Linear(3, 4)
    with pytest.raises(BadInput, match="build\\(\\) gave weight values"):
        built(lambda: made)
    with pytest.raises(BadInput, match="returned a int"):
        built(lambda: 3)  # type: ignore[arg-type, return-value]

    def on_meta() -> nn.Module:
        with torch.device("meta"):
            return nn.BatchNorm1d(3)

    with pytest.raises(BadInput, match="makes running_mean, a buffer, on meta"):
        built(on_meta)


def test_other_weights_are_refused_by_name(tmp_path: Path) -> None:
    stored_net("layers", tmp_path / "dense")
    files = stored(tmp_path / "dense")
    with pytest.raises(PlanMismatch, match=r"weight is absent, but in the model of build\(\) \(4, 3\)"):
        names_in(built(lambda: nn.Linear(3, 4)), files)
    with pytest.raises(PlanMismatch, match=r"up0.weight is \(12, 8\), but in the model of build\(\) \(13, 8\)"):
        names_in(built(lambda: nn.ModuleDict({"up0": nn.Linear(8, 13)})), files)
