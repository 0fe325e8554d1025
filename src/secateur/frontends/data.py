"""Data by name, as the command line gives it, as batches for training, validation and test."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from ..errors import BadInput, need
from ..task import describe
from .batches import PARTS, Arrays, Batches, Items, Splits, pair_of, split
from .images import image_folder
from .models import call, function_of
from .npz import arrays_in

WAYS = "file.py:function, package.module:function, folder:PATH, npz:PATH or digits"

Given = dict[str, Arrays | Items | Iterable[object]]  # split -> samples, or batches as they are; "" for one pile


def data_of(spec: str, seed: int = 0, batch: int = 64, size: tuple[int, int] | None = None) -> Splits:
    """The data `spec` names: file.py:function, package.module:function, folder:PATH, npz:PATH or digits.

    One pile is split 80/10/10, and validation data that is missing is a tenth of the training data; each class is shared out alike.
    batch: samples a batch, where the data is not in batches already. size: (height, width) of a folder's images, or else the first one's.

    A function returns {"train": ..., "validation": ..., "test": ...} or one pile; each is a map-style data set of (inputs, target), a pair
    of tensors, or a loader. An npz file has x and y, or x_train, y_train, x_test, y_test (images and labels, data and target, too); bytes
    are taken for images, and become 0..1 with channels first. Raises BadInput, and Unreadable for a damaged file.
    """
    kind, colon, rest = spec.partition(":")
    classes: tuple[str, ...] | None
    notes: dict[str, object]
    if spec == "digits":
        given, classes, notes = digits()
    elif kind == "folder" and rest:
        given, classes, notes = from_folder(Path(rest).expanduser(), size)
    elif kind == "npz" and rest:
        arrays, classes = arrays_in(Path(rest).expanduser())
        given, notes = {**arrays}, {}
    elif colon and rest:
        given, classes, notes = from_function(spec)
    else:
        raise BadInput(f"{spec!r} does not name data. Give {WAYS}.")
    splits = splits_of(given, spec, seed, batch)
    return replace(splits, classes=classes, record={**splits.record, **notes, "classes": list(classes) if classes else None})


def splits_of(given: Given, spec: str, seed: int, batch: int) -> Splits:
    """Batches for the three splits, those that are missing cut from what is there."""
    for name, data in given.items():
        if isinstance(data, Sized) and not len(data):
            raise BadInput(f"{f'The {name} data of {spec}' if name else spec} is empty. Give at least one sample.")
    record: dict[str, object] = {"data": spec, "seed": seed}
    if given.keys() == {"train", "validation", "test"}:
        record |= {"split": "as given", **dict.fromkeys(given)}
        return Splits(mixed(given["train"], batch, seed), batches(given["validation"], batch), batches(given["test"], batch), record)
    if given.keys() not in ({""}, {"train"}, {"train", "test"}):
        raise BadInput(
            f"{spec} has {' and '.join(given)} data, but training and test data are needed. Give both, or one pile, which is split."
        )
    pile = samples_of(given["train"] if "train" in given else given[""])
    shares = (0.9, 0.1) if "test" in given else (0.8, 0.1, 0.1)
    if not isinstance(pile, (Arrays, Items)):
        raise BadInput(
            f"{spec} gives batches, which cannot be split. Give training, validation and test apart, or a data set of single samples."
        )
    indices, how = split(pile, shares, seed, spec)
    record |= {"split": how, "test": None, **dict(zip(("train", "validation", "test"), indices))}
    train, validation, *test = (Batches(pile, batch, part) for part in indices)
    return Splits(train, validation, test[0] if test else batches(given["test"], batch), record)


def samples_of(data: Arrays | Items | Iterable[object]) -> Arrays | Items | Iterable[object]:
    """What a loader loads, where it can be had by number."""
    if not isinstance(data, DataLoader) or isinstance(data.dataset, IterableDataset) or data.batch_sampler is None:
        return data
    return Items(cast("Sequence[object]", data.dataset), cast("Callable[[list[object]], object]", data.collate_fn))


def batches(data: Arrays | Items | Iterable[object], batch: int) -> Iterable[object]:
    return Batches(data, batch) if isinstance(data, (Arrays, Items)) else data


def mixed(data: Arrays | Items | Iterable[object], batch: int, seed: int) -> Iterable[object]:
    """Training data in one random order: of data that is sorted by class, each batch would have one class."""
    if not isinstance(data, (Arrays, Items)):
        return data
    return Batches(data, batch, torch.randperm(len(data), generator=torch.Generator().manual_seed(seed)).tolist())


def digits() -> tuple[Given, tuple[str, ...], dict[str, object]]:
    """1,797 handwritten digits of 8 by 8 pixels, which scikit-learn ships; in 0..1, (samples, 1, 8, 8)."""
    data = need("sklearn.datasets", "data").load_digits()
    images = torch.from_numpy(data.images).float().unsqueeze(1) / 16
    return {"": Arrays(images, torch.from_numpy(data.target).long())}, tuple(map(str, range(10))), {}


def from_folder(folder: Path, size: tuple[int, int] | None) -> tuple[Given, tuple[str, ...], dict[str, object]]:
    """One folder of images a class, or such folders within train, validation and test."""
    names = sorted(child.name for child in folder.iterdir() if child.is_dir()) if folder.is_dir() else []
    if not ("train" in names and set(names) <= PARTS.keys()):
        pile, classes, skipped = image_folder(folder, size)
        return {"": pile}, classes, {"skipped": skipped}
    given: Given = {}
    classes, skipped = (), []
    for name in sorted(names, key=list(PARTS).index):
        pile, found, passed = image_folder(folder / name, size)
        size = size or pile.dataset.size  # type: ignore[attr-defined]  # one size for all
        if classes and found != classes:
            raise BadInput(
                f"{folder / name} has the classes {', '.join(found)}, but train has {', '.join(classes)}. Give all the same folders."
            )
        classes, skipped = found, [*skipped, *(f"{name}/{file}" for file in passed)]
        given[PARTS[name]] = pile
    return given, classes, {"skipped": skipped}


def from_function(spec: str) -> tuple[Given, tuple[str, ...] | None, dict[str, object]]:
    function, folder = function_of(spec, "data")
    value = call(spec, function, folder)
    parts = value if isinstance(value, Mapping) else {"": value}
    unknown = [str(name) for name in parts if name not in (*PARTS, "")]
    if unknown or not parts:
        raise BadInput(f"{spec} returned a dict of {', '.join(unknown) or 'nothing'}. Return train, validation and test, or a data set.")
    given = {PARTS.get(name, ""): given_as(data, spec, name) for name, data in parts.items()}
    names = next((getattr(data, "classes", None) for data in parts.values()), None)
    classes = tuple(map(str, names)) if isinstance(names, (list, tuple)) else None
    return given, classes, {}


def given_as(data: object, spec: str, name: str) -> Arrays | Items | Iterable[object]:
    """Samples, where single ones can be had, or else re-iterable batches."""
    what = f"{name} of {spec}" if name else spec
    if isinstance(data, (tuple, list)) and len(data) == 2 and all(isinstance(item, (Tensor, numpy.ndarray)) for item in data):
        return pair_of(torch.as_tensor(data[0]), torch.as_tensor(data[1]), what)
    if hasattr(data, "__next__"):
        raise BadInput(f"{what} is an iterator, which can be read only once. Give a list, a data set or a loader.")
    if isinstance(data, (IterableDataset, str, Mapping)) or not (hasattr(data, "__iter__") or hasattr(data, "__getitem__")):
        raise BadInput(f"{what} is {describe(data)}, not data. Give a data set of (inputs, target), a pair of tensors, or a DataLoader.")
    if hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        samples = cast("Sequence[object]", data)
        if isinstance(data, Dataset) or not of_batches(samples):
            return Items(samples)
    return cast("Iterable[object]", data)


def of_batches(data: Sequence[object]) -> bool:
    """Whether a sequence is one of batches, not of samples: its first element has as many inputs as targets."""
    first = data[0] if len(data) else None
    if isinstance(first, Mapping):
        return any(isinstance(value, Tensor) and value.dim() for value in first.values())
    if not (isinstance(first, (tuple, list)) and len(first) == 2):
        return False
    inputs, targets = first
    return isinstance(targets, Tensor) and targets.dim() > 0 and (not isinstance(inputs, Tensor) or len(inputs) == len(targets))
