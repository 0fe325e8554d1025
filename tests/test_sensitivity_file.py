from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from secateur.errors import BadInput, Unreadable
from secateur.measure import measure
from secateur.sensitivity import Sensitivity
from secateur.sensitivity_file import read_sensitivity, write_sensitivity
from secateur.task import Task
from toy import Hidden, batches, mlp


def toy() -> tuple[Task, Hidden]:
    model = mlp(6, 5, 4, 3)
    return Task(model, batches(6, 8, 6, 3), F.cross_entropy, seed=1), Hidden(model)


@pytest.mark.parametrize("contexts", ["batch", "class"])
@pytest.mark.parametrize("local", ["max", 0.9])
def test_a_file_gives_back_what_was_written(tmp_path: Path, contexts: str, local: str | float) -> None:
    task, structure = toy()
    measured = measure(task, structure, contexts=contexts, local=local)
    write_sensitivity(tmp_path / "s.safetensors", measured)
    again = read_sensitivity(tmp_path / "s.safetensors")
    for name in ("global_", "local", "spread", "keys", "error"):
        torch.testing.assert_close(getattr(again, name), getattr(measured, name), rtol=0, atol=0)
    for name in ("criterion", "contexts", "count", "samples", "local_by", "stability"):
        assert getattr(again, name) == getattr(measured, name)
    assert list(again.global_) == list(measured.global_) and again.needs("h0") == measured.needs("h0")
    assert os.listdir(tmp_path) == ["s.safetensors"]


def test_what_was_not_measured_is_absent(tmp_path: Path) -> None:
    write_sensitivity(tmp_path / "s", measure(*toy(), "l1"))
    again = read_sensitivity(tmp_path / "s")
    assert again.error is None and again.stability is None


def test_an_older_version_is_refused(tmp_path: Path) -> None:
    write_sensitivity(tmp_path / "s", measure(*toy()))
    with safe_open(tmp_path / "s", "pt") as file:
        told = json.loads(file.metadata()["secateur"])
    save_file(load_file(tmp_path / "s"), tmp_path / "s", {"secateur": json.dumps({**told, "version": 1})})
    with pytest.raises(Unreadable, match=r"s is of version 1, but this Secateur reads 2\. Measure again"):
        read_sensitivity(tmp_path / "s")


def test_names_may_hold_anything(tmp_path: Path) -> None:
    scores = {"a/b": torch.rand(2), "keys/ü 'x'": torch.rand(3, 1)}
    write_sensitivity(tmp_path / "s", Sensitivity(scores, scores, scores, {"x/y": scores, "": scores}))
    torch.testing.assert_close(read_sensitivity(tmp_path / "s").keys, {"x/y": scores, "": scores}, rtol=0, atol=0)


def test_a_damaged_file_is_unreadable(tmp_path: Path) -> None:
    task, structure = toy()
    path = tmp_path / "s.safetensors"
    write_sensitivity(path, measure(task, structure, contexts="class"))
    good = path.read_bytes()
    chance = torch.Generator().manual_seed(0)
    pick = lambda high: int(torch.randint(0, high, (), generator=chance))
    for _ in range(300):
        bad = bytearray(good)
        for _ in range(1 + pick(3)):
            bad[pick(len(bad))] ^= 1 + pick(255)
        path.write_bytes(bytes(bad[: pick(len(bad))] if pick(3) == 0 else bad))
        with pytest.raises(Unreadable, match=r"s\.safetensors is (damaged|of version)"):
            read_sensitivity(path)
    for content in (b"", b"\xff" * 8, (2**62).to_bytes(8, "little") + b"{}", b"\x02" + bytes(7) + b"{}"):
        path.write_bytes(content)
        with pytest.raises(Unreadable):
            read_sensitivity(path)
    with pytest.raises(Unreadable, match="does not exist"):
        read_sensitivity(tmp_path / "other")


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    task, structure = toy()
    with pytest.raises(BadInput, match="cannot be written"):
        write_sensitivity(tmp_path / "none" / "s", measure(task, structure, "l1"))
    (tmp_path / "folder").mkdir()
    with pytest.raises(BadInput, match="cannot be written"):
        write_sensitivity(tmp_path / "folder", measure(task, structure, "l1"))
    assert os.listdir(tmp_path) == ["folder"]
