"""repair/parts.py: what is there is taken, what is damaged is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from secateur.errors import BadInput, Unreadable
from secateur.repair.parts import PARTS, Parts
from secateur.repair.stored import FACTS, stored
from shards import all_in, tensors_in, write_shards


def test_a_part_stands_for_the_tensor_until_all_is_there(tmp_path: Path) -> None:
    write_shards(tmp_path / "dense", {"a": torch.ones(2), "b": torch.ones(3)})
    source = stored(tmp_path / "dense")
    parts = Parts(tmp_path / "out", source, {"amount": 0.5})
    assert torch.equal(parts.read("a"), torch.ones(2)) and parts.done == {} and parts.left is None
    parts.add(0, "a", {"a": torch.zeros(2)}, {"removed": 1.0})
    again = Parts(tmp_path / "out", source, {"amount": 0.5})
    assert torch.equal(again.read("a"), torch.zeros(2)) and torch.equal(again.read("b"), torch.ones(3)) and again.done == parts.done
    again.finish({"b": "why"})
    assert torch.equal(tensors_in(tmp_path / "out")["a"], torch.zeros(2)) and not (tmp_path / "out" / PARTS).exists()
    finished = Parts(tmp_path / "out", source, {"amount": 0.5})
    assert (finished.done, finished.left) == ({"a": {"removed": 1.0}}, {"b": "why"})
    assert not [name for name in all_in(tmp_path / "out") if name.startswith((".", PARTS))]


def test_what_is_damaged_is_said(tmp_path: Path) -> None:
    write_shards(tmp_path / "dense", {"a": torch.ones(2)}, 1)
    source = stored(tmp_path / "dense")
    parts = Parts(tmp_path / "out", source, {})
    parts.add(0, "a", {"a": torch.zeros(2)}, {})
    (path,) = (tmp_path / "out" / PARTS).glob("*")
    content = path.read_bytes()
    for damaged in (content[:-1], content.replace(b"told", b"tell"), b""):
        path.write_bytes(damaged)
        with pytest.raises(Unreadable, match=r"00000\.safetensors is damaged .* Remove it: that weight is fitted again"):
            Parts(tmp_path / "out", source, {})
    (tmp_path / "out" / FACTS).write_text("{")
    with pytest.raises(BadInput, match="cannot be used"):
        Parts(tmp_path / "out", source, {})
    (tmp_path / "out" / FACTS).write_text(json.dumps({"format": "secateur shards 0"}))
    with pytest.raises(BadInput, match="its format is 'secateur shards 0', now it is 'secateur shards 1'"):
        Parts(tmp_path / "out", source, {})


def test_a_run_that_has_done_nothing_yet_gives_way(tmp_path: Path) -> None:
    """It was refused, say for what was asked; then what is asked next has the folder. One that has a part is not overrun."""
    write_shards(tmp_path / "dense", {"a": torch.ones(2)}, 1)
    source = stored(tmp_path / "dense")
    Parts(tmp_path / "out", source, {"amount": 5})
    parts = Parts(tmp_path / "out", source, {"amount": 0.5})
    parts.add(0, "a", {"a": torch.zeros(2)}, {})
    with pytest.raises(BadInput, match=r"belongs to another run: its amount is 0\.5, now it is 0\.6"):
        Parts(tmp_path / "out", source, {"amount": 0.6})
    assert Parts(tmp_path / "out", source, {"amount": 0.5}).done == {"a": {}}
