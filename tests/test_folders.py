"""A folder appears whole or not at all, whenever the process is killed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from secateur import Sensitivity, checkpoints, folders, write_sensitivity
from secateur.errors import BadInput, Unreadable
from secateur.report import Story, write_report
from secateur.table import table_of


def fill(folder: Path, word: str) -> None:
    with folders.replacing(folder) as fresh:
        for name in ("one", "two"):
            (fresh / name).write_text(word)


def words(folder: Path) -> set[str]:
    place = folders.present(folder)
    return {(place / name).read_text() for name in ("one", "two")}


def killed_at(step: int, act: Callable[[], None]) -> bool:
    """Run `act` in a process that ends, with no chance to clean up, before its `step`-th change on disk. Whether it came that far."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    left = [step]

    def dying(change: Callable[..., object]) -> Callable[..., object]:
        def changed(*args: object, **kwargs: object) -> object:
            left[0] -= 1
            if left[0] < 0:
                os._exit(9)
            return change(*args, **kwargs)

        return changed

    for name in ("rename", "mkdir", "write_text", "write_bytes", "replace"):
        setattr(Path, name, dying(getattr(Path, name)))
    os.fsync, os.unlink, os.rmdir = dying(os.fsync), dying(os.unlink), dying(os.rmdir)
    try:
        act()
    finally:
        os._exit(0)


@pytest.mark.parametrize("before", [None, "old"])
def test_a_kill_at_any_moment_leaves_the_old_or_the_new(tmp_path: Path, before: str | None):
    seen, step = set(), 0
    while True:
        parent = tmp_path / str(step)
        parent.mkdir()
        if before:
            fill(parent / "out", before)
        came = killed_at(step, lambda parent=parent: fill(parent / "out", "new"))
        if before or (parent / "out").exists():
            now = words(parent / "out")
            assert now in ({before}, {"new"})
            seen |= now
        fill(parent / "out", "later")  # and the next one finds nothing in its way, and leaves nothing lying about
        assert words(parent / "out") == {"later"} and os.listdir(parent) == ["out"]
        if not came:
            break
        step += 1
    assert step > 8 and seen == {"new", *([before] if before else [])}


def test_a_failure_leaves_no_trace(tmp_path: Path):
    fill(tmp_path / "out", "old")
    with pytest.raises(ZeroDivisionError), folders.replacing(tmp_path / "out") as fresh:
        (fresh / "one").write_text("new")
        raise ZeroDivisionError
    assert words(tmp_path / "out") == {"old"} and os.listdir(tmp_path) == ["out"]


def test_what_cannot_be_written_is_said(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="cannot be written"):
        fill(tmp_path / "file" / "out", "new")


def test_the_work_of_a_living_process_is_left_alone(tmp_path: Path):
    living, dead = (tmp_path / f".out.new-{process}-0" for process in (os.getpid(), 2**22 + 1))
    for folder in (living, dead):
        folder.mkdir()
    fill(tmp_path / "out", "new")
    assert living.exists() and not dead.exists()


def test_a_folder_that_is_not_there_is_said_to_be_so(tmp_path: Path):
    with pytest.raises(Unreadable, match="is not there"):
        folders.present(tmp_path / "out")


def test_a_text_appears_whole_or_not_at_all(tmp_path: Path):
    path, came, step = tmp_path / "text", True, 0
    while came:
        folders.write_text_atomic(path, "old")
        came = killed_at(step, lambda: folders.write_text_atomic(path, "new"))
        assert path.read_text() in ("old", "new")
        step += 1
        folders.write_text_atomic(path, "later")  # what the killed one left is gone, too
        assert path.read_text() == "later" and os.listdir(tmp_path) == ["text"]
    assert step > 3
    with pytest.raises(BadInput, match="cannot be written"):
        folders.write_text_atomic(path / "below", "new")


WRITERS: dict[str, Callable[[Path, int], None]] = {
    "s.safetensors": lambda path, count: write_sensitivity(path, Sensitivity(*[{"a": torch.ones(count)}] * 3)),
    "run.safetensors": lambda path, count: checkpoints.write(
        path.parent, checkpoints.Standing({"a": torch.ones(count)}, {}, {"": {"state": {}, "param_groups": []}}, [], {}), {}
    ),
    "report.html": lambda path, count: write_report(path, Story("x" * count, table_of({}))),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_file_of_ours_appears_whole_or_not_at_all(name: str, tmp_path: Path):
    path, size = tmp_path / name, {}
    for count in (1, 2, 3):
        WRITERS[name](path, count)
        size[count] = path.stat().st_size
    step, came = 0, True
    while came:
        WRITERS[name](path, 1)
        came = killed_at(step, lambda: WRITERS[name](path, 2))
        assert path.stat().st_size in (size[1], size[2])
        WRITERS[name](path, 3)  # and what the killed one left is gone, too
        assert path.stat().st_size == size[3] and os.listdir(tmp_path) == [name]
        step += 1
    assert step > 3
