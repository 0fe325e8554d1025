"""repair/stored.py: tensors in files, and copies of the files with some replaced."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from secateur.errors import Unreadable
from secateur.repair.stored import INDEX, SINGLE, copied, stored
from shards import all_in, tensors_in, write_shards

TENSORS: dict[str, Tensor] = {
    "a": torch.arange(6.0).view(2, 3), "b": torch.arange(4, dtype=torch.bfloat16), "c": torch.tensor(3), "empty": torch.zeros(0, 2),
    "d": torch.tensor([True, False]),
}  # fmt: skip


@pytest.mark.parametrize("shards", [1, 2, 3])
def test_tensors_come_back_and_a_copy_differs_by_what_is_replaced(shards: int, tmp_path: Path) -> None:
    write_shards(tmp_path / "one", TENSORS, shards)
    (tmp_path / "one" / "config.json").write_text("{}")
    before, source = all_in(tmp_path / "one"), stored(tmp_path / "one")
    assert set(source.places) == set(TENSORS)
    for name, value in TENSORS.items():
        assert torch.equal(source.read(name), value) and source.read(name).dtype == value.dtype
    (tmp_path / "two").mkdir()
    new = {"a": -TENSORS["a"], "b": TENSORS["b"] + 1}
    for name, value in new.items():
        save_file({name: value}, tmp_path / f"{name}.safetensors")
    copied(source, tmp_path / "two", [tmp_path / f"{name}.safetensors" for name in new])
    found = tensors_in(tmp_path / "two")
    assert found.keys() == TENSORS.keys()
    for name, value in {**TENSORS, **new}.items():
        assert torch.equal(found[name], value) and found[name].dtype == value.dtype
    assert {*all_in(tmp_path / "two")} == {*before}
    assert all_in(tmp_path / "one") == before
    source.read("a").zero_()  # a copy
    assert torch.equal(load_file(source.places["a"].file)["a"], TENSORS["a"])


def test_one_file_will_do_and_the_digest_tells_values(tmp_path: Path) -> None:
    write_shards(tmp_path / "one", TENSORS, 1)
    assert stored(tmp_path / "one" / SINGLE).digest() == stored(tmp_path / "one").digest()
    write_shards(tmp_path / "two", {**TENSORS, "a": TENSORS["a"] + 1}, 1)
    assert stored(tmp_path / "one").digest() != stored(tmp_path / "two").digest()


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match=f"has neither {SINGLE} nor {INDEX}"):
        stored(tmp_path)
    index = tmp_path / INDEX
    for content, why in (
        ("{", "is damaged"), ("[]", "is damaged"), (json.dumps({"weight_map": {"a": "../up"}}), "names '../up', which is no file"),
        (json.dumps({"weight_map": {"a": "gone.safetensors"}}), "names 'gone.safetensors'"),
    ):  # fmt: skip
        index.write_text(content)
        with pytest.raises(Unreadable, match=why):
            stored(tmp_path)
    write_shards(tmp_path / "cut", TENSORS, 1)
    path = tmp_path / "cut" / SINGLE
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(Unreadable, match="is damaged"):
        stored(tmp_path / "cut")
