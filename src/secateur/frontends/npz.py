"""Data in an npz file. Nothing in it can run."""

from __future__ import annotations

from pathlib import Path

import numpy
import torch
from torch import Tensor

from ..errors import BadInput, Unreadable
from .batches import PARTS, Arrays, pair_of

PAIRS = (("x", "y"), ("X", "y"), ("images", "labels"), ("data", "target"), ("data", "labels"), ("inputs", "targets"))


def arrays_in(file: Path) -> tuple[dict[str, Arrays], tuple[str, ...] | None]:
    """Samples by split (under "" if there is one pile), and the classes where the file names them. Raises BadInput or Unreadable."""
    arrays = read_npz(file)
    given: dict[str, Arrays] = {}
    names: list[str] = []
    for part, split in {"": "", **PARTS}.items():
        keys = next(((x, y) for pair in PAIRS for x, y in spellings(pair, part) if x in arrays and y in arrays), None)
        if keys is not None:
            targets = arrays[keys[1]]
            if targets.dtype.kind in "US":
                names = names or numpy.unique(targets).astype(str).tolist()
                targets = numbers_of(targets.astype(str), names, file)
            given[split] = pair_of(image_like(arrays[keys[0]], file, keys[0]), tensor_of(targets, file, keys[1]), str(file))
    if not given:
        raise BadInput(
            f"{file} has {', '.join(arrays) or 'no array'}, but x and y are needed, or x_train, y_train, x_test and y_test. Rename them."
        )
    if "train" in given:
        given.pop("", None)
    return given, tuple(names) or None


def spellings(pair: tuple[str, str], part: str) -> list[tuple[str, str]]:
    x, y = pair
    return [(f"{x}_{part}", f"{y}_{part}"), (f"{part}_{x}", f"{part}_{y}")] if part else [pair]


def read_npz(file: Path) -> dict[str, numpy.ndarray]:
    if not file.is_file():
        raise Unreadable(f"There is no file {file}. Give an npz file with x and y.")
    try:
        with open(file, "rb") as opened, numpy.load(opened, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except Exception as error:  # a damaged archive fails in any way
        fact = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise Unreadable(
            f"{file} is not a whole npz file of plain arrays: {fact}. Write it with numpy.savez(file, x=..., y=...)."
        ) from error


def numbers_of(labels: numpy.ndarray, names: list[str], file: Path) -> numpy.ndarray:
    """Class numbers of class names."""
    unknown = set(labels.ravel().tolist()) - set(names)
    if unknown:
        raise BadInput(f"{file} has the class {min(unknown)} outside the training data only. Give training data of every class.")
    return numpy.searchsorted(numpy.array(names), labels)


def tensor_of(array: numpy.ndarray, file: Path, key: str) -> Tensor:
    """Floats as float32, whole numbers as int64."""
    if array.dtype.kind not in "fiub":
        raise BadInput(f"{key} in {file} is of type {array.dtype}, which is neither numbers nor (for targets) text. Convert it.")
    return torch.from_numpy(array.astype(numpy.float32 if array.dtype.kind == "f" else numpy.int64))


def image_like(array: numpy.ndarray, file: Path, key: str) -> Tensor:
    """Bytes are images: (n, height, width) or (n, height, width, 1, 3 or 4) become (n, channels, height, width) in 0..1."""
    if array.dtype != numpy.uint8 or array.ndim not in (3, 4):
        return tensor_of(array, file, key)
    images = torch.from_numpy(array)
    if images.dim() == 3:
        images = images.unsqueeze(1)
    elif images.shape[3] in (1, 3, 4) and images.shape[1] not in (1, 3, 4):
        images = images.permute(0, 3, 1, 2)
    return images.float().contiguous() / 255
