"""A folder, or a file, that appears whole or not at all, whenever the process is killed.

It is written beside its place and renamed into it. Where an older folder has to make room, that one is renamed aside first; a kill
between the two renames leaves it there, and there it is found.
"""

from __future__ import annotations

import glob
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from .errors import BadInput, Unreadable


def aside(folder: Path) -> Path:
    """Where an older result is for the moment between two renames, and nothing is at any other time."""
    return folder.with_name(f".{folder.name}.old")


def present(folder: Path) -> Path:
    """The folder, or where a kill between two renames left it."""
    place = folder.expanduser().resolve()
    if not place.exists() and not aside(place).is_dir():
        raise Unreadable(f"{folder} is not there. Give the folder of a save(...) or of secateur prune --out.")
    return place if place.exists() else aside(place)


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A new folder to write into, that takes the place of `folder` in the end, or leaves no trace."""
    fresh, rest = beside(folder), beside(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        settle(folder)
        fresh.mkdir()
        yield fresh
        for path in [*fresh.iterdir(), fresh]:
            sync(path)
        if folder.exists() and any(folder.iterdir()):
            folder.rename(aside(folder))
            try:
                fresh.rename(folder)
            except BaseException:
                if not folder.exists():
                    aside(folder).rename(folder)
                raise
            aside(folder).rename(rest)
        else:
            fresh.rename(folder)
        sync(folder.parent)
    except (OSError, SafetensorError) as error:
        raise BadInput(f"{folder} cannot be written: {error}. Make room, or name a folder in a place that can.") from error
    finally:
        for path in (fresh, rest):
            shutil.rmtree(path, ignore_errors=True)


def settle(folder: Path) -> None:
    """Put in order what a killed process left: an older folder goes back if nothing took its place, the rest goes."""
    if aside(folder).is_dir() and not folder.exists():
        aside(folder).rename(folder)
    elif aside(folder).is_dir():
        rest = beside(folder)
        aside(folder).rename(rest)
        shutil.rmtree(rest, ignore_errors=True)
    remove_leftovers(folder)


def beside(place: Path) -> Path:
    """A new name next to `place` for what this process is still writing, or about to delete."""
    return place.with_name(f".{place.name}.new-{os.getpid()}-{uuid.uuid4().hex}")


def remove_leftovers(place: Path) -> None:
    """Delete what a killed process was writing; the work of one that lives is left alone."""
    for path in place.parent.glob(f".{glob.escape(place.name)}.new-*"):
        process = path.name.rsplit("-", 2)[1]
        if process.isdigit() and not lives(int(process)):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is there, but somebody else's
        return True
    return True


def write_text_atomic(path: str | Path, text: str) -> None:
    """Write a file of text that appears whole or not at all. Raises BadInput where it cannot be written."""
    write_atomic(path, text.encode())


def write_atomic(path: str | Path, content: bytes) -> None:
    """Write a file that appears whole or not at all; what a killed write left beside it goes. Raises BadInput where it cannot."""
    place = Path(path).expanduser().resolve()
    fresh = beside(place)
    try:
        remove_leftovers(place)
        fresh.write_bytes(content)
        sync(fresh)
        fresh.replace(place)
        sync(place.parent)
    except OSError as error:
        raise BadInput(f"{path} cannot be written: {error.strerror or error}. Name a file in a folder that is there and can.") from error
    finally:
        with suppress(OSError):
            fresh.unlink()


def sync(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open a folder
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
