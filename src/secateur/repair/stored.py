"""A model's tensors in safetensors files: read one at a time, and replaced in a copy of the files, which is never in memory as a whole.

A safetensors file is eight bytes that say how long its header is, the header (JSON: name, type, shape, where its bytes lie), and the bytes.
A tensor of the same type and shape has the same header, so the copy of a file differs from it by the bytes of those tensors only.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import BadInput, Unreadable
from ..folders import beside, remove_leftovers, sync

SINGLE, INDEX, FACTS = "model.safetensors", "model.safetensors.index.json", "secateur.json"
KINDS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}  # of what can be pruned
HEAD = 1024  # bytes of every tensor that the digest looks at


class Place(NamedTuple):
    """Where a tensor lies. start, end: bytes of the file."""

    file: Path
    kind: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Stored:
    """The tensors of some files, by name. others: what else a copy of the folder needs: the index, what the model is built from."""

    folder: Path
    files: tuple[Path, ...]
    places: Mapping[str, Place]
    others: tuple[Path, ...] = ()

    def read(self, name: str) -> Tensor:
        """A copy of the tensor, in its own type."""
        return read(self.places[name].file, name)

    def type(self, name: str) -> torch.dtype:
        """The type of a tensor that is to be changed. Raises BadInput for one that is not reckoned with."""
        kind = self.places[name].kind
        if kind not in KINDS:
            raise BadInput(f"{name} is stored as {kind}, which cannot be pruned. Store it as one of {', '.join(KINDS)}, or keep it: keep=.")
        return KINDS[kind]

    def digest(self) -> str:
        """Of names, types and shapes, and of the first bytes of every tensor: to tell one model from another without reading it all."""
        digest = hashlib.sha256()
        for path in self.files:
            with open(path, "rb") as file:
                for name, place in self.places.items():
                    if place.file == path:
                        file.seek(place.start)
                        digest.update(f"{name} {place.kind} {place.shape} ".encode() + file.read(min(HEAD, place.end - place.start)))
        return digest.hexdigest()


def stored(source: str | Path) -> Stored:
    """The files of a folder (`model.safetensors`, or those that `model.safetensors.index.json` names), or one file.

    Raises Unreadable for what is missing or damaged.
    """
    place, others = Path(source).expanduser().absolute(), list[Path]()  # a file may be a link to one of another name
    if place.is_file():
        names = [place.name]
        place = place.parent
    elif (place / INDEX).is_file() or (place / SINGLE).is_file():
        names = named_by(place / INDEX) if (place / INDEX).is_file() else [SINGLE]
        others = sorted(path for path in place.glob("*.json") if path.name != FACTS)
    else:
        raise Unreadable(f"{source} has neither {SINGLE} nor {INDEX}. Give the folder, or the file, that holds the model's weights.")
    files = tuple(place / name for name in names)
    return Stored(place, files, {name: at for file in files for name, at in places_in(file).items()}, tuple(others))


def named_by(index: Path) -> list[str]:
    """The files that an index names, each once."""
    try:
        names = sorted({str(name) for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()})
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise Unreadable(f"{index} is damaged ({type(error).__name__}: {error}). Take the folder from where it is whole.") from error
    if foreign := next((name for name in names if Path(name).name != name or not (index.parent / name).is_file()), None):
        raise Unreadable(f"{index} names {foreign!r}, which is no file beside it. Take the folder from where it is whole.")
    return names


def places_in(path: Path) -> dict[str, Place]:
    try:
        with safe_open(path, "pt"):  # checks that all of it is there, and nothing lies over each other
            pass
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
    except (SafetensorError, OSError, ValueError) as error:
        raise Unreadable(f"{path} is damaged: {error}. Take it from where it is whole.") from error
    found = {}
    for name, told in header.items():
        if name != "__metadata__":
            start, end = told["data_offsets"]
            found[name] = Place(path, told["dtype"], tuple(told["shape"]), 8 + length + start, 8 + length + end)
    return found


def read(path: Path, name: str) -> Tensor:
    """A copy, so that the file is not held in memory, nor changed. Raises Unreadable."""
    try:
        with safe_open(path, "pt") as file:
            tensor: Tensor = file.get_tensor(name).clone()
    except (SafetensorError, OSError) as error:
        raise Unreadable(f"{name} cannot be read from {path}: {error}. Take the file from where it is whole.") from error
    return tensor


def copied(source: Stored, target: Path, new: Iterable[Path]) -> None:
    """Copies of all files of `source` in `target`, in which the tensors of the `new` files stand in place of those of their names.

    Each appears whole or not at all. Raises BadInput where they cannot be written.
    """
    instead = {name: place for path in new for name, place in places_in(path).items()}
    try:
        for path in source.files:
            with replacing_file(target / path.name) as fresh:
                shutil.copyfile(path, fresh)
                with open(fresh, "r+b") as file:
                    for name, place in source.places.items():
                        if place.file == path and name in instead:
                            file.seek(place.start)
                            file.write(bytes_of(instead[name]))
        for path in source.others:
            shutil.copyfile(path, target / path.name)
        sync(target)
    except OSError as error:
        raise BadInput(f"{target} cannot be written: {error}. Make room, and give the same call again: it goes on from here.") from error


@contextmanager
def replacing_file(place: Path) -> Iterator[Path]:
    """A new file to write, that takes its place in the end, or leaves no trace."""
    fresh = beside(place)
    remove_leftovers(place)
    try:
        yield fresh
        sync(fresh)
        fresh.replace(place)
    finally:
        fresh.unlink(missing_ok=True)


def bytes_of(place: Place) -> bytes:
    with open(place.file, "rb") as file:
        file.seek(place.start)
        return file.read(place.end - place.start)
